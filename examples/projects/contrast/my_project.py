"""Own parts of my_project: a data set of clouds, an encoder and a loss of pairs. Each works as it is."""

import numpy as np
import torch
from torch import Tensor, nn

import sightline


@sightline.register.data("my_project_clouds")
class MyClouds(sightline.Dataset):
    """Clouds of 64 points without labels, each of its own shape; `__getitem__` is where yours are read from files."""

    def __init__(self, *, split: str, train_size: sightline.Count = 96, test_size: sightline.Count = 24) -> None:
        sizes = {"train": train_size, "test": test_size}
        self._split = list(sizes).index(split)
        self._size = sizes[split]
        self.info = sightline.DataInfo(
            {"in_channels": 3, "up_axis": "z"}, {"points": sightline.Field("64 3", "float32")}, sizes
        )

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: sightline.SampleKey) -> sightline.Sample:
        """Return a sample; the same key must give the same bits, so random numbers depend on the index alone."""
        random = np.random.default_rng((self._split, key.index))
        points = random.normal(size=(64, 3)) * random.uniform(0.1, 1.0, 3)
        return {"points": torch.from_numpy(points).float()}


@sightline.register.point_encoder("my_project_net")
class MyNet(sightline.Encoder):
    """Two layers on every point, and the maximum over the points: the feature of a cloud."""

    def __init__(self, *, in_channels: int, width: sightline.Count = 32) -> None:
        super().__init__()
        self.feature_width = width
        self.embed = nn.Sequential(nn.Linear(in_channels, width), nn.ReLU(), nn.Linear(width, width))

    def encode(self, *, points: Tensor, features: Tensor | None = None) -> Tensor:
        """Encode points (B, N, 3) to (B, feature_width)."""
        return self.embed(points).amax(dim=1)


@sightline.register.loss("my_project_loss")
class MyLoss(sightline.PairLoss):
    """Cross entropy of finding one view of a cloud among the other views of the whole step, in both directions."""

    def __init__(self, *, temperature: sightline.PositiveFloat = 0.2) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, *, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss (M,) of each pair from both views (M, D)."""
        similarity = nn.functional.normalize(first, dim=1) @ nn.functional.normalize(second, dim=1).T
        scores = similarity / self.temperature
        return -(scores.log_softmax(dim=1) + scores.log_softmax(dim=0)).diagonal() / 2
