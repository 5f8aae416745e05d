"""Finished runs over several seeds: mean and standard deviation of each arm, and a verdict against a baseline.

    regraft sweep digits_teachers --seed 0 1 2 3 4 --threads 1 --out runs/teachers
    python benchmarks/compare_arms.py runs/teachers --baseline alone --out results/digits_teachers

Keeps `result.json`, `recipe.yaml`, `environment.json` and the compressed log of each run in `--out`, and writes
`verdicts.md` there; the networks themselves stay where they are.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
from pathlib import Path

from regraft.report import by_arm, compare, find_runs, summary
from regraft.report.runs import Run


def main() -> None:
    """Copy what is worth keeping, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--baseline", required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    runs = [run for run in find_runs(given.runs) if run.result]
    for run in runs:
        keep(run.folder, given.out / run.folder.relative_to(given.runs))
    students = [run for run in runs if not run.folder.relative_to(given.runs).parts[0].startswith("teacher")]
    commands = sorted({run.result["command"] for run in runs if run.result})
    text = verdicts(students, given.baseline, commands)
    (given.out / "verdicts.md").write_text(text, encoding="utf-8")
    print(text)


def keep(run: Path, target: Path) -> None:
    """What of a run goes under version control."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("result.json", "recipe.yaml", "environment.json"):
        shutil.copyfile(run / name, target / name)
    with gzip.GzipFile(target / "log.jsonl.gz", "wb", mtime=0) as file:
        file.write((run / "log.jsonl").read_bytes())


def verdicts(runs: list[Run], baseline: str, commands: list[str]) -> str:
    """A Markdown page: accuracy by arm, and paired differences to the baseline, for both choices of an epoch."""
    lines = [*(f"`{command}`" for command in commands), ""]
    for which in ("last", "selected"):
        values = by_arm(runs, which)
        over = summary(values)
        lines += [f"## Accuracy on the test set, {which} epoch", ""]
        lines += ["| arm | mean | standard deviation | seeds |", "|:--|--:|--:|--:|"]
        lines += [f"| {arm} | {100 * s.mean:.2f} % | {100 * s.sd:.2f} | {s.n} |" for arm, s in over.items()]
        lines += ["", f"Claim: the arm is better than `{baseline}` (paired by seed, Holm-adjusted 95 % intervals).", ""]
        lines += ["| arm | difference (points) | interval | verdict | smallest detectable |", "|:--|--:|--:|:--|--:|"]
        for v in compare(values, baseline):
            interval = f"{100 * v.low:+.2f} to {100 * v.high:+.2f}"
            lines.append(f"| {v.arm} | {100 * v.mean:+.2f} | {interval} | {v.word} | {100 * v.detectable:.2f} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
