"""A PointNet by others: convolutions over (B, C, N), other names, one epsilon that differs (docs/manual/compare.md)."""

from itertools import pairwise

from torch import nn

EPSILON = 1e-3
SWAPPED = False
RECTIFIED = False


class Net(nn.Module):
    """Five shared layers, the maximum over the points, and two more."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 64, 64, 64, 128, 64)
        self.convs = nn.ModuleList(nn.Conv1d(a, b, 1, bias=False) for a, b in pairwise(widths))
        self.bns = nn.ModuleList(nn.BatchNorm1d(width) for width in widths[1:])
        self.bns[2].eps = EPSILON
        self.fc1 = nn.Linear(64, 512, bias=False)
        self.bn = nn.BatchNorm1d(512)
        self.fc2 = nn.Linear(512, 12)
        self.relu = nn.ReLU()

    def forward(self, points):
        x = points.transpose(1, 2)
        for index, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            x = bn(self.relu(conv(x))) if SWAPPED and index == 1 else self.relu(bn(conv(x)))
        x = self.fc2(self.relu(self.bn(self.fc1(x.max(dim=2).values))))
        return self.relu(x) if RECTIFIED else x


def build():
    """What `sightline compare --against` asks a file for."""
    return Net()
