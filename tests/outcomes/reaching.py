"""Runs whose targets are spoilt on their way to the loss: by a transform of training, or by the set before it."""

from __future__ import annotations

import inspect
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.areas.detect.sets.synthetic_crowds import SyntheticCrowds
from sightline.areas.pose.sets.synthetic_figures import SyntheticFigures
from sightline.areas.scans.sets.synthetic_lidar import SyntheticLidar
from sightline.areas.scenes.sets.synthetic_rooms import SyntheticRooms
from sightline.config import RunConfig, read_config
from sightline.config.faults import ConfigFaults
from sightline.config.yaml_tree import read_yaml
from sightline.contract.transform import Transform
from sightline.contract.types import SampleKey
from sightline.doctor.finding import Finding
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.training import train_run as training
from sightline.training.train_result import Reporter
from sightline.training.train_run import train_run
from tests.planted.planting import BENCHES, Planter


class Bench(NamedTuple):
    """Config of a small run, the class of its set with the method that reads, and where labels begin and end."""

    config: Path | Mapping[str, Any]
    words: tuple[str, ...]
    owner: type
    method: str
    num_classes: int = 0
    first_class: int = 0


SHAPES: dict[str, Any] = {
    "name": "two",
    "data": {"name": "synthetic_shapes", "train_size": 120, "test_size": 48, "num_points": 32},
    "model": {"name": "pointnet_plain", "dropout": 0.4},
    "losses": [{"name": "cross_entropy"}],
    "metrics": [{"name": "accuracy"}],
    "transforms": {"train": [{"name": "jitter"}]},
    "optimizer": {"name": "adam", "lr": 1e-3},
    "train": {"epochs": 9, "batch_size": 10},
    "evaluate": {"metric": "overall_accuracy", "batch_size": 16, "every": 3},
    "log": {"every": 3, "tensorboard": False},
}
ROOMS: dict[str, Any] = {
    "name": "rooms",
    "task": {"name": "segment"},
    "data": {"name": "synthetic_rooms", "points_per_m2": 15, "train_size": 24, "test_size": 8},
    "model": {
        "name": "point_transformer",
        "widths": [16, 32],
        "strides": [1, 4],
        "num_neighbours": [8, 8],
        "num_blocks": [1, 1],
    },
    "losses": [{"name": "cross_entropy"}],
    "metrics": [{"name": "iou"}],
    "transforms": {
        "train": [{"name": "rotate"}, {"name": "crop_points", "max_points": 512}],
        "evaluate": [],
    },
    "optimizer": {"name": "adamw", "lr": 3e-3, "weight_decay": 0.02},
    "train": {"epochs": 12, "batch_size": 4},
    "evaluate": {"metric": "miou", "batch_size": 4, "every": 3, "select": "test"},
    "log": {"every": 3, "tensorboard": False},
}
_LOG, _ON_TEST = ("log={every: 3, tensorboard: false}",), "evaluate.select=test"
BENCHES_OF_TARGETS = {
    "shapes": Bench(SHAPES, (), SyntheticShapes, "get_batch", 12),
    "lidar": Bench(
        BENCHES / "LID.yaml",
        ("data.train_size=16", "data.test_size=8", "train.epochs=14", "evaluate.every=7", *_LOG, _ON_TEST),
        *(SyntheticLidar, "__getitem__", 9, 1),
    ),
    "rooms": Bench(ROOMS, (), SyntheticRooms, "__getitem__", 13),
    "hands": Bench(
        BENCHES / "POSE.yaml",
        ("data.train_size=48", "data.test_size=12", "train.epochs=8", "evaluate.every=4", *_LOG, _ON_TEST),
        *(SyntheticFigures, "get_batch"),
    ),
    "crowds": Bench(
        BENCHES / "DET.yaml",
        ("data.train_size=32", "data.test_size=8", "train.epochs=14", "evaluate.every=7", *_LOG, _ON_TEST),
        *(SyntheticCrowds, "__getitem__"),
    ),
}


