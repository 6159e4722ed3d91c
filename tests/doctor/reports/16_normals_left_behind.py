"""https://github.com/JonasSchult/dcm-net/issues/14

A random rotation about the vertical turned the points of each training cloud, but not the normals among its features.
So normals no longer match the surface they belong to, and the network cannot use the two together.
Held-out accuracy, seed 0: 0.998 healthy, 0.122 with the bug.
"""

from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

POINTS = 96


def rotation(angle):
    return torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0], [0, 0, 1]])


class RandomRotation:
    def __init__(self, points_only):
        self.points_only = points_only

    def __call__(self, cloud):
        matrix = rotation(6.3 * torch.rand(()))
        normals = cloud[:, 3:] if self.points_only else cloud[:, 3:] @ matrix.T
        return torch.cat([cloud[:, :3] @ matrix.T, normals], 1)


class Turbines(Dataset):
    """Patches on a drum, 3 coordinates and 3 normals; the class is how the blades lean to the radius."""

    def __init__(self, count, seed, transform=None):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(5, (count,), generator=generator)
        centre = 6.3 * torch.rand(count, 1, generator=generator)
        angle = centre + 2.0 * torch.rand(count, POINTS, generator=generator)
        lean = angle + 0.5 * (self.labels[:, None] - 2) + 0.3 * torch.randn(count, POINTS, generator=generator)
        height = torch.rand(count, POINTS, generator=generator)
        noise = 0.05 * torch.randn(count, POINTS, 3, generator=generator)
        points = torch.stack([angle.cos(), angle.sin(), height], 2) + noise
        normals = torch.stack([lean.cos(), lean.sin(), torch.zeros_like(lean)], 2)
        self.clouds, self.transform = torch.cat([points, normals], 2), transform

    def __len__(self):
        return len(self.clouds)

    def __getitem__(self, index):
        cloud = self.clouds[index]
        return cloud if self.transform is None else self.transform(cloud), self.labels[index]


class PointNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.each = nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 64), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 5))

    def forward(self, clouds):
        return self.head(self.each(clouds).amax(1))


def main(has_bug, watch, check):
    torch.manual_seed(0)
    loader = DataLoader(Turbines(1200, 1, RandomRotation(points_only=has_bug)), batch_size=32, shuffle=True)
    test_loader = DataLoader(Turbines(400, 2), batch_size=100)
    model = PointNet()
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    check(model, loss_fn, loader, optimizer=optimizer)
    with watch(model, optimizer=optimizer, loss=loss_fn, loader=loader):
        for _ in range(8):
            model.train()
            for clouds, labels in loader:
                loss = loss_fn(model(clouds), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                correct = sum((model(clouds).argmax(1) == labels).sum().item() for clouds, labels in test_loader)
    return correct / len(test_loader.dataset)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for has_bug in (False, True):
        score = main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None)
        print("bug" if has_bug else "healthy", round(score, 3))
