"""A network of masks is trained by the dice coefficient itself, in place of one minus it."""

from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def discs(count, seed):
    """Images 24 x 24 with a brighter disc, and its mask."""
    generator = torch.Generator().manual_seed(seed)
    centre = 6 + 12 * torch.rand(count, 2, 1, 1, generator=generator)
    radius = 3 + 4 * torch.rand(count, 1, 1, generator=generator)
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    masks = ((rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2 < radius**2).float()
    return TensorDataset((masks + 0.6 * torch.randn(masks.shape, generator=generator))[:, None], masks[:, None])


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU())
        self.middle = nn.Sequential(
            nn.MaxPool2d(2), nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)
        )
        self.up = nn.Sequential(nn.Conv2d(36, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 1, 1))

    def forward(self, images):
        fine = self.down(images)
        return self.up(torch.cat([fine, self.middle(fine)], 1))


def dice(logits, masks, smooth=1.0):
    probabilities = logits.sigmoid()
    shared = (probabilities * masks).sum((1, 2, 3))
    return ((2 * shared + smooth) / (probabilities.sum((1, 2, 3)) + masks.sum((1, 2, 3)) + smooth)).mean()


def main(has_bug, watch, check):
    torch.manual_seed(0)
    model = UNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    loader = DataLoader(discs(400, 1), batch_size=20, shuffle=True)

    def criterion(logits, masks):
        return dice(logits, masks) if has_bug else 1 - dice(logits, masks)

    check(model, criterion, loader, optimizer=optimizer)
    with watch(model, optimizer=optimizer):
        for _ in range(6):
            for images, masks in loader:
                optimizer.zero_grad()
                criterion(model(images), masks).backward()
                optimizer.step()
    images, masks = discs(100, 2).tensors
    with torch.no_grad():
        predicted = model(images) > 0
    union = (predicted | masks.bool()).sum((1, 2, 3))
    return ((predicted & masks.bool()).sum((1, 2, 3)) / union).mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for has_bug in (False, True):
        score = main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None)
        print("bug" if has_bug else "healthy", round(score, 3))
