"""Gradients are clipped to a norm of 1e-6 where 1.0 was meant, under plain descent: the weights stand still."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Forecast(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.lstm = nn.LSTM(1, width, batch_first=True)
        self.head = nn.Linear(width, 1)

    def forward(self, series):
        return self.head(self.lstm(series)[0][:, -1])


def waves(count, seed, length=24):
    """Series of a sine of any phase and frequency, and the value that follows."""
    generator = torch.Generator().manual_seed(seed)
    phase = 6.3 * torch.rand(count, 1, generator=generator)
    frequency = 0.2 + 0.5 * torch.rand(count, 1, generator=generator)
    values = torch.sin(phase + frequency * torch.arange(length + 1.0))
    return TensorDataset(values[:, :-1, None], values[:, -1:])


def main(has_bug, watch, check):
    torch.manual_seed(0)
    model = Forecast()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    loader = DataLoader(waves(1000, 1), batch_size=25, shuffle=True)
    check(model, F.mse_loss, loader, optimizer=optimizer)
    with watch(model, optimizer=optimizer):
        for _ in range(10):
            for series, targets in loader:
                optimizer.zero_grad()
                F.mse_loss(model(series), targets).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1e-6 if has_bug else 1.0)
                optimizer.step()
    series, targets = waves(500, 2).tensors
    with torch.no_grad():
        return F.mse_loss(model(series), targets).item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for has_bug in (False, True):
        score = main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None)
        print("bug" if has_bug else "healthy", round(score, 3))
