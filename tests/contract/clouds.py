"""Toys of points: clouds of one size, ragged ones, and scans that become range images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.areas.scans.range_projection import Project
from sightline.contract.binding import AvailableKeys
from sightline.contract.loss import Loss
from sightline.parts.losses.classification import CrossEntropy, Distillation, LovaszSoftmax
from sightline.parts.metrics.iou import IoU
from sightline.parts.tasks.classification import Classify
from sightline.parts.tasks.distillation import DistillationTask, add_teacher_keys
from sightline.parts.tasks.segment import Segment
from sightline.parts.tasks.supervised import Supervised
from sightline.store.loading.transform_pipeline import NamedTransform
from tests.compression.policies import quantise
from tests.contract.toy import NUM_CLASSES, CrossEntropySum, Hits, Logits, Made, Toy, field, supervised

# classify: clouds of one size


def _cloud(draw: np.random.Generator) -> dict[str, Any]:
    label = int(draw.integers(NUM_CLASSES))
    return {"points": torch.from_numpy(draw.normal(size=(16, 3)) + label), "label": label}


class CloudNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.each, self.head = nn.Linear(3, 12), nn.Linear(12, NUM_CLASSES)

    def forward(self, *, points: Tensor) -> Logits:
        return {"logits": self.head(torch.relu(self.each(points)).amax(1))}


def _quantised() -> nn.Module:
    """Both weights are read from codebooks, one of them a channel's own."""
    model = CloudNet()
    choice = {"kind": "codebook", "bits": 2}
    quantise(model, {"each.weight": choice, "head.weight": {**choice, "per_channel": True}})
    return model


# distilled: from a teacher of another width, with another count than the task's own loss


class WideNet(CloudNet):
    def __init__(self) -> None:
        super().__init__()
        self.each, self.head = nn.Linear(3, 30), nn.Linear(30, NUM_CLASSES)


def _distilled(model: nn.Module, keys: Any) -> DistillationTask:
    """The teacher has a dropout, which is off, and weights of its own generator."""
    draws, outputs = torch.Generator().manual_seed(5), AvailableKeys("model", ("logits",))
    with torch.random.fork_rng():
        teacher = WideNet().double()
    for weight in teacher.parameters():
        weight.data.normal_(generator=draws)
    teacher.head = nn.Sequential(nn.Dropout(0.5), teacher.head)
    batch = AvailableKeys("data", keys)
    alone = Supervised(model=teacher, losses={}, batch_keys=batch, output_keys=outputs)
    losses = {"ce": CrossEntropySum((0.3, 1.7, 2.5)), "kl": Distillation(num_classes=NUM_CLASSES, ignore_index=2)}
    parent = Classify(model=model, losses=losses, batch_keys=add_teacher_keys(batch, outputs), output_keys=outputs)
    return DistillationTask(parent, teacher=teacher, teacher_task=alone)


# segment: clouds of different sizes, nothing padded, two terms with different counts


def _ragged(draw: np.random.Generator) -> dict[str, Any]:
    size = int(draw.integers(1, 20))
    label = draw.integers(-1, NUM_CLASSES, size=size)
    return {"points": torch.from_numpy(draw.normal(size=(size, 3)) + label[:, None]), "label": torch.from_numpy(label)}


