"""A sweep as array jobs of Slurm: files that one reads, edits and submits.

Teachers are an array of their own, which the students' waits for. A task trains its run with resume: told by SIGUSR1
that its time is over, it saves and queues itself again. (SIGTERM alone also means `scancel`, after which nothing should
come back.) Options: https://slurm.schedmd.com/sbatch.html
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from regraft.training.files import write_bytes
from regraft.training.sweep import Planned

WARNING = 120  # seconds before the end of its time at which a task is told

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}%{workers}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={threads}
#SBATCH --mem=8G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@{warning}
#SBATCH --output={folder}/slurm-%A_%a.out
{gpu}
# Task i trains the run in line i + 1 of {tasks}, or goes on with it. Submit it from the folder
# that the paths are relative to. Time, memory and partition are guesses: set them for your cluster.

export OMP_NUM_THREADS={threads} MKL_NUM_THREADS={threads}  # a resumed run repeats its bits only with as many as before
run=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {tasks})
[ -n "$run" ] || {{ echo "no run for task $SLURM_ARRAY_TASK_ID in {tasks}" >&2; exit 2; }}

again= told=
trap 'again=yes told=yes; kill -TERM "$worker"' USR1
trap 'told=yes; kill -TERM "$worker"' TERM INT
{python} -m regraft.training.worker {folder} "$run" &
worker=$!
wait "$worker"; code=$?
while [ -n "$told" ] && [ "$code" -ge 128 ]; do  # a signal ends a wait before the worker has saved
  told=
  wait "$worker"; code=$?
done
if [ -n "$again" ] && [ "$code" -ge 128 ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$code"
"""


def write_jobs(runs: Sequence[Planned], folder: Path, *, name: str, workers: int, threads: int, gpu: bool) -> list[str]:
    """Write `sweep.slurm` and `sweep.tasks`, for teachers `teachers.slurm` and `teachers.tasks`, into `folder`.

    Returns the commands that submit them, in order. Raises `RunError` if a file cannot be written.
    """
    teaching = {run.teacher for run in runs}
    parts = {
        "teachers": [run for run in runs if run.path in teaching],
        "sweep": [run for run in runs if run.path not in teaching],
    }
    for part, own in parts.items():
        if not own:
            continue
        tasks = folder / f"{part}.tasks"
        write_bytes(tasks, "".join(f"{run.path}\n" for run in own).encode())
        script = SCRIPT.format(
            name=shlex.quote(f"{name}-{part}" if part == "teachers" else name),
            last=len(own) - 1,
            workers=workers,
            threads=threads,
            warning=WARNING,
            folder=shlex.quote(str(folder)),
            tasks=shlex.quote(str(tasks)),
            python=shlex.quote(sys.executable),
            gpu="#SBATCH --gpus=1\n" if gpu else "",
        )
        write_bytes(folder / f"{part}.slurm", script.encode())
    scripts = {part: shlex.quote(str(folder / f"{part}.slurm")) for part in parts}
    if not parts["teachers"]:
        return [f"sbatch {scripts['sweep']}"]
    # afterany: a student whose teacher failed says so in a moment; the others go on
    return [
        f"first=$(sbatch --parsable {scripts['teachers']})",
        f'sbatch --dependency=afterany:"$first" {scripts["sweep"]}',
    ]
