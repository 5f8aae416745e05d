"""A spiking network in plain PyTorch, with its own neuron and its own loop through time, made sparse by regraft.

Needs: pip install 'regraft[digits]'. Takes a few seconds on one core.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import regraft

STEPS, EPOCHS = 6, 8

torch.manual_seed(0)
digits = load_digits()  # 1,797 images of 8 x 8
data = TensorDataset(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target))
train, test = random_split(data, [0.8, 0.2])
loader, test_loader = DataLoader(train, batch_size=64, shuffle=True), DataLoader(test, batch_size=512)


class Fire(torch.autograd.Function):
    """1 where the membrane is above 0; backward: a triangle."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad * (1 - ctx.saved_tensors[0].abs()).clamp_min(0)


class Neuron(nn.Module):
    """One time step of a leaky neuron that is reset to 0; the membrane goes in and out."""

    def forward(self, x, v):
        u = 0.5 * v + x
        s = Fire.apply(u - 1)
        return s, u * (1 - s.detach())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.out = nn.Linear(64, 256), nn.Linear(256, 128), nn.Linear(128, 10)
        self.neuron1, self.neuron2 = Neuron(), Neuron()

    def forward(self, x):
        v1 = v2 = torch.zeros(())
        logits = []
        for _ in range(STEPS):
            s1, v1 = self.neuron1(self.fc1(x), v1)
            s2, v2 = self.neuron2(self.fc2(s1), v2)
            logits.append(self.out(s2))
        return torch.stack(logits)  # [T, N, K]


model = Net()
optimizer = torch.optim.Adam(model.parameters(), lr=0.005)

# regraft: one connection in ten exists, and which ones evolves until three quarters of the training are over
topology = regraft.Topology(model, density=0.1, rule="rigl", steps=EPOCHS * len(loader), every=15, seed=0)
topology.attach(optimizer)  # from now on optimizer.step() keeps and evolves the wiring
criterion = regraft.Distill(regraft.VirtualTeacher(), weight=0.5, temperature=4)  # a teacher that is no network

for _ in range(EPOCHS):
    for x, y in loader:
        loss = criterion(model(x), y, inputs=x)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

print(topology, end="\n\n")
print(regraft.measure(model, test_loader, topology=topology, neurons=["Neuron"], steps=STEPS))
with torch.no_grad():
    correct = sum(int((model(x).mean(0).argmax(1) == y).sum()) for x, y in test_loader)
print(f"\ntest accuracy {correct / len(test):.3f}")
