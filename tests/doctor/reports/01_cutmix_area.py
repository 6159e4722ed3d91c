"""https://github.com/clovaai/CutMix-PyTorch/issues/1

The pasted rectangle is cut off at the border of the image, but the labels are mixed by the drawn share.
So the second label weighs more than its visible pixels, in every batch whose rectangle touches a border.
Held-out cross entropy, seed 0: 0.059 healthy, 0.126 with the bug.
"""

from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def textures(count, seed):
    """A class is the direction of stripes; contrast and noise differ."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(6, (count,), generator=generator)
    angle = labels * torch.pi / 6
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    phase = 6.3 * torch.rand(count, 1, 1, generator=generator)
    wave = torch.sin(angle.cos()[:, None, None] * rows + angle.sin()[:, None, None] * columns + phase)
    noise = torch.randn(count, 16, 16, generator=generator)
    return TensorDataset((0.6 * wave + 0.6 * noise)[:, None], labels)


def rand_bbox(size, share):
    cut = (1 - share) ** 0.5
    height, width = int(size[2] * cut), int(size[3] * cut)
    row, column = int(torch.randint(size[2], ())), int(torch.randint(size[3], ()))
    top, bottom = max(row - height // 2, 0), min(row + height // 2, size[2])
    left, right = max(column - width // 2, 0), min(column + width // 2, size[3])
    return top, bottom, left, right


def main(has_bug, watch, check):
    torch.manual_seed(0)
    train_loader = DataLoader(textures(1500, 1), batch_size=50, shuffle=True)
    test_loader = DataLoader(textures(1000, 2), batch_size=200)
    model = nn.Sequential(
        nn.Conv2d(1, 24, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 6),
    )  # fmt: skip
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    check(model, criterion, train_loader, optimizer=optimizer)
    with watch(model, optimizer=optimizer, loss=criterion, loader=train_loader):
        for _ in range(12):
            model.train()
            for images, labels in train_loader:
                share = float(torch.rand(()))
                order = torch.randperm(len(images))
                other_labels = labels[order]
                top, bottom, left, right = rand_bbox(images.shape, share)
                images[:, :, top:bottom, left:right] = images[order, :, top:bottom, left:right]
                if not has_bug:
                    share = 1 - (bottom - top) * (right - left) / images[0, 0].numel()
                logits = model(images)
                loss = criterion(logits, labels) * share + criterion(logits, other_labels) * (1 - share)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                losses = [nn.functional.cross_entropy(model(x), y).item() for x, y in test_loader]
    return sum(losses) / len(losses)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for has_bug in (False, True):
        score = main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None)
        print("bug" if has_bug else "healthy", round(score, 3))
