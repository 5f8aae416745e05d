"""What `regraft.fit` does, written out: a loop of one's own that ends with the same weights, to the bit.

    python examples/fit_by_hand.py

Three epochs of the shipped recipe `digits`, arm `virtual`: first by hand, then by `fit`, then compared.
"""

import math
import tempfile
from pathlib import Path

import torch

import regraft
from regraft.data import load, plain_batches, training_batches
from regraft.distill import cross_entropy
from regraft.models import tiny_vgg
from regraft.training import load_study, override

EPOCHS, BATCH, LR, SEED = 3, 64, 0.1, 0


def by_hand() -> torch.nn.Module:
    """A plain PyTorch loop with a `Topology` and a `Distill` in it."""
    torch.manual_seed(SEED)
    data = load("digits", validation=0.2, seed=0)
    model = tiny_vgg(classes=10, channels=1, size=8, steps=4)
    steps = EPOCHS * (len(data.train) // BATCH)

    topology = regraft.Topology(model, density=0.1, rule="rigl", steps=steps, every=20, seed=SEED)
    regraft.execute(model, topology)  # the same network, faster
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 5e-4},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=LR, momentum=0.9, nesterov=True)
    topology.attach(optimizer)
    warm = math.floor(0.05 * steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: (s + 1) / warm if s < warm else 0.5 * (1 + math.cos(math.pi * (s - warm) / (steps - warm))),
    )
    criterion = regraft.Distill(
        regraft.VirtualTeacher(confidence=0.9), weight=0.3, temperature=4, over="step", label_loss=cross_entropy
    )

    for epoch in range(1, EPOCHS + 1):
        model.train()
        for x, y in training_batches(data.train, BATCH, seed=SEED, epoch=epoch):
            loss = criterion(model(x), y, inputs=x)
            loss.backward()
            optimizer.step()  # the topology masks gradients, keeps and rewires here
            schedule.step()
            optimizer.zero_grad()
    regraft.reestimate(model, training_batches(data.train, BATCH, seed=SEED, epoch=EPOCHS))
    print(topology)
    found = regraft.evaluate(model, plain_batches(data.test, 256))
    print(f"accuracy {found.accuracy:.3f}")
    return model


def by_fit() -> torch.nn.Module:
    """The same by the recipe."""
    recipe = override(load_study("digits").arms["virtual"], {"training.epochs": EPOCHS, "seed": SEED})
    with tempfile.TemporaryDirectory() as folder:
        regraft.fit(recipe, Path(folder) / "run")
        return regraft.load(Path(folder) / "run").model


if __name__ == "__main__":
    hand, fit = by_hand().state_dict(), by_fit().state_dict()
    different = [name for name in hand if not torch.equal(hand[name], fit[name])]
    print(f"{len(hand)} tensors, different from fit: {different or 'none'}")
    raise SystemExit(bool(different))