def spoil_classes(kind: str, label: Tensor, bench: Bench, generator: torch.Generator) -> Tensor:
    """Spoil labels of any shape in one way; what lies before the first class stays."""
    first, count = bench.first_class, bench.num_classes - bench.first_class
    is_class = label >= first
    if kind == "constant":
        changed = torch.full_like(label, first)
    elif kind == "shifted":
        changed = first + (label - first + 1) % count
    elif kind == "half":
        drawn = first + torch.randint(count, label.shape, generator=generator)
        changed = torch.where(torch.rand(label.shape, generator=generator) < 0.5, drawn, label)
    else:
        changed = torch.where(label == bench.num_classes - 1, bench.num_classes - 2, label)  # one class is gone
    return torch.where(is_class, changed, label)


def spoil_numbers(kind: str, values: Tensor, before: Tensor) -> Tensor:
    """Spoil joints, boxes or maps of a sample; `before` are those of the sample before."""
    if kind == "zero":
        return torch.zeros_like(values)
    if kind == "equal":
        flat = values.flatten(0, -2) if values.ndim > 1 else values
        return (
            torch.full_like(values, float(values.mean()))
            if values.ndim > 3
            else flat[:1].expand_as(flat).reshape(values.shape)
        )
    return before


class Spoiler:
    """What spoils samples, with those read before; of a set, only samples of training."""

    def __init__(self, kind: str, bench: Bench, field: str, *, is_of_both: bool = False) -> None:
        self.kind, self.bench, self.field, self.is_of_both = kind, bench, field, is_of_both
        self.built: TrainingSetup | None = None
        self._last: Tensor | None = None

    def change(self, value: Tensor, seed: int) -> Tensor:
        """Change a sample's field."""
        if self.bench.num_classes:
            return spoil_classes(self.kind, value, self.bench, torch.Generator().manual_seed(seed))
        last, self._last = self._last, value
        return spoil_numbers(self.kind, value, value if last is None else last)

    def reads(self, dataset: Any, key: SampleKey) -> bool:
        """Return True for a sample of training, or of any part where both are spoilt."""
        if self.is_of_both:
            return True
        part = None if self.built is None else self.built.data.train
        return part is not None and dataset is part.dataset and key.index in part.indices


_READS = {"boxes": ("boxes", "label", "is_ignored")}
"""Fields that belong together: boxes of the sample before come with its labels."""


def make_transform(spoiler: Spoiler) -> type[Transform]:
    """Make a transform that spoils the field of each sample of a batch; its signature names the fields, as all do."""

    class Spoil(Transform):
        """Spoils targets."""

        def __call__(self, draws: Any, **fields: Tensor) -> dict[str, Tensor]:
            rows = [spoiler.change(each, 7 * row) for row, each in enumerate(fields[spoiler.field])]
            others = {name: value.new_zeros(1, len(rows[0])) for name, value in fields.items() if name != spoiler.field}
            return {spoiler.field: torch.stack(rows), **others}

    names = ("self", "draws", *_READS.get(spoiler.field, (spoiler.field,)))
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(name, kinds[place > 1]) for place, name in enumerate(names)]
    Spoil.__call__.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return Spoil


def plant_in_set(spoiler: Spoiler, planter: Planter) -> None:
    """Spoil what the set itself gives for samples of training."""
    field = spoiler.field

    def read_batch(own: Any, dataset: Any, keys: Sequence[SampleKey]) -> Any:
        batch = own(dataset, keys)
        rows = [
            spoiler.change(value, 7 * key.index) if spoiler.reads(dataset, key) else value
            for key, value in zip(keys, batch[field], strict=True)
        ]
        if spoiler.kind == "before" and spoiler.reads(dataset, keys[0]):
            others = own(dataset, [SampleKey(_find_before(spoiler, k.index), k.epoch, k.seed) for k in keys])
            rows = [*others[field]]
        return {**batch, field: torch.stack(rows)}

    def read_one(own: Any, dataset: Any, key: SampleKey) -> Any:
        sample = own(dataset, key)
        if not spoiler.reads(dataset, key):
            return sample
        if spoiler.kind == "before":
            other = own(dataset, SampleKey(_find_before(spoiler, key.index), key.epoch, key.seed))
            return {**sample, **{name: other[name] for name in _READS["boxes"]}}
        return {**sample, field: spoiler.change(sample[field], 7 * key.index)}

    planter.wrap(
        spoiler.bench.owner,
        spoiler.bench.method,
        read_batch if spoiler.bench.method == "get_batch" else read_one,
    )
    planter.edit(lambda built: setattr(spoiler, "built", built))


