"""A data set shuffles its images when it is made, and leaves the labels as they were."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Digits(Dataset):
    """Images 12 x 12 of five shapes at other places, of a folder that is sorted by class."""

    def __init__(self, count, seed, shuffles=False, has_bug=False):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(count) * 5 // count
        shapes = (torch.rand(5, 6, 6, generator=torch.Generator().manual_seed(7)) > 0.5).float()
        self.images = 0.5 * torch.randn(count, 1, 12, 12, generator=generator)
        for index, label in enumerate(self.labels):
            row, column = torch.randint(7, (2,), generator=generator).tolist()
            self.images[index, 0, row : row + 6, column : column + 6] += shapes[label]
        if shuffles:
            order = torch.randperm(count, generator=generator)
            self.images = self.images[order]
            if not has_bug:
                self.labels = self.labels[order]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


def build():
    return nn.Sequential(
        nn.Conv2d(1, 24, 5), nn.ReLU(), nn.Conv2d(24, 32, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(),
        nn.Linear(32, 5),
    )  # fmt: skip


def main(has_bug, watch, check):
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    loader = DataLoader(Digits(1500, 1, shuffles=True, has_bug=has_bug), batch_size=30, shuffle=True)
    check(model, F.cross_entropy, loader, optimizer=optimizer)
    with watch(model, optimizer=optimizer):
        for _ in range(10):
            for images, labels in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()
    model.eval()
    test = Digits(400, 2)
    with torch.no_grad():
        return (model(test.images).argmax(1) == test.labels).float().mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for has_bug in (False, True):
        score = main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None)
        print("bug" if has_bug else "healthy", round(score, 3))
