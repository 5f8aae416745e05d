"""A SpikingJelly network, trained in its own manner and made sparse by regraft.

Needs: pip install 'regraft[digits]' and SpikingJelly (requirements/peers.txt). Takes a few seconds on one core.
"""

import torch
from sklearn.datasets import load_digits
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import regraft

STEPS, EPOCHS = 6, 8

torch.manual_seed(0)
digits = load_digits()  # 1,797 images of 8 x 8
data = TensorDataset(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target))
train, test = random_split(data, [0.8, 0.2])
loader, test_loader = DataLoader(train, batch_size=64, shuffle=True), DataLoader(test, batch_size=512)


def lif():
    return neuron.LIFNode(tau=2.0, decay_input=False, surrogate_function=surrogate.ATan(), detach_reset=True)


model = nn.Sequential(nn.Linear(64, 256), lif(), nn.Linear(256, 128), lif(), nn.Linear(128, 10))


def run(model, x):
    """Logits [T, N, K]. SpikingJelly's neurons keep their membrane, so it is reset first."""
    functional.reset_net(model)
    return torch.stack([model(x) for _ in range(STEPS)])


optimizer = torch.optim.Adam(model.parameters(), lr=0.005)

# regraft: one connection in ten exists, and which ones evolves until three quarters of the training are over
topology = regraft.Topology(model, density=0.1, rule="rigl", steps=EPOCHS * len(loader), every=15, seed=0)
topology.attach(optimizer)  # from now on optimizer.step() keeps and evolves the wiring
criterion = regraft.Distill(regraft.VirtualTeacher(), weight=0.5, temperature=4)  # a teacher that is no network

for _ in range(EPOCHS):
    for x, y in loader:
        loss = criterion(run(model, x), y, inputs=x)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

print(topology, end="\n\n")
print(regraft.measure(model, test_loader, topology=topology, forward=run, steps=STEPS))
with torch.no_grad():
    correct = sum(int((run(model, x).mean(0).argmax(1) == y).sum()) for x, y in test_loader)
print(f"\ntest accuracy {correct / len(test):.3f}")
