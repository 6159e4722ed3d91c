"""A plugin: clouds of different sizes, joined into batches with offsets, and a model, a loss and a metric for them."""

from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn

import sightline

KINDS = {"round": (1.0, 1.0, 1.0), "flat": (1.0, 1.0, 0.5), "long": (0.6, 0.6, 1.0)}


@sightline.register.data("pebbles")
class Pebbles(sightline.Dataset):
    """Lumps of 20 to 60 points in three shapes, a pure function of split and index."""

    def __init__(self, *, split: str, train_size: sightline.Count = 120, test_size: sightline.Count = 48) -> None:
        sizes = {"train": train_size, "test": test_size}
        self.split_index = list(sizes).index(split)
        self.strata = np.arange(sizes[split]) % len(KINDS)
        facts = {"num_classes": len(KINDS), "class_names": tuple(KINDS), "in_channels": 3}
        points = sightline.Field("points 3", "float32", collate="concatenate")  # batches have `offsets` beside it
        self.info = sightline.DataInfo(
            facts, {"points": points, "label": sightline.Field("", "int64", low=0, high=2)}, sizes
        )

    def __len__(self) -> int:
        return len(self.strata)

    def __getitem__(self, key: sightline.SampleKey) -> sightline.Sample:
        random, label = np.random.default_rng((self.split_index, key.index)), self.strata[key.index]
        points = random.normal(size=(random.integers(20, 61), 3)) * list(KINDS.values())[label]
        return {"points": torch.from_numpy(points).float(), "label": torch.tensor(label)}

    def collate(self, samples: list[sightline.Sample]) -> sightline.Batch:
        offsets = torch.tensor([0] + [len(sample["points"]) for sample in samples]).cumsum(0)
        points = torch.cat([sample["points"] for sample in samples])
        return {"points": points, "offsets": offsets, "label": torch.stack([sample["label"] for sample in samples])}


class Output(TypedDict):
    logits: Tensor


@sightline.register.model("offset_net")
class OffsetNet(sightline.Model):
    """One network per point, the maximum over each cloud, one linear layer."""

    def __init__(
        self, *, num_classes: int, in_channels: int, width: sightline.Count = 32, dropout: sightline.Probability = 0.2
    ) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(in_channels, width), nn.ReLU(), nn.Linear(width, width))
        self.head = nn.Sequential(nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, num_classes))

    def forward(self, *, points: Tensor, offsets: Tensor) -> Output:
        return {"logits": self.head(torch.segment_reduce(self.encode(points), "max", offsets=offsets))}


@sightline.register.loss("focal")
class Focal(sightline.Loss):
    """Sum over clouds of -(1 - p)^gamma log p. Source: Lin et al. 2017, equation 4."""

    def __init__(self, *, gamma: sightline.NonNegativeFloat = 2.0) -> None:
        super().__init__()
        self.gamma = gamma

    def count(self, *, label: Tensor) -> Tensor:
        return torch.tensor(label.numel(), device=label.device)

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        log_p = logits.log_softmax(dim=1).gather(1, label[:, None])
        return -((1 - log_p.exp()) ** self.gamma * log_p).sum()


@sightline.register.metric("top_k")
class TopK(sightline.MeanMetric):
    """The share of clouds whose class is among the `k` most probable."""

    higher_is_better = True

    def __init__(self, *, k: sightline.Count = 1) -> None:
        self.k = k
        self.figures = (f"top_{k}_accuracy",)

    def values(self, *, probabilities: Tensor, label: Tensor) -> Tensor:
        if bool(probabilities.isnan().any()):  # the most probable class of NaN is a number like any other
            raise ValueError("probabilities are NaN; find where with `sightline check`")
        return (probabilities.topk(self.k).indices == label[:, None]).any(dim=1)
