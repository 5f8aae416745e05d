"""Is `synthetic_gestures` hard enough to mean something? What no time tells, and what networks lose without its order.

    python benchmarks/gesture_controls.py [RUN ...] [--json PATH] [--shuffles 5] [--without-order ARM]

Linear read-outs of the events summed over time: ridge regression (closed form) and softmax regression, on counts and on
their square roots, with a search of the penalty; all is chosen on the validation split. Each RUN is a finished run
folder of `regraft train gestures`: its accuracy as it is, and with the steps of each clip in a random order.
`--without-order ARM` also trains an arm of the recipe on clips whose steps are in random order, in training and test.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import regraft
from regraft.data import Dataset, Split, plain_batches
from regraft.data import load as load_data
from regraft.data.gestures import GESTURES, TEST, TRAIN, synthetic_gestures
from regraft.training import load_study, train_study
from regraft.training.evaluate import evaluate
from regraft.training.run import environment

PENALTIES = [10.0**power for power in range(-2, 4)]
TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {"counts": lambda x: x, "square roots": torch.sqrt}
Fit = Callable[[Tensor, Tensor, float], Tensor]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--shuffles", type=int, default=5)
    parser.add_argument("--without-order", metavar="ARM")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("synthetic_gestures")
    found: dict[str, Any] = {
        "environment": environment(),
        "chance": 1 / len(GESTURES),
        "clips": {name: len(getattr(data, name)) for name in ("train", "valid", "test")},
        "ranges": {"train": asdict(TRAIN), "test": asdict(TEST)},
        "linear": linear(data),
        "runs": [in_time_and_out(run, data.test, options.shuffles) for run in options.runs],
    }
    if options.without_order:
        found["without_order"] = train_without_order(options.without_order)
    show(found)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def linear(data: Dataset) -> dict[str, Any]:
    """The best linear read-out of time-summed events by validation, and its accuracy on the test split."""
    rows = []
    for method, fit in (("ridge regression", ridge), ("softmax regression", softmax)):
        for transform in TRANSFORMS:
            train, valid, test = (summed(s, TRANSFORMS[transform]) for s in (data.train, data.valid, data.test))
            mean, scale = train.mean(0), train.std()
            train, valid, test = (with_one((x - mean) / scale) for x in (train, valid, test))
            for penalty in PENALTIES:
                weights = fit(train, data.train.y, penalty)
                scores = {
                    "train": accuracy(train @ weights, data.train.y),
                    "valid": accuracy(valid @ weights, data.valid.y),
                    "test": accuracy(test @ weights, data.test.y),
                }
                rows.append({"method": method, "of": transform, "penalty": penalty, **scores})
    return {"chosen": max(rows, key=lambda row: row["valid"]), "all": rows}


def summed(split: Split, transform: Callable[[Tensor], Tensor]) -> Tensor:
    """Events of each pixel and polarity over the whole clip, `[N, 2 H W]` float64."""
    return transform(split.x.sum(1, dtype=torch.float64).flatten(1))


def with_one(x: Tensor) -> Tensor:
    """A last column of ones, for the bias."""
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)


def ridge(x: Tensor, y: Tensor, penalty: float) -> Tensor:
    """Least squares to one-hot labels; the penalty is per sample and spares the bias."""
    target = torch.nn.functional.one_hot(y, len(GESTURES)).to(x.dtype)
    cost = torch.full((x.shape[1],), penalty * len(x), dtype=x.dtype)
    cost[-1] = 1e-9
    return torch.linalg.solve(x.T @ x + torch.diag(cost), x.T @ target)


def softmax(x: Tensor, y: Tensor, penalty: float) -> Tensor:
    """Multinomial logistic regression to convergence of L-BFGS; the penalty is per sample and spares the bias."""
    weights = torch.zeros(x.shape[1], len(GESTURES), dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ weights, y) + penalty / 2 * weights[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()


def accuracy(logits: Tensor, y: Tensor) -> float:
    """Share of right answers."""
    return float((logits.argmax(1) == y).double().mean())


def in_time_and_out(run: Path, test: Split, shuffles: int) -> dict[str, Any]:
    """Accuracy of a finished run at its last epoch: on the test split, and with the steps of each clip shuffled."""
    loaded = regraft.load(run)
    as_it_is = evaluate(loaded.model, plain_batches(test, 256)).accuracy
    shuffled = [
        evaluate(loaded.model, plain_batches(replace(test, x=shuffle_steps(test.x, seed)), 256)).accuracy
        for seed in range(shuffles)
    ]
    return {
        "run": str(run),
        "density": loaded.recipe.topology.density,
        "seed": loaded.recipe.seed,
        "test": as_it_is,
        "shuffled": shuffled,
        "lost": as_it_is - statistics.mean(shuffled),
    }


def shuffle_steps(x: Tensor, seed: int) -> Tensor:
    """`[N, T, ...]`, each clip's steps in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(x.shape[:2], generator=generator).argsort(1)
    return x[torch.arange(len(x))[:, None], order]


def without_order(split: str, seed: int = 0, *, steps: int = 16) -> tuple[Tensor, Tensor]:
    """The data set with the steps of each clip shuffled, once and for all: what a network can learn without order."""
    x, y = synthetic_gestures(split, seed, steps=steps)
    return shuffle_steps(torch.from_numpy(x), seed), torch.from_numpy(y)


def train_without_order(arm: str) -> dict[str, Any]:
    """An arm of the recipe trained and tested on shuffled steps."""
    study = load_study("gestures", {"data.name": f"{Path(__file__).stem}:without_order"}, [arm])
    with tempfile.TemporaryDirectory() as folder:
        (run,) = train_study(study, folder)
        accuracy = json.loads((run / "result.json").read_text(encoding="utf-8"))["accuracy"]
    return {"arm": arm, "test": accuracy["last"], "valid": accuracy["valid_last"]}


def show(found: dict[str, Any]) -> None:
    """One line a finding."""
    best = found["linear"]["chosen"]
    print(f"chance {found['chance']:.1%}; clips {found['clips']}")
    print(
        f"linear read-out of time-summed events ({best['method']} of {best['of']}, penalty {best['penalty']:g}): "
        f"training {best['train']:.1%}, validation {best['valid']:.1%}, test {best['test']:.1%}; "
        f"the best of all on the test split would be {max(row['test'] for row in found['linear']['all']):.1%}"
    )
    for run in found["runs"]:
        low, high = min(run["shuffled"]), max(run["shuffled"])
        print(
            f"{run['run']} (density {run['density']:g}, seed {run['seed']}): test {run['test']:.1%}, "
            f"steps shuffled {low:.1%} to {high:.1%}, lost {100 * run['lost']:.1f} points"
        )
    if "without_order" in found:
        print(f"{found['without_order']['arm']} trained without order: test {found['without_order']['test']:.1%}")
    for name, train in found["ranges"]["train"].items():
        print(f"{name:<10} training {train[0]:g} to {train[1]:g}, test {found['ranges']['test'][name]}")


if __name__ == "__main__":
    main()
