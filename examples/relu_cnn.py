"""An ordinary ReLU network made spiking in one line, born with a tenth of its connections, and trained in a plain loop.

Needs scikit-learn (`pip install 'regraft[digits]'`) for the 8x8 digits; takes seconds on one processor core.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import regraft

EPOCHS = 12


class Block(nn.Module):
    """Two convolutions and a shortcut, as anybody would write them: nothing here knows of spikes or time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + x)


class ReluCnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.block = Block(24)
        self.fc = nn.Linear(24 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        x = self.block(F.max_pool2d(x, 2))
        return self.fc(x.flatten(1))


def loaders() -> tuple[DataLoader, DataLoader]:
    """Four fifths to learn from, one fifth to be tested on; standardised."""
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)
    data = TensorDataset((x - x.mean()) / x.std(), torch.tensor(labels))
    train, test = torch.utils.data.random_split(data, [0.8, 0.2])
    return DataLoader(train, batch_size=64, shuffle=True, drop_last=True), DataLoader(test, batch_size=128)


def main() -> None:
    torch.manual_seed(0)
    train, test = loaders()
    model = regraft.spiking(ReluCnn(), steps=4)  # the one line
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    topology = regraft.Topology(model, density=0.1, rule="rigl", steps=EPOCHS * len(train), every=20, seed=0)
    topology.attach(optimizer)
    criterion = regraft.Distill(regraft.VirtualTeacher(), weight=0.5, temperature=4)

    for _ in range(EPOCHS):
        for x, y in train:
            loss = criterion(model(x), y, inputs=x)  # logits [T, N, K]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    model.eval()
    with torch.no_grad():
        right = sum(int((model(x).mean(0).argmax(1) == y).sum()) for x, y in test)
    print(topology)
    print(regraft.measure(model, test, topology=topology))
    print(f"accuracy {right / len(test.dataset):.3f}")  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main()
