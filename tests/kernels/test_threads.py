"""How tasks are shared out: each is done once, by whoever comes; and what is said where memory is missing."""

from __future__ import annotations

import subprocess

import pytest

from regraft.kernels import build

PROGRAM = r"""
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include "segment.h"

static atomic_int done[1000];
static void body(void *context, void *scratch, int64_t task) {
    (void)context;
    ((char *)scratch)[63] = 1;
    atomic_fetch_add(&done[task], 1);
}
static struct { void (*work)(void *); void *data; } job;
static void *start(void *unused) { (void)unused; job.work(job.data); return NULL; }
static unsigned asked;
static void team(void (*work)(void *), void *data, unsigned threads, unsigned flags) {
    (void)flags;
    asked = threads, job.work = work, job.data = data;
    pthread_t ids[8];
    for (unsigned i = 0; i < threads; i++) pthread_create(&ids[i], NULL, start, NULL);
    for (unsigned i = 0; i < threads; i++) pthread_join(ids[i], NULL);
}
static int once(int64_t tasks) {
    int good = 1;
    for (int64_t i = 0; i < 1000; i++) good &= atomic_exchange(&done[i], 0) == (i < tasks);
    return good;
}
static void tell(int64_t tasks, int threads, size_t bytes) {
    int failed = regraft_each(tasks, threads, bytes, body, NULL);
    printf("%d %d %u\n", failed, once(failed ? 0 : tasks), asked);
}
int main(void) {
    tell(1000, 4, 64);
    regraft_use_team(team);
    tell(1000, 4, 64);
    tell(3, 8, 64);
    tell(5, 1, (size_t)1 << 62);
    tell(5, 4, (size_t)1 << 62);
    return 0;
}
"""


@pytest.mark.skipif(build.compiler() is None, reason="no C compiler")
def test_each_task_is_done_once_or_it_says_that_memory_is_missing(tmp_path):
    cc = build.compiler()
    assert cc is not None
    (tmp_path / "main.c").write_text(PROGRAM)
    sources = [str(tmp_path / "main.c"), str(build.SOURCES / "threads.c")]
    sources.append('-DREGRAFT_SOURCES=""')
    command = [*cc, "-std=gnu11", "-O1", "-pthread", "-I", str(build.SOURCES), *sources, "-o", str(tmp_path / "run")]
    subprocess.run(command, check=True)
    told = subprocess.run([tmp_path / "run"], capture_output=True, text=True, check=True, timeout=60).stdout
    # failed, each task once, threads of the team
    assert told.splitlines() == ["0 1 0", "0 1 4", "0 1 3", "1 1 3", "1 1 4"]
