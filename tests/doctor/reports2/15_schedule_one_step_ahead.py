"""https://github.com/Abe404/segmentation_of_roots_in_soil_with_unet/pull/4

The scheduler steps at the start of each epoch, before the first step of the optimizer: the first rate is skipped, and
each later one is used an epoch too early.
Dice, seed 0: 0.941 healthy, 0.914 with the bug.
"""

import warnings
from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def roots(count, seed):
    """Thin dark lines in soil, of which the mask is wanted."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(24.0)[None, :, None]
    start, slope, bend = torch.randn(3, count, 1, 1, generator=generator)
    line = 12 + 4 * start + 0.3 * slope * (rows - 12) + 2 * torch.sin(rows / 4 + 3 * bend)
    masks = ((torch.arange(24.0) - line).abs() < 1.2).float()
    soil = nn.functional.avg_pool2d(torch.randn(count, 1, 26, 26, generator=generator), 3, stride=1)
    return TensorDataset(2 * soil - 1.5 * masks[:, None], masks)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU())
        self.low = nn.Sequential(
            nn.MaxPool2d(2), nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)
        )
        self.up = nn.Sequential(nn.Conv2d(36, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 1, 1))

    def forward(self, x):
        fine = self.down(x)
        return self.up(torch.cat([fine, self.low(fine)], 1))[:, 0]


def dice(model, loader):
    model.eval()
    overlap = total = 0.0
    with torch.no_grad():
        for images, masks in loader:
            found = (model(images) > 0).float()
            overlap, total = overlap + 2 * (found * masks).sum().item(), total + (found.sum() + masks.sum()).item()
    return overlap / total


def main(has_bug, watch, check):
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    loader, val_loader = DataLoader(roots(300, 1), 10, shuffle=True), DataLoader(roots(100, 2), 10)
    model = UNet()
    criterion = nn.BCEWithLogitsLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.6)
    check(model, criterion, loader, optimizer=optimizer, evaluation=val_loader, score=dice)
    with watch(model, optimizer=optimizer, loss=criterion, loader=loader):
        for _ in range(6):
            if has_bug:
                scheduler.step()
            model.train()
            for images, masks in loader:
                optimizer.zero_grad()
                criterion(model(images), masks).backward()
                optimizer.step()
            if not has_bug:
                scheduler.step()
            score = dice(model, val_loader)
    return score


if __name__ == "__main__":
    for has_bug in (False, True):
        print("bug" if has_bug else "healthy", main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None))
