"""Gradients of a recurrent network are clipped after `optimizer.step()`, when they have been used."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Adder(nn.Module):
    """A plain recurrent network whose state starts as an identity."""

    def __init__(self, width=40):
        super().__init__()
        self.rnn = nn.RNN(2, width, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(width, 1)
        with torch.no_grad():
            self.rnn.weight_hh_l0.copy_(torch.eye(width))
            self.rnn.weight_ih_l0.normal_(std=0.3)

    def forward(self, sequences):
        return self.head(self.rnn(sequences)[0][:, -1])[:, 0]


def sums(count, seed, length=20):
    """The target is the sum of the two numbers that are marked."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(count, length, generator=generator)
    marks = torch.zeros(count, length)
    first = torch.randint(length // 2, (count,), generator=generator)
    second = torch.randint(length // 2, length, (count,), generator=generator)
    marks[torch.arange(count), first] = marks[torch.arange(count), second] = 1
    return TensorDataset(torch.stack([values, marks], 2), (values * marks).sum(1))


def main(has_bug, watch, check):
    torch.manual_seed(0)
    model = Adder()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    loader = DataLoader(sums(2000, 1), batch_size=40, shuffle=True)
    check(model, F.mse_loss, loader, optimizer=optimizer)
    with watch(model, optimizer=optimizer):
        for _ in range(12):
            for sequences, targets in loader:
                optimizer.zero_grad()
                F.mse_loss(model(sequences), targets).backward()
                if has_bug:
                    optimizer.step()
                    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                else:
                    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                    optimizer.step()
    sequences, targets = sums(500, 2).tensors
    with torch.no_grad():
        return F.mse_loss(model(sequences), targets).item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for has_bug in (False, True):
        score = main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None)
        print("bug" if has_bug else "healthy", round(score, 3))
