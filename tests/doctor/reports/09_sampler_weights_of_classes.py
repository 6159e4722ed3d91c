"""https://github.com/deep-voice/soundbay/pull/49

To balance calls of whales and noise, WeightedRandomSampler was given one weight a class instead of one a sample.
It reads them as the weights of samples 0 and 1, and draws these two for the whole of every epoch.
Held-out balanced accuracy, seed 0: 0.991 healthy, 0.594 with the bug.
"""

from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler


def segments(count, seed):
    """Spectrograms of 16 bands by 24 frames; about one in six holds a rising call."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, generator=generator) < 0.17).long()
    labels[:2] = torch.tensor([0, 1])
    spectrograms = torch.randn(count, 1, 16, 24, generator=generator)
    starts = torch.randint(12, (count, 2), generator=generator)
    for index in labels.nonzero()[:, 0].tolist():
        frame, band = starts[index].tolist()
        for step in range(10):
            spectrograms[index, 0, min(band // 2 + step, 15), frame + step] += 2.5
    return TensorDataset(spectrograms, labels)


def main(has_bug, watch, check):
    torch.manual_seed(0)
    train_set, val_set = segments(1200, 1), segments(600, 2)
    labels = train_set.tensors[1]
    class_weights = 1 / torch.bincount(labels).float()
    weights = class_weights if has_bug else class_weights[labels]
    sampler = WeightedRandomSampler(weights, num_samples=len(train_set))
    train_loader = DataLoader(train_set, batch_size=40, sampler=sampler)
    val_loader = DataLoader(val_set, batch_size=100)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 5, padding=2), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(24, 2),
    )  # fmt: skip
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    check(model, criterion, train_loader, optimizer=optimizer, evaluation=val_loader)
    with watch(model, optimizer=optimizer, loss=criterion, loader=train_loader, evaluation=val_loader):
        for _ in range(10):
            model.train()
            for spectrograms, targets in train_loader:
                loss = criterion(model(spectrograms), targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                calls = torch.cat([model(spectrograms).argmax(1) for spectrograms, _ in val_loader])
    truth = val_set.tensors[1]
    return sum((calls[truth == kind] == kind).float().mean().item() for kind in (0, 1)) / 2


if __name__ == "__main__":
    torch.set_num_threads(1)
    for has_bug in (False, True):
        score = main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None)
        print("bug" if has_bug else "healthy", round(score, 3))
