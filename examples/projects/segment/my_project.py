"""Own parts of my_project: a data set of scenes, a network and a loss. Each works as it is; put yours in its place."""

from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn

import sightline

CLASSES = ("floor", "thing")


@sightline.register.data("my_project_scenes")
class MyScenes(sightline.Dataset):
    """Scenes of 200 to 300 points with a class each; `__getitem__` is where yours are read from files."""

    def __init__(self, *, split: str, train_size: sightline.Count = 48, test_size: sightline.Count = 12) -> None:
        sizes = {"train": train_size, "test": test_size}
        self._split = list(sizes).index(split)
        self._size = sizes[split]
        facts = {"num_classes": 2, "class_names": CLASSES, "in_channels": 3, "up_axis": "z"}
        fields = {
            # concatenated: batches have `offsets` beside them
            "points": sightline.Field("points 3", "float32", "m", collate="concatenate"),
            "label": sightline.Field("points", "int64", low=0, high=1, collate="concatenate"),
        }
        self.info = sightline.DataInfo(facts, fields, sizes)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: sightline.SampleKey) -> sightline.Sample:
        """Return a sample; the same key must give the same bits, so random numbers depend on the index alone."""
        random = np.random.default_rng((self._split, key.index))
        label = (random.random(random.integers(200, 301)) < 0.4).astype(np.int64)
        height = np.where(label == 1, random.uniform(0.2, 1.0, len(label)), random.normal(0, 0.02, len(label)))
        points = np.column_stack((random.uniform(-2, 2, (len(label), 2)), height))
        return {"points": torch.from_numpy(points).float(), "label": torch.from_numpy(label)}


class Output(TypedDict):
    logits: Tensor


@sightline.register.model("my_project_net")
class MyNet(sightline.Model):
    """Two layers on every point, beside them the maximum over its scene, and the classes of every point."""

    def __init__(self, *, num_classes: int, in_channels: int, width: sightline.Count = 32) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(in_channels, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, num_classes))

    def forward(self, *, points: Tensor, offsets: Tensor) -> Output:
        """Predict logits (P, num_classes) from the points (P, 3) of all scenes, which begin at offsets (B + 1,)."""
        embedded = self.embed(points)
        scenes = torch.segment_reduce(embedded, "max", offsets=offsets)
        per_point = scenes.repeat_interleave(offsets.diff(), dim=0, output_size=len(points))
        return {"logits": self.head(torch.cat([embedded, per_point], dim=1))}


@sightline.register.loss("my_project_loss")
class MyLoss(sightline.Loss):
    """Focal loss of every point. Source: Lin et al. 2017, equation 4."""

    def __init__(self, *, gamma: sightline.NonNegativeFloat = 1.0) -> None:
        super().__init__()
        self.gamma = gamma

    def count(self, *, label: Tensor) -> Tensor:
        """Count the points: the sum of `forward` is divided by this, over all processes at once."""
        return torch.tensor(label.numel(), device=label.device)

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        """Return the sum over the points, never a mean."""
        log_p = logits.log_softmax(dim=1).gather(1, label[:, None])
        return -((1 - log_p.exp()) ** self.gamma * log_p).sum()
