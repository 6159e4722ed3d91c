"""https://github.com/autrainer/autrainer/issues/125

The sum of the losses of the development set is divided by the number of batches plus one.
Loss that is reported, seed 0: 0.136 healthy, 0.109 with the bug.
"""

from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def sounds(count, seed):
    """Spectra of four tones with overtones, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    bins, base = torch.arange(64.0), (5 + 2 * labels[:, None]) + torch.rand(count, 1, generator=generator)
    tones = sum((-((bins - k * base) ** 2) / 2).exp() / k for k in (1, 2, 3))
    return TensorDataset(tones + 0.4 * torch.randn(count, 64, generator=generator), labels)


class ModularTrainer:
    def __init__(self, model, optimizer, criterion, has_bug):
        self.model, self.optimizer, self.criterion, self.has_bug = model, optimizer, criterion, has_bug

    def train_epoch(self, loader):
        self.model.train()
        for x, y in loader:
            self.optimizer.zero_grad()
            self.criterion(self.model(x), y).backward()
            self.optimizer.step()

    def evaluate(self, model, loader):
        model.eval()
        losses, hits = 0.0, 0
        with torch.no_grad():
            for x, y in loader:
                outputs = model(x)
                losses += self.criterion(outputs, y).item()
                hits += (outputs.argmax(1) == y).sum().item()
        losses /= len(loader) + 1 if self.has_bug else len(loader)
        return {"dev_loss": losses, "accuracy": hits / len(loader.dataset)}


def main(has_bug, watch, check):
    torch.manual_seed(0)
    train_loader = DataLoader(sounds(800, 1), batch_size=32, shuffle=True)
    dev_loader = DataLoader(sounds(200, 2), batch_size=50)
    model = nn.Sequential(
        nn.Linear(64, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 4),
    )
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    trainer = ModularTrainer(model, optimizer, criterion, has_bug)
    check(model, criterion, train_loader, optimizer=optimizer, evaluation=dev_loader, score=trainer.evaluate)
    with watch(model, optimizer=optimizer, loss=criterion, loader=train_loader):
        for _ in range(10):
            trainer.train_epoch(train_loader)
            results = trainer.evaluate(model, dev_loader)
    return results


if __name__ == "__main__":
    for has_bug in (False, True):
        print("bug" if has_bug else "healthy", main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None))
