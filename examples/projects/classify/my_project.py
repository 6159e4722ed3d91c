"""Own parts of my_project: a data set of clouds, a network and a loss. Each works as it is; put yours in its place."""

from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn

import sightline

CLASSES = ("ball", "disc", "rod")
STRETCH = ((1.0, 1.0, 1.0), (1.0, 1.0, 0.2), (0.2, 0.2, 1.0))


@sightline.register.data("my_project_clouds")
class MyClouds(sightline.Dataset):
    """Clouds of 64 points in three shapes; `__getitem__` is where yours are read from files."""

    def __init__(self, *, split: str, train_size: sightline.Count = 96, test_size: sightline.Count = 24) -> None:
        sizes = {"train": train_size, "test": test_size}
        self._split = list(sizes).index(split)
        self.strata = np.arange(sizes[split]) % len(CLASSES)  # one class a sample: every class is held out
        facts = {"num_classes": len(CLASSES), "class_names": CLASSES, "in_channels": 3}
        fields = {
            "points": sightline.Field("64 3", "float32"),
            "label": sightline.Field("", "int64", low=0, high=len(CLASSES) - 1),
        }
        self.info = sightline.DataInfo(facts, fields, sizes)

    def __len__(self) -> int:
        return len(self.strata)

    def __getitem__(self, key: sightline.SampleKey) -> sightline.Sample:
        """Return a sample; the same key must give the same bits, so random numbers depend on the index alone."""
        label = int(self.strata[key.index])
        points = np.random.default_rng((self._split, key.index)).normal(size=(64, 3)) * STRETCH[label]
        return {"points": torch.from_numpy(points).float(), "label": torch.tensor(label)}


class Output(TypedDict):
    logits: Tensor


@sightline.register.model("my_project_net")
class MyNet(sightline.Model):
    """Two layers on every point, the maximum over the points, and one layer for the classes."""

    def __init__(self, *, num_classes: int, in_channels: int, width: sightline.Count = 32) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(in_channels, width), nn.ReLU(), nn.Linear(width, 2 * width))
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, *, points: Tensor) -> Output:
        """Predict logits (B, num_classes) from points (B, N, 3)."""
        return {"logits": self.head(self.embed(points).amax(dim=1))}


@sightline.register.loss("my_project_loss")
class MyLoss(sightline.Loss):
    """Cross entropy with a share of the target on all classes."""

    def __init__(self, *, smoothing: sightline.Probability = 0.1) -> None:
        super().__init__()
        self.smoothing = smoothing

    def count(self, *, label: Tensor) -> Tensor:
        """Count the samples: the sum of `forward` is divided by this, over all processes at once."""
        return torch.tensor(label.numel(), device=label.device)

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        """Return the sum over the samples, never a mean."""
        log_p = logits.log_softmax(dim=1)
        on_label = log_p.gather(1, label[:, None]).squeeze(1)
        return -((1 - self.smoothing) * on_label + self.smoothing * log_p.mean(dim=1)).sum()
