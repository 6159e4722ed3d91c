"""Seven toy tasks, as unlike one another as the real ones, that must pass the one loop without a special case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.binding import Offer, bind, outputs_of
from sightline.data.loading.reading import BatchReader, NamedTransform
from sightline.engine.evaluate import Meter
from sightline.losses.base import Loss
from sightline.losses.contrast import CrossModal, IntraModal
from sightline.losses.cross_entropy import CrossEntropy
from sightline.losses.lovasz import LovaszSoftmax
from sightline.members import TaskMembers
from sightline.metrics.base import append_rows
from sightline.metrics.iou import IoU
from sightline.metrics.pairs import CrossPairs
from sightline.models.crosspoint import CrossPointOutput
from sightline.tasks.contrast import Contrast as OwnContrast
from sightline.tasks.segment import Segment
from sightline.tasks.supervised import Supervised
from sightline.transforms.project import Project
from sightline.types import DataInfo, Field, SampleKey

NUM_SAMPLES = 43
NUM_CLASSES = 3


class Logits(TypedDict):
    logits: Tensor


class CrossEntropySum(Loss):
    """Ignores class -1 and weighs classes, so that its counts are not whole numbers."""

    def __init__(self, weights: tuple[float, ...] = (1.0, 1.0, 1.0)) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float64))

    def count(self, *, label: Tensor) -> Tensor:
        return self.weights[label[label >= 0]].sum()

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(logits, label, weight=self.weights, ignore_index=-1, reduction="sum")


class Hits:
    """Right arg-max answers, and how many were asked."""

    def new_state(self) -> dict[str, Tensor]:
        return {"hits": torch.zeros(2, dtype=torch.int64)}

    def update(self, state: dict[str, Tensor], *, logits: Tensor, label: Tensor) -> None:
        asked = label >= 0
        state["hits"] += torch.stack([((logits.argmax(1) == label) & asked).sum(), asked.sum()])

    def compute(self, state: dict[str, Tensor]) -> dict[str, float]:
        return {"accuracy": state["hits"][0].item() / max(1, state["hits"][1].item())}


@dataclass(frozen=True)
class Toy:
    """A model, a task and data; the data set makes sample i from its generator alone."""

    model: Callable[[], nn.Module]
    task: Callable[[nn.Module, frozenset[str]], Any]
    dataset: Any
    weights: dict[str, float]
    metric: Callable[[], Any] = Hits
    transforms: tuple[NamedTransform, ...] = ()
    predicts: frozenset[str] = frozenset()

    @property
    def reader(self) -> BatchReader:
        return BatchReader(self.dataset, self.transforms)


class Made:
    """A data set whose samples are drawn from (7, index), whatever the epoch."""

    def __init__(self, make: Callable[[np.random.Generator], dict[str, Any]], **fields: Field) -> None:
        self.make = make
        self.info = DataInfo(facts={}, fields=fields, split_sizes={"train": NUM_SAMPLES})

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        return self.make(SampleKey(key.index, 0, 7).generator())


def supervised(
    losses: dict[str, Callable[[], Loss]], task: type[Supervised] = Supervised
) -> Callable[[nn.Module, frozenset[str]], Supervised]:
    def make(model: nn.Module, keys: frozenset[str]) -> Supervised:
        outputs = Offer("model", outputs_of(model.forward, owner="model"))
        built = {name: loss() for name, loss in losses.items()}
        return task(model=model, losses=built, batch_keys=Offer("data", keys), output_keys=outputs)

    return make


def meters(toy: Toy, model: nn.Module, reader: BatchReader) -> list[Meter]:
    metric, task = toy.metric(), toy.task(model, reader.keys)
    outputs = outputs_of(model.forward, owner="model") | toy.predicts
    offers = Offer("data", reader.keys), Offer("model", outputs)
    offers = *offers, Offer("task", TaskMembers.offers.of(task))
    return [Meter(metric, bind(metric.update, *offers, owner="metric", skip=("state",)))]


# 1 classify: clouds of one size


def _cloud(draw: np.random.Generator) -> dict[str, Any]:
    label = int(draw.integers(NUM_CLASSES))
    return {"points": torch.from_numpy(draw.normal(size=(16, 3)) + label), "label": label}


class CloudNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.each, self.head = nn.Linear(3, 12), nn.Linear(12, NUM_CLASSES)

    def forward(self, *, points: Tensor) -> Logits:
        return {"logits": self.head(torch.relu(self.each(points)).amax(1))}


# 2 segment: clouds of different sizes, nothing padded, two terms with different counts


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


# 3 contrast: two modalities, every row sees every other over ranks and micro-batches


def _pair(draw: np.random.Generator) -> dict[str, Any]:
    code = draw.normal(size=4)
    return {
        "points": torch.from_numpy(code[:, None] + draw.normal(size=(4, 8))),
        "image": torch.from_numpy(np.outer(code, code)),
    }


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.points, self.image = nn.Linear(8, 6), nn.Linear(16, 6)

    def forward(self, *, points: Tensor, image: Tensor) -> Embedded:
        return {"first": self.points(points).amax(1), "second": self.image(image.flatten(1))}


class Embedded(TypedDict):
    first: Tensor
    second: Tensor


class Contrast:
    """InfoNCE over all rows of the step: `prepare` embeds them, each part puts its live rows among them."""

    def prepare(self, model: nn.Module, micro_batches: list, world: Any) -> tuple[dict, list]:
        size = torch.tensor(sum(len(batch["points"]) for batch in micro_batches))
        count = world.all_reduce_sum({"contrast": size})
        with torch.no_grad():
            rows = [self._rows(model, batch) for batch in micro_batches]
        everyone, start = world.gather_rows(torch.cat(rows))
        starts = start + np.cumsum([0, *(len(row) for row in rows)])
        return count, [(everyone, int(place)) for place in starts[:-1]]

    def losses(self, model: nn.Module, batch: dict, around: tuple[Tensor, int]) -> dict[str, Tensor]:
        everyone, start = around
        live = self._rows(model, batch)
        own = slice(start, start + len(live))
        rows = torch.cat([everyone[:start], live, everyone[own.stop :]])
        first, second = F.normalize(rows[:, 0], dim=1), F.normalize(rows[:, 1], dim=1)
        each = F.cross_entropy(first @ second.T / 0.5, torch.arange(len(rows)), reduction="none")
        return {"contrast": each.sum() - each.sum().detach() + each[own].sum().detach()}

    def predict(self, model: nn.Module, batch: dict) -> dict[str, Tensor]:
        return model(points=batch["points"], image=batch["image"])

    def assess(self, model: nn.Module, batch: dict, around: Any) -> tuple[dict, dict]:
        return self.losses(model, batch, around), self.predict(model, batch)

    @staticmethod
    def _rows(model: nn.Module, batch: dict) -> Tensor:
        out = model(points=batch["points"], image=batch["image"])
        return torch.stack([out["first"], out["second"]], dim=1)


class Aligned:
    """How many pairs point the same way; counted, so exact in any order."""

    def new_state(self) -> dict[str, Tensor]:
        return {"same": torch.zeros(1, dtype=torch.int64)}

    def update(self, state: dict[str, Tensor], *, first: Tensor, second: Tensor) -> None:
        state["same"] += ((first * second).sum(1) > 0).sum()

    def compute(self, state: dict[str, Tensor]) -> dict[str, float]:
        return {"aligned": state["same"].item() / NUM_SAMPLES}


# 3b the same through the task of the package: two clouds and an image of each object, two losses


def _views(draw: np.random.Generator) -> dict[str, Any]:
    code = draw.normal(size=4)
    points, other = (torch.from_numpy(code[:, None] + 0.2 * draw.normal(size=(4, 8))) for _ in range(2))
    return {"points": points, "other_points": other, "image": torch.from_numpy(np.outer(code, code))}


class ThreeViews(TwoTowers):
    def forward(self, *, points: Tensor, other_points: Tensor, image: Tensor) -> CrossPointOutput:  # type: ignore[override]
        first, second = (self.points(each).amax(1) for each in (points, other_points))
        return {"first": first, "second": second, "pictured": self.image(image.flatten(1))}


def _contrast(model: nn.Module, keys: Any) -> OwnContrast:
    return OwnContrast(
        model=model,
        losses={"intra_modal": IntraModal(), "cross_modal": CrossModal(temperature=0.5)},
        batch_keys=Offer("the toy", keys),
        output_keys=Offer("the toy's model", ("first", "second", "pictured")),
    )


# 4 pose: voxel grids to heat maps; the count is visible joints x voxels


def _grid(draw: np.random.Generator) -> dict[str, Any]:
    target = torch.from_numpy(draw.random((2, 4, 4, 4)))
    visible = torch.from_numpy(draw.random(2) < 0.6)
    return {"voxels": target.sum(0, keepdim=True), "target": target, "visible": visible}


class HeatNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, 1))

    def forward(self, *, voxels: Tensor) -> HeatMaps:
        return {"heat": self.net(voxels)}


class HeatMaps(TypedDict):
    heat: Tensor


class HeatError(Loss):
    def count(self, *, visible: Tensor) -> Tensor:
        return visible.sum() * 4**3

    def forward(self, *, heat: Tensor, target: Tensor, visible: Tensor) -> Tensor:
        return ((heat - target).square().flatten(2).sum(2) * visible).sum()


class Peaks:
    """Slots: each sample's own error in its own row, so the sum over processes is a disjoint union."""

    def new_state(self) -> dict[str, Tensor]:
        return {"error": torch.zeros(NUM_SAMPLES, dtype=torch.float64)}

    def update(self, state: dict[str, Tensor], *, heat: Tensor, target: Tensor, sample_index: Tensor) -> None:
        state["error"][sample_index] = (heat - target).abs().flatten(1).amax(1).double()

    def compute(self, state: dict[str, Tensor]) -> dict[str, float]:
        return {"peak_error": state["error"].mean().item()}


