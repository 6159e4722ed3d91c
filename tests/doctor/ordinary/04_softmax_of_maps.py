"""A network of class maps ends in a softmax over its classes, and is trained by cross entropy."""

from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def scenes(count, seed):
    """Images 16 x 16 of three textures, of which one fills most of the image."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(count, 16, 16, dtype=torch.int64)
    for index in range(count):
        for kind in (1, 2):
            row, column = torch.randint(11, (2,), generator=generator).tolist()
            labels[index, row : row + 5, column : column + 4] = kind
    noise = torch.randn(count, 2, 16, 16, generator=generator)
    images = torch.stack([(labels == 1).float() - 0.5 * (labels == 2).float(), (labels == 2).float()], 1) + 0.9 * noise
    return TensorDataset(images, labels)


class Net(nn.Module):
    def __init__(self, has_bug):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=2, dilation=2), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 3, 1),
        )  # fmt: skip
        self.last = nn.Softmax(dim=1) if has_bug else nn.Identity()

    def forward(self, images):
        return self.last(self.body(images))


def main(has_bug, watch, check):
    torch.manual_seed(0)
    model, criterion = Net(has_bug), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = DataLoader(scenes(300, 1), batch_size=15, shuffle=True)
    check(model, criterion, loader, optimizer=optimizer)
    with watch(model, optimizer=optimizer):
        for _ in range(4):
            model.train()
            for images, labels in loader:
                optimizer.zero_grad()
                criterion(model(images), labels).backward()
                optimizer.step()
    model.eval()
    images, labels = scenes(100, 2).tensors
    with torch.no_grad():
        predicted = model(images).argmax(1)
    overlaps = [((predicted == k) & (labels == k)).sum() / ((predicted == k) | (labels == k)).sum() for k in (1, 2)]
    return (sum(overlaps) / 2).item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for has_bug in (False, True):
        score = main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None)
        print("bug" if has_bug else "healthy", round(score, 3))
