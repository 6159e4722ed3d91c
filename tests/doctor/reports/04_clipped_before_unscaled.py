"""https://github.com/milesial/Pytorch-UNet/issues/468

With mixed precision, clip_grad_norm_ was called on gradients that still carry the factor of the GradScaler.
Each step is then clipped to a norm of 1 / 65536 of what was meant, and training hardly moves.
Held-out Dice score, seed 0: 0.881 healthy, 0.285 with the bug.
"""

from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.down = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())
        self.up = nn.ConvTranspose2d(24, 12, 2, stride=2)
        self.leave = nn.Sequential(nn.Conv2d(24, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 1, 1))

    def forward(self, images):
        fine = self.enter(images)
        return self.leave(torch.cat([fine, self.up(self.down(fine))], dim=1))


def cars(count, seed):
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    place = 6 + 12 * torch.rand(count, 2, 1, 1, generator=generator)
    masks = ((rows - place[:, 0]).abs() < 4) & ((columns - place[:, 1]).abs() < 6)
    paint = torch.randn(count, 3, 1, 1, generator=generator)
    images = masks[:, None] * paint + 0.7 * torch.randn(count, 3, 24, 24, generator=generator)
    return TensorDataset(images, masks[:, None].float())


def main(has_bug, watch, check):
    torch.manual_seed(0)
    train_loader = DataLoader(cars(400, 1), batch_size=20, shuffle=True)
    val_loader = DataLoader(cars(100, 2), batch_size=50)
    model = UNet()
    criterion = nn.BCEWithLogitsLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    grad_scaler = torch.amp.GradScaler("cpu")
    check(model, criterion, train_loader, optimizer=optimizer)
    with watch(model, optimizer=optimizer, loss=criterion, loader=train_loader):
        for _ in range(5):
            model.train()
            for images, true_masks in train_loader:
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = criterion(model(images), true_masks)
                optimizer.zero_grad(set_to_none=True)
                grad_scaler.scale(loss).backward()
                if not has_bug:
                    grad_scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                grad_scaler.step(optimizer)
                grad_scaler.update()
            model.eval()
            overlap = total = 0.0
            with torch.no_grad():
                for images, true_masks in val_loader:
                    predicted = (model(images) > 0).float()
                    overlap += 2 * (predicted * true_masks).sum().item()
                    total += (predicted.sum() + true_masks.sum()).item()
    return overlap / max(total, 1.0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for has_bug in (False, True):
        score = main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None)
        print("bug" if has_bug else "healthy", round(score, 3))