class RaggedNet(nn.Module):
    """Sees each cloud's mean, so points of one cloud depend on one another and on no other cloud."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, NUM_CLASSES))

    def forward(self, *, points: Tensor, offsets: Tensor) -> Logits:
        cloud = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
        means = torch.zeros(len(offsets) - 1, 3, dtype=points.dtype).index_add(0, cloud, points)
        means = means / offsets.diff()[:, None]
        return {"logits": self.net(torch.cat([points, means[cloud]], dim=1))}


class LogitSize(Loss):
    """A second term that counts all points, the ignored ones too."""

    def count(self, *, label: Tensor) -> Tensor:
        return torch.tensor(label.numel())

    def forward(self, *, logits: Tensor) -> Tensor:
        return logits.square().mean(1).sum()


# scans: ragged points become channels and pixels on the way; pixels are trained on, all points are scored


def _scan(draw: np.random.Generator) -> dict[str, Any]:
    """Up to 40 points, a seventh of the scans without one and a seventh without a label; the label is the height."""
    size = int(draw.integers(-6, 41).clip(min=0))
    points = torch.from_numpy(draw.normal(size=(size, 3)))
    label = torch.bucketize(points[:, 2].contiguous(), torch.tensor([-0.4, 0.4], dtype=torch.float64))
    label[torch.from_numpy(draw.random(size) < draw.choice([0.2, 1.0], p=[6 / 7, 1 / 7]))] = -1
    return {"points": points, "remission": torch.from_numpy(draw.random((size, 1))), "label": label}


class ScanNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(5, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, NUM_CLASSES, 1))

    def forward(self, *, image: Tensor) -> Logits:
        return {"logits": self.net(image).movedim(1, -1)}


def _segment(model: nn.Module, keys: Any) -> Segment:
    return Segment(
        model=model,
        losses={
            "ce": CrossEntropy(num_classes=NUM_CLASSES, ignore_index=-1, class_weights=(0.3, 1.7, 2.5)),
            "lovasz": LovaszSoftmax(num_classes=NUM_CLASSES, ignore_index=-1),
        },
        batch_keys=AvailableKeys("the toy", keys),
        output_keys=AvailableKeys("the toy's model", ("logits",)),
        ignore_index=-1,
    )


_PROJECT = Project(
    fov_deg=(60.0, -60.0),
    azimuth_deg=(180.0, -180.0),
    input_mean=(1.5, 0.0, 0.0, 0.0, 0.5),
    input_std=(1.0, 1.0, 1.0, 1.0, 0.3),
    ignore_index=-1,
    height=4,
    width=8,
)


# learnt: a second loss with parameters of its own


class Centre(Loss):
    """Squared distances from a centre for each class, which moves; it adds a count of its own and ignores class 2."""

    def __init__(self) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(4)
        self.centres = nn.Parameter(torch.randn(NUM_CLASSES, NUM_CLASSES, generator=draws))

    def count(self, *, label: Tensor) -> Tensor:
        return (label != 2).sum()

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        return ((logits - self.centres[label]).square().sum(1) * (label != 2)).sum()


class PackedHits(Hits):
    def values(self, *, logits: Tensor, label: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        is_right, is_asked = super().values(logits=logits, label=label)
        hits, asked = (
            torch.segment_reduce(each.double(), "sum", offsets=offsets) for each in (is_right & is_asked, is_asked)
        )
        return hits / asked, asked


CLOUDS: dict[str, Toy] = {
    "learnt": Toy(
        CloudNet,
        supervised({"ce": CrossEntropySum, "centre": Centre}),
        Made(_cloud, points=field(), label=field()),
        {"ce": 1.0, "centre": 0.5},
    ),
    "classify": Toy(
        CloudNet, supervised({"ce": CrossEntropySum}), Made(_cloud, points=field(), label=field()), {"ce": 1.0}
    ),
    "quantised": Toy(
        _quantised, supervised({"ce": CrossEntropySum}), Made(_cloud, points=field(), label=field()), {"ce": 1.0}
    ),
    "distilled": Toy(CloudNet, _distilled, Made(_cloud, points=field(), label=field()), {"ce": 0.3, "kl": 0.7}),
    "segment": Toy(
        RaggedNet,
        supervised({"ce": CrossEntropySum, "size": LogitSize}),
        Made(_ragged, points=field("concatenate"), label=field("concatenate")),
        {"ce": 1.0, "size": 0.1},
        (PackedHits,),
    ),
    "scans": Toy(
        ScanNet,
        _segment,
        Made(_scan, points=field("concatenate"), remission=field("concatenate"), label=field("concatenate")),
        {"ce": 1.0, "lovasz": 0.5},
        (lambda: IoU(num_classes=NUM_CLASSES, ignore_index=-1),),
        (NamedTransform("project", _PROJECT),),
        Segment.predicts,
    ),
}
