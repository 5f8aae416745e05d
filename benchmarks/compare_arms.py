"""All arms of a recipe over several seeds: mean, standard deviation, and a verdict on each against a baseline.

    python benchmarks/compare_arms.py digits_teachers --baseline alone --seeds 0 1 2 3 4 --out results/digits_teachers

Finished runs are skipped. Keeps `result.json`, `recipe.yaml` and the compressed log of each run in `--out`, and writes
`verdicts.md` and `report.html` there; the networks themselves stay in `--runs`.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import sys
from pathlib import Path

import torch

from regraft.report import by_arm, compare, find_runs, summary, write_report
from regraft.training import load_study, train_study


def main() -> None:
    """Train what is missing, then judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--baseline", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    runs = []
    for seed in options.seeds:
        study = load_study(options.recipe, {"seed": seed})
        folder = options.runs / options.recipe / f"seed-{seed}"
        command = f"regraft train {options.recipe} --seed {seed}"
        for path in train_study(study, folder, watch=show, command=command):
            keep(path, options.out / f"seed-{seed}" / path.name)
        runs += find_runs(folder)
    students = [run for run in runs if run.result and run.result["name"] != "teacher"]
    options.out.mkdir(parents=True, exist_ok=True)
    text = verdicts(students, options.baseline, "python " + " ".join(sys.argv))
    (options.out / "verdicts.md").write_text(text, encoding="utf-8")
    write_report(runs, options.runs / options.recipe / "report.html", baseline=options.baseline)
    print(text)


def show(record: dict) -> None:
    """One line a finished arm."""
    if record["kind"] == "epoch" and record["epoch"] % 10 == 0:
        print(record["run"], "epoch", record["epoch"], "validation", record["valid"]["accuracy"], flush=True)


def keep(run: Path, target: Path) -> None:
    """What of a run goes under version control."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("result.json", "recipe.yaml", "environment.json"):
        shutil.copyfile(run / name, target / name)
    with gzip.GzipFile(target / "log.jsonl.gz", "wb", mtime=0) as file:
        file.write((run / "log.jsonl").read_bytes())


def verdicts(runs: list, baseline: str, command: str) -> str:
    """A Markdown page: accuracy by arm, and paired differences to the baseline, for both choices of an epoch."""
    lines = [f"`{command}`", ""]
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
