"""A small convolutional network with batch norm and dropout is evaluated without `model.eval()`.

The test set is a folder sorted by class, so the statistics of a test batch are those of one class.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def patterns(count, seed, is_sorted=False):
    """Images 16 x 16 of four kinds of stripes, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    labels = labels.sort().values if is_sorted else labels
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    waves = torch.stack([rows, columns, rows + columns, rows - columns])
    phases = 6.3 * torch.rand(count, 1, 1, generator=generator)
    images = torch.sin(1.2 * waves[labels] + phases) + 0.8 * torch.randn(count, 16, 16, generator=generator)
    return TensorDataset(images[:, None], labels)


def build():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(128, 4),
    )  # fmt: skip


def evaluate(model, loader, has_bug):
    if not has_bug:
        model.eval()
    correct = total = 0
    with torch.no_grad():
        for images, labels in loader:
            correct += (model(images).argmax(1) == labels).sum().item()
            total += len(labels)
    return correct / total


def main(has_bug, watch, check):
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    loader = DataLoader(patterns(1200, 1), batch_size=40, shuffle=True)
    test_loader = DataLoader(patterns(400, 2, is_sorted=True), batch_size=20)
    check(model, F.cross_entropy, loader, optimizer=optimizer, evaluation=test_loader)
    accuracy = 0.0
    with watch(model, optimizer=optimizer):
        for _ in range(6):
            model.train()
            for images, labels in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()
            accuracy = evaluate(model, test_loader, has_bug)
    return accuracy


if __name__ == "__main__":
    torch.set_num_threads(1)
    for has_bug in (False, True):
        score = main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None)
        print("bug" if has_bug else "healthy", round(score, 3))
