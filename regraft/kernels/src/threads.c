#define _POSIX_C_SOURCE 200112L
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>

#include "segment.h"

static regraft_team team;

__attribute__((visibility("default"))) void regraft_use_team(regraft_team given) { team = given; }

__attribute__((visibility("default"))) const char *regraft_sources(void) { return REGRAFT_SOURCES; }

__attribute__((visibility("default"))) const char *regraft_best(void) {
#ifdef REGRAFT_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        return "avx512";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
#endif
    return "portable";
}

typedef struct {
    regraft_body body;
    void *context;
    int64_t tasks;
    size_t bytes;
    atomic_llong next;
    atomic_int failed;
} job;

static void work(void *data) {
    job *j = data;
    void *scratch = NULL;
    if (j->bytes && posix_memalign(&scratch, 64, j->bytes)) {
        atomic_store(&j->failed, 1);
        return;
    }
    for (;;) {
        int64_t task = atomic_fetch_add(&j->next, 1);
        if (task >= j->tasks) break;
        j->body(j->context, scratch, task);
    }
    free(scratch);
}

int regraft_each(int64_t tasks, int threads, size_t bytes, regraft_body body, void *context) {
    job j = {.body = body, .context = context, .tasks = tasks, .bytes = bytes};
    atomic_init(&j.next, 0);
    atomic_init(&j.failed, 0);
    if (threads > tasks) threads = (int)tasks;
    if (team && threads > 1)
        team(work, &j, (unsigned)threads, 0);
    else
        work(&j);
    /* One thread without memory leaves its share to the others; only if none had any is something missing. */
    return atomic_load(&j.next) < tasks;
}