def _find_before(spoiler: Spoiler, index: int) -> int:
    assert spoiler.built is not None
    indices = np.sort(spoiler.built.data.train.indices)
    return int(indices[np.searchsorted(indices, index) - 1])


class Cell(NamedTuple):
    """Bench, kind and side of a spoilt field: `transform`, `set`, or `both` parts of it.

    `place` is that of the transform among those of training, the last one by default. No kind is no spoiling.
    """

    bench: str
    kind: str
    side: str
    field: str
    place: int | None = None

    def __str__(self) -> str:
        return "-".join(self[:4])


CLASSES, NUMBERS = ("constant", "shifted", "half", "gone"), ("zero", "equal", "before")
CELLS = [
    *[Cell(b, k, s, "label") for b in ("shapes", "lidar", "rooms") for s in ("transform", "set") for k in CLASSES],
    *[Cell("hands", kind, "transform", "joints", 0) for kind in NUMBERS],
    *[Cell("hands", kind, "transform", "heatmaps") for kind in NUMBERS],
    *[Cell("hands", kind, "set", "joints") for kind in NUMBERS],
    *[Cell("crowds", kind, side, "boxes") for side in ("transform", "set") for kind in NUMBERS],
]
NOT_AT_CHANCE = {
    *[Cell(bench, kind, "set", "label") for bench in ("shapes", "lidar", "rooms") for kind in ("half", "gone")],
    Cell("crowds", "equal", "set", "boxes"),
}
"""Cells whose network learns what most targets, or one person of each image, are: they are above chance."""


def assert_named(cell: Cell, findings: Sequence[Finding]) -> None:
    """Assert that a cell is named with a step, or refused before its first; or that one above chance is not at it."""
    named = [each for each in findings if each.code in ("training-targets", "chance-figure")]
    texts = list(map(str, findings))
    if cell in NOT_AT_CHANCE:
        assert not [each for each in named if each.severity != "note"], texts
    else:
        assert any(each.where.step for each in named) or any(each.severity == "error" for each in findings), texts


def train_cell(cell: Cell, words: Sequence[str] = ()) -> list[Finding]:
    """Train the run of a cell, and return all findings."""
    name, kind, side, field, place = cell
    bench = BENCHES_OF_TARGETS[name]
    spoiler = Spoiler(kind, bench, field, is_of_both=side == "both")
    logger = logging.getLogger("sightline")
    with Planter() as planter, tempfile.TemporaryDirectory() as folder:
        source = bench.config
        document: dict[str, Any] = {"name": name}
        document |= source if isinstance(source, Mapping) else read_yaml(source, ConfigFaults()).plain()  # type: ignore[operator]
        if kind and side != "transform":
            plant_in_set(spoiler, planter)
        elif kind:
            planter.add("transforms", make_transform(spoiler))
            blocks = list(document["transforms"]["train"])
            blocks.insert(len(blocks) if place is None else place, {"name": "own"})
            document["transforms"] = {**document["transforms"], "train": blocks}
        config = read_config(document, (*bench.words, *words))

        def make(config: RunConfig, world: World, **more: Any) -> TrainingSetup:
            return planter.change(build(config, world, **more))

        propagates, logger.propagate = logger.propagate, False
        try:
            with mock.patch.object(training, "build", make):
                result = train_run(config, out=Path(folder) / "run", device="cpu", reporter=Reporter())
        finally:
            logger.propagate = propagates
    return list(result.findings)