# 5 detect: lists of boxes, some empty; positives are decided by assignment, counted before the forward pass


def _boxes(draw: np.random.Generator) -> dict[str, Any]:
    boxes = torch.from_numpy(draw.random((int(draw.integers(0, 4)), 2)))
    return {"image": torch.from_numpy(draw.normal(size=(3, 5))), "boxes": boxes}


class BoxNet(nn.Module):
    """One score and one box (centre, size) for each of five anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 3)

    def forward(self, *, image: Tensor) -> Detections:
        out = self.net(image.transpose(1, 2))
        return {"scores": out[..., 0], "codes": out[..., 1:]}


class Detections(TypedDict):
    scores: Tensor
    codes: Tensor


def _assign(boxes: list[Tensor]) -> list[Tensor]:
    """For each anchor the nearest box within reach, or -1."""
    anchors = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    chosen = []
    for each in boxes:
        if len(each) == 0:
            chosen.append(torch.full((5,), -1))
            continue
        distance = (anchors[:, None] - each[None, :, 0]).abs()
        chosen.append(torch.where(distance.amin(1) < 0.15, distance.argmin(1), -1))
    return chosen


class Assigning(Supervised):
    """Assigns once, before the forward pass; losses, their counts and metrics read what was assigned."""

    offers = frozenset({"assigned"})

    def context(self, model: nn.Module, batch: dict) -> dict[str, Any]:
        return {"assigned": torch.stack(_assign(batch["boxes"]))}

    def tallies(self, contexts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {"n_pos": (torch.cat([each["assigned"].flatten() for each in contexts]) >= 0).sum()}


class Scores(Loss):
    def count(self, *, assigned: Tensor) -> Tensor:
        return (assigned >= 0).sum()

    def forward(self, *, scores: Tensor, assigned: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(scores, (assigned >= 0).to(scores), reduction="sum")


class Codes(Scores):
    def forward(self, *, codes: Tensor, boxes: list[Tensor], assigned: Tensor) -> Tensor:
        total = codes.sum() * 0
        for code, chosen, each in zip(codes, assigned, boxes, strict=True):
            hit = chosen >= 0
            total = total + (code[hit] - each[chosen[hit]]).abs().sum()
        return total


class Found:
    """Any number of detections a sample: their scores and whether they were wanted, one row each, some samples none."""

    rows = ("detections",)

    def new_state(self) -> dict[str, Tensor]:
        return {"detections": torch.zeros(0, 3, dtype=torch.float64), "boxes": torch.zeros((), dtype=torch.int64)}

    def update(
        self, state: dict[str, Tensor], *, scores: Tensor, assigned: Tensor, boxes: list, sample_index: Tensor
    ) -> None:
        image, prior = (scores > 0).nonzero(as_tuple=True)
        wanted = assigned[image, prior] >= 0
        append_rows(state, "detections", sample_index[image], torch.stack([scores[image, prior], wanted], dim=1))
        state["boxes"] += sum(len(each) for each in boxes)

    def compute(self, state: dict[str, Tensor]) -> dict[str, float]:
        index, score, wanted = state["detections"].T
        weight = 1 + torch.arange(len(index), dtype=torch.float64)  # depends on the order of rows, as curves do
        return {
            "found": float((score * wanted * weight).sum()),
            "boxes": state["boxes"].item(),
            "last": index.sum().item(),
        }


# 6 range image: ignored pixels, class weights


def _range_image(draw: np.random.Generator) -> dict[str, Any]:
    label = torch.from_numpy(draw.integers(-1, NUM_CLASSES, size=(4, 8)))
    return {"image": torch.from_numpy(draw.normal(size=(2, 4, 8))) + label, "label": label}


class RangeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, NUM_CLASSES, 1))

    def forward(self, *, image: Tensor) -> Logits:
        return {"logits": self.net(image)}


# 7 scans: ragged points become channels and pixels on the way; pixels are trained on, all points are scored


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
        batch_keys=Offer("the toy", keys),
        output_keys=Offer("the toy's model", ("logits",)),
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


def _field(collate: str = "stack") -> Field:
    return Field("any", "float64", collate=collate)  # type: ignore[arg-type]


TOYS: dict[str, Toy] = {
    "classify": Toy(
        CloudNet, supervised({"ce": CrossEntropySum}), Made(_cloud, points=_field(), label=_field()), {"ce": 1.0}
    ),
    "segment": Toy(
        RaggedNet,
        supervised({"ce": CrossEntropySum, "size": LogitSize}),
        Made(_ragged, points=_field("concatenate"), label=_field("concatenate")),
        {"ce": 1.0, "size": 0.1},
    ),
    "contrast": Toy(
        TwoTowers,
        lambda model, keys: Contrast(),
        Made(_pair, points=_field(), image=_field()),
        {"contrast": 1.0},
        Aligned,
    ),
    "crosspoint": Toy(
        ThreeViews,
        _contrast,
        Made(_views, points=_field(), other_points=_field(), image=_field()),
        {"intra_modal": 1.0, "cross_modal": 3.0},
        CrossPairs,
    ),
    "pose": Toy(
        HeatNet,
        supervised({"heat": HeatError}),
        Made(_grid, voxels=_field(), target=_field(), visible=_field()),
        {"heat": 1.0},
        Peaks,
    ),
    "detect": Toy(
        BoxNet,
        supervised({"scores": Scores, "codes": Codes}, Assigning),
        Made(_boxes, image=_field(), boxes=_field("list")),
        {"scores": 1.0, "codes": 2.0},
        Found,
    ),
    "range": Toy(
        RangeNet,
        supervised({"ce": lambda: CrossEntropySum((0.3, 1.7, 2.5))}),
        Made(_range_image, image=_field(), label=_field()),
        {"ce": 1.0},
    ),
    "scans": Toy(
        ScanNet,
        _segment,
        Made(_scan, points=_field("concatenate"), remission=_field("concatenate"), label=_field("concatenate")),
        {"ce": 1.0, "lovasz": 0.5},
        lambda: IoU(num_classes=NUM_CLASSES, ignore_index=-1),
        (NamedTransform("project", _PROJECT),),
        Segment.predicts,
    ),
}
