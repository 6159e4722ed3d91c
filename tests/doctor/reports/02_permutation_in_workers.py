"""https://github.com/aimagelab/mammoth/issues/38

The fixed permutation of pixels was drawn when it was first used, that is in each worker of each loader.
So each worker of each epoch permutes differently, and accuracy stays at about 10 per cent without an error.
Held-out accuracy, seed 0: 1.000 healthy, 0.092 with the bug.
"""

from contextlib import nullcontext

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Permutation:
    """Shuffle the pixels of every image in the same way."""

    def __init__(self, size=None):
        self.order = None if size is None else np.random.default_rng(5).permutation(size)

    def __call__(self, image):
        if self.order is None:
            self.order = np.random.permutation(image.size)
        return image.ravel()[self.order].reshape(image.shape)


class PermutedDigits(Dataset):
    def __init__(self, count, seed, transform):
        generator = np.random.default_rng(seed)
        prototypes = np.random.default_rng(0).random((10, 12, 12)) > 0.5
        self.labels = generator.integers(10, size=count)
        self.images = (prototypes[self.labels] + generator.normal(0, 1, (count, 12, 12))).astype(np.float32)
        self.transform = transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return torch.from_numpy(self.transform(self.images[index])), int(self.labels[index])


def main(has_bug, watch, check):
    torch.manual_seed(0)
    transform = Permutation() if has_bug else Permutation(144)
    train_loader = DataLoader(PermutedDigits(2000, 1, transform), batch_size=50, shuffle=True, num_workers=2)
    test_loader = DataLoader(PermutedDigits(500, 2, transform), batch_size=100, num_workers=2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 100), nn.ReLU(), nn.Linear(100, 10))
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    check(model, loss_fn, train_loader, optimizer=optimizer, evaluation=test_loader)
    with watch(model, optimizer=optimizer, loss=loss_fn, loader=train_loader, evaluation=test_loader):
        for _ in range(5):
            model.train()
            for images, labels in train_loader:
                optimizer.zero_grad()
                loss_fn(model(images), labels).backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                correct = sum((model(images).argmax(1) == labels).sum().item() for images, labels in test_loader)
    return correct / len(test_loader.dataset)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for has_bug in (False, True):
        score = main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None)
        print("bug" if has_bug else "healthy", round(score, 3))
