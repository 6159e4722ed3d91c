"""Small runs whose plugin transforms or data sets have planted bugs, each as a user would write it.

`python -m tests.doctor.transformed 3` prints with how many of three seeds each is found, `python -m
tests.doctor.transformed` the processor time of the checks on healthy runs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.config import read_config
from sightline.contract.types import Sample, SampleKey
from sightline.engine.build import DataSubset, TrainingSetup, build, build_transforms
from sightline.engine.distributed import World
from sightline.store.loading.batch_reader import BatchReader, NamedTransform
from sightline.workbench.check.context import CHECKS, Context
from sightline.workbench.check.core.finding import Finding
from sightline.workbench.check.suite import all_checks
from tests.conftest import ROOT
from tests.doctor.detecting import make_crowds
from tests.doctor.pairing import make_pairs
from tests.doctor.planting import make
from tests.doctor.posing import make_pose
from tests.doctor.power import print_alarms, processor_time, table
from tests.doctor.segmenting import PerPoint, make_parts

Transforms = list[NamedTransform]
SCANS = (
    *("data.num_columns=128", "data.train_size=12", "data.test_size=3"),
    *("transforms.train.2.width=128", "transforms.evaluate.0.width=128", "model={name: squeezeseg, circular: true}"),
)
ROOMS = ("data.train_size=8", "data.test_size=2", "data.points_per_m2=20", "model.widths=[8, 16, 16, 16]")


def with_transforms(built: TrainingSetup, change: Callable[[Transforms], Transforms], *stages: str) -> TrainingSetup:
    """The run with other transforms in these stages, by default in training and evaluation."""
    data, chosen = built.data, built.config.transforms
    parts: dict[str, DataSubset] = {}
    for name, components in (("train", chosen.train), ("selection", chosen.evaluate), ("test", chosen.evaluate)):
        part = getattr(data, name)
        if stages and ("train" if name == "train" else "evaluate") not in stages:
            continue
        facts = {**part.dataset.info.facts, "num_epochs": built.config.train.epochs}
        others = data.train.indices if name == "train" else None
        reader = BatchReader(part.dataset, change(build_transforms(components, facts)), mixing_indices=others)
        parts[name] = dataclasses.replace(part, reader=reader)
    return with_parts(built, parts)


def with_parts(built: TrainingSetup, parts: dict[str, DataSubset]) -> TrainingSetup:
    """The run with other parts, whose readers also train and evaluate."""
    job = built.job
    if "train" in parts:
        job = dataclasses.replace(job, stream=dataclasses.replace(job.stream, reader=parts["train"].reader))
    evaluators = {
        f"{name}_evaluator": dataclasses.replace(getattr(built, f"{name}_evaluator"), reader=parts[name].reader)
        for name in ("selection", "test")
        if name in parts
    }
    return dataclasses.replace(built, data=dataclasses.replace(built.data, **parts), job=job, **evaluators)


class Collated:
    """A data set that makes its batches itself, with the labels of the samples in the opposite order."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.info = inner, inner.info

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, key: SampleKey) -> Sample:
        return dict(self.inner[key])

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        batch = {name: torch.stack([torch.as_tensor(s[name]) for s in samples]) for name in samples[0]}
        return {**batch, "label": batch["label"].flip(0)}


class Given:
    """A data set whose samples pass through `edit(sample, key)`, one by one."""

    def __init__(self, inner: Any, edit: Callable[[Sample, SampleKey], Sample]) -> None:
        self.inner, self.edit, self.info = inner, edit, inner.info

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, key: SampleKey) -> Sample:
        return self.edit(dict(self.inner[key]), key)


def with_samples(
    built: TrainingSetup, make_edit: Callable[[], Callable[[Any, Sample, SampleKey], Sample]]
) -> TrainingSetup:
    """The run whose sets are edited: `make_edit()` is called for each, as its `__init__` would be."""
    return with_sets(built, lambda inner: Given(inner, functools.partial(make_edit(), inner)))


def with_sets(built: TrainingSetup, wrap: Callable[[Any], Any]) -> TrainingSetup:
    """The run on other sets, with its own transforms."""
    sets: dict[int, Any] = {}
    parts = {}
    for name in ("train", "selection", "test"):
        part = getattr(built.data, name)
        inner = part.dataset
        if id(inner) not in sets:
            sets[id(inner)] = wrap(inner)
        dataset = sets[id(inner)]
        stage = built.config.transforms.train if name == "train" else built.config.transforms.evaluate
        facts = {**inner.info.facts, "num_epochs": built.config.train.epochs}
        others = built.data.train.indices if name == "train" else None
        reader = BatchReader(dataset, build_transforms(stage, facts), mixing_indices=others)
        parts[name] = dataclasses.replace(part, dataset=dataset, reader=reader)
    return with_parts(built, parts)


def insert(transform: Any, place: int | None = None) -> Callable[[Transforms], Transforms]:
    """Puts a transform at a place, by default last."""
    named = NamedTransform("planted", transform)
    return lambda all_: [*all_, named] if place is None else [*all_[:place], named, *all_[place:]]


# --- runs -------------------------------------------------------------------------------------------------------------


def clouds(seed: int, *overrides: str) -> TrainingSetup:
    stage = () if overrides else ("transforms.train=[{name: scale}, {name: jitter}]",)
    words = (
        *("data.normals=file", *stage),
        f"seed={seed}",
        f"data.data_seed={seed}",
    )
    return make(_folder(), *words, *overrides)


def parts(seed: int, *overrides: str) -> TrainingSetup:
    words = ("data.normals=file", "transforms.train=[{name: rotate}]", f"seed={seed}", f"data.data_seed={seed}")
    torch.manual_seed(seed)
    return make_parts(_folder(), *words, *overrides, model=PerPoint(in_channels=6, num_classes=30))


def crowds(seed: int, *overrides: str) -> TrainingSetup:
    return make_crowds(*overrides, seed=seed)


def scans(seed: int, *overrides: str) -> TrainingSetup:
    path = ROOT / "configs/segment/synthetic_lidar_salsanext.yaml"
    return build(read_config(path, (*SCANS, f"seed={seed}", f"data.data_seed={seed}", *overrides)), World())


def rooms(seed: int, *overrides: str) -> TrainingSetup:
    path = ROOT / "configs/segment/synthetic_rooms_point_transformer.yaml"
    return build(read_config(path, (*ROOMS, f"seed={seed}", f"data.data_seed={seed}", *overrides)), World())


def hands(seed: int, *overrides: str) -> TrainingSetup:
    return make_pose(_folder(), f"seed={seed}", f"data.data_seed={seed}", *overrides)


def pairs(seed: int, *overrides: str) -> TrainingSetup:
    return make_pairs(_folder(), f"seed={seed}", f"data.data_seed={seed}", *overrides)


def _folder() -> Path:
    return Path(tempfile.mkdtemp())


RUNS = {run.__name__: run for run in (clouds, parts, crowds, scans, rooms, hands, pairs)}


# --- transforms -------------------------------------------------------------------------------------------------------


def _turn(angle: Tensor) -> Tensor:
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    c, s = angle.cos(), angle.sin()
    return torch.stack(
        [torch.stack([c, -s, zero], -1), torch.stack([s, c, zero], -1), torch.stack([zero, zero, one], -1)], -2
    )


class TurnPoints:
    """Normals stay."""

    def __call__(self, draws: Any, *, points: Tensor) -> dict[str, Tensor]:
        return {"points": points @ _turn(draws.uniform(high=6.28)).transpose(1, 2)}


class TurnNormalsBack(TurnPoints):
    """Normals turn the other way."""

    def __call__(self, draws: Any, *, points: Tensor, normals: Tensor) -> dict[str, Tensor]:
        matrix = _turn(draws.uniform(high=6.28))
        return {"points": points @ matrix.transpose(1, 2), "normals": normals @ matrix}


class MirrorPoints:
    def __call__(self, draws: Any, *, points: Tensor) -> dict[str, Tensor]:
        sign = torch.where(draws.uniform(1, 1) < 0.5, -1.0, 1.0)
        return {"points": points * torch.cat([sign, torch.ones_like(sign), torch.ones_like(sign)], -1)}


class StretchPoints:
    def __call__(self, draws: Any, *, points: Tensor) -> dict[str, Tensor]:
        return {"points": points * draws.uniform(1, 3, low=0.5, high=2.0)}


class ShufflePoints:
    """The labels, or the normals, keep their rows; the declaration `chooses_points` is missing."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __call__(self, draws: Any, *, points: Tensor, normals: Tensor, label: Tensor) -> dict[str, Tensor]:
        order = draws.permutation(points.shape[1])
        pick = order[..., None].expand(-1, -1, 3)
        moved = {"points": points.gather(1, pick), "normals": normals.gather(1, pick), "label": label.gather(1, order)}
        return {name: moved[name] for name in self.names}


class RollLabels:
    def __init__(self, by: int = 1) -> None:
        self.by = by

    def __call__(self, draws: Any, *, label: Tensor) -> dict[str, Tensor]:
        return {"label": label.roll(self.by, 1)}


class FlipImages:
    """Boxes stay."""

    def __init__(self, axis: int = 2) -> None:
        self.axis = axis

    def __call__(self, draws: Any, *, image: Tensor) -> dict[str, Tensor]:
        is_flipped = draws.uniform(1, 1, 1) < 0.5
        return {"image": torch.where(is_flipped, image.flip(self.axis), image)}


class FlipBoxesWrongly:
    """x for y, or the width of another frame."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self, draws: Any, *, image: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        width = image.shape[2]
        left, top, right, bottom = boxes.unbind(-1)
        if self.how == "corners":  # right and left not exchanged, then put in order
            flipped = torch.stack(
                [width - left - (right - left) / 2, top, width - left + (right - left) / 2, bottom], -1
            )
        elif self.how == "height":
            flipped = torch.stack([image.shape[1] - right, top, image.shape[1] - left, bottom], -1)
        else:
            flipped = torch.stack([left, image.shape[1] - bottom, right, image.shape[1] - top], -1)
        return {"image": image.flip(2), "boxes": flipped}


class ShrinkImages:
    """The content of an image is made smaller in its corner; the boxes are not."""

    def __call__(self, draws: Any, *, image: Tensor) -> dict[str, Tensor]:
        small = image[:, ::2, ::2]
        grey = torch.full_like(image, 114)
        grey[:, : small.shape[1], : small.shape[2]] = small
        return {"image": grey}


class ShiftImages:
    def __call__(self, draws: Any, *, image: Tensor) -> dict[str, Tensor]:
        return {"image": image.roll((20, 30), (1, 2))}


class MoveRangeImage:
    """One of the fields of a projected scan is flipped, rolled or emptied, the others are not."""

    def __init__(self, how: str, *names: str) -> None:
        self.how, self.names = how, names

    def __call__(self, draws: Any, *, image: Tensor, range_image: Tensor, label: Tensor) -> dict[str, Tensor]:
        given = {"image": image, "range_image": range_image, "label": label}
        rows = {"image": 2, "range_image": 1, "label": 1}
        moved = {}
        for name in self.names:
            value, row = given[name].clone(), rows[name]
            if self.how == "upside down":
                value = value.flip(row)
            elif self.how == "mirrored":
                value = value.flip(row + 1)
            elif self.how == "rolled":
                value = value.roll(20, row + 1)
            else:
                value.narrow(row, value.shape[row] // 4, value.shape[row] // 4).fill_(0)
            moved[name] = value
        return moved


class OwnProjection:
    """What a user's projection makes: the shipped one's, with rows upside down, or every other row empty."""

    def __init__(self, inner: Any, how: str) -> None:
        self.inner, self.how, self.adds, self.facts = inner, how, inner.adds, inner.facts

    def __call__(
        self, draws: Any, *, points: Tensor, remission: Tensor, label: Tensor, ring: Tensor
    ) -> dict[str, Tensor]:
        if self.how == "upside down":
            ring = self.inner.view.height - 1 - ring
        elif self.how == "bands":
            ring = ring // 4 * 4
        return self.inner(draws, points=points, remission=remission, label=label, ring=ring)


class TurnVolume:
    def __call__(self, draws: Any, *, volume: Tensor) -> dict[str, Tensor]:
        return {"volume": volume.rot90(1, (2, 3))}


class MirrorDepth:
    """A depth image mirrored without its joints."""

    def __call__(self, draws: Any, *, depth: Tensor) -> dict[str, Tensor]:
        return {"depth": depth.flip(2)}


class Metres:
    def __init__(self, *names: str) -> None:
        self.names = names

    def __call__(self, draws: Any, *, depth: Tensor, joints: Tensor, reference: Tensor) -> dict[str, Tensor]:
        given = {"depth": depth, "joints": joints, "reference": reference}
        return {name: given[name] / 1000 for name in self.names}


class MoveJoints:
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self.change = change

    def __call__(self, draws: Any, *, joints: Tensor) -> dict[str, Tensor]:
        return {"joints": self.change(joints)}


class SameViews:
    """Both views by the same numbers."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.adds = inner, inner.adds

    def __call__(self, draws: Any, *, points: Tensor) -> dict[str, Tensor]:
        made = self.inner(draws, points=points)
        return {"points": made["points"], "other_points": made["points"].clone()}


_GENERATOR = np.random.default_rng(0)


class Noise:
    """Jitter from a generator that is not the sample's."""

    def __init__(self, kind: str, *, field: str = "points") -> None:
        self.kind = kind
        self.generator: Any = {
            "numpy": lambda: np.random.default_rng(0),
            "torch": lambda: torch.Generator().manual_seed(0),
            "random": lambda: random.Random(0),
        }.get(kind, lambda: None)()

    def __call__(self, draws: Any, *, points: Tensor) -> dict[str, Tensor]:
        return {"points": points + 0.01 * self._draw(points.shape)}

    def _draw(self, shape: Any) -> Tensor:
        if self.kind == "numpy":
            return torch.from_numpy(self.generator.normal(size=tuple(shape))).float()
        if self.kind == "torch":
            return torch.randn(shape, generator=self.generator)
        if self.kind == "random":
            return torch.tensor(self.generator.gauss(0, 1))
        if self.kind == "global numpy":
            return torch.from_numpy(np.random.normal(size=tuple(shape))).float()
        if self.kind == "global torch":
            return torch.randn(shape)
        if self.kind == "global random":
            return torch.tensor(random.gauss(0, 1))
        if self.kind == "of the module":
            return torch.from_numpy(_GENERATOR.normal(size=tuple(shape))).float()
        if self.kind == "fresh":  # no seed: another one at each call
            return torch.from_numpy(np.random.default_rng().normal(size=tuple(shape))).float()
        assert self.kind == "again"  # the same noise for every sample
        return torch.from_numpy(np.random.default_rng(0).normal(size=tuple(shape))).float()


class ShuffleRoom:
    """Rooms whose points are put into another order, and may be turned, without a field of them."""

    def __init__(self, name: str, *, is_turned: bool) -> None:
        self.name, self.is_turned = name, is_turned

    def __call__(self, draws: Any, *, points: Tensor, colours: Tensor, label: Tensor) -> dict[str, Tensor]:
        order = draws.permutation(points.shape[1])
        pick = order[..., None].expand(-1, -1, 3)
        turned = points @ _turn(draws.uniform(high=6.28)) if self.is_turned else points
        moved = {"colours": colours.gather(1, pick), "label": label.gather(1, order)}
        return {"points": turned.gather(1, pick), self.name: moved[self.name]}


class RollRows:
    """Of a set that gives whole batches, a field of the sample before."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, draws: Any, *, points: Tensor, label: Tensor) -> dict[str, Tensor]:
        return {self.name: {"points": points, "label": label}[self.name].roll(1, 0)}


class CentreBatch:
    """Points less the mean of the batch, not of the cloud."""

    def __call__(self, draws: Any, *, points: Tensor) -> dict[str, Tensor]:
        return {"points": points - points.mean(dim=(0, 1)) + 0.1 * points.mean(dim=1, keepdim=True).amax()}


# --- samples ----------------------------------------------------------------------------------------------------------


def edit_always(
    edit: Callable[[Any, Sample, SampleKey], Sample],
) -> Callable[[], Callable[[Any, Sample, SampleKey], Sample]]:
    return lambda: edit


def own_generator() -> Callable[[Any, Sample, SampleKey], Sample]:
    """A generator made with the set, of the same seed."""
    generator = np.random.default_rng(0)

    def edit(inner: Any, sample: Sample, key: SampleKey) -> Sample:
        return {**sample, "points": sample["points"] * float(generator.uniform(0.5, 1))}

    return edit


def one_cloud(inner: Any, sample: Sample, key: SampleKey) -> Sample:
    first = inner[SampleKey(0, 0, 0)]
    return {**sample, **{name: first[name] for name in ("points", "normals") if name in first}}


def one_sample(inner: Any, sample: Sample, key: SampleKey) -> Sample:
    return dict(inner[SampleKey(0, 0, 0)])


def ten_clouds(inner: Any, sample: Sample, key: SampleKey) -> Sample:
    first = inner[SampleKey(key.index % 10, 0, 0)]
    return {**sample, **{name: first[name] for name in ("points", "normals") if name in first}}


def next_depth(inner: Any, sample: Sample, key: SampleKey) -> Sample:
    return {**sample, "depth": inner[SampleKey((key.index + 1) % len(inner), 0, 0)]["depth"]}


def field(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Any, Sample, SampleKey], Sample]:
    return lambda inner, sample, key: {**sample, name: change(sample[name])}


def far_reference(reference: Tensor) -> Tensor:
    return reference + torch.tensor([0.0, 0.0, 250.0])


def with_background(inner: Any, sample: Sample, key: SampleKey) -> Sample:
    """The centre as the mean over all pixels, of which those of the background are 0 mm away (O45)."""
    depth, (fx, fy, u0, v0) = sample["depth"].double(), sample["camera"].tolist()
    z = float(depth.mean())
    rows, columns = torch.meshgrid(torch.arange(depth.shape[0]), torch.arange(depth.shape[1]), indexing="ij")
    is_seen = depth > 0
    u, v = float(columns[is_seen].double().mean()), float(rows[is_seen].double().mean())
    return {**sample, "reference": torch.tensor([(u - u0) * z / fx, (v - v0) * z / fy, z], dtype=torch.float32)}


class Bug(NamedTuple):
    """A run, what is planted in it, the check that finds it, and its first cause."""

    run: str
    plant: Callable[[TrainingSetup], TrainingSetup]
    code: str
    cause: str
    forward_s: float = 1.5  # the start of a training


def at(place: int | None, make_transform: Callable[[], Any], *stages: str) -> Callable[[TrainingSetup], TrainingSetup]:
    return lambda built: with_transforms(built, lambda all_: insert(make_transform(), place)(all_), *stages)


def instead(name: str, wrap: Callable[[Any], Any]) -> Callable[[TrainingSetup], TrainingSetup]:
    def change(all_: Transforms) -> Transforms:
        return [NamedTransform(t.name, wrap(t.apply)) if t.name == name else t for t in all_]

    return lambda built: with_transforms(built, change)


def samples(make_edit: Any) -> Callable[[TrainingSetup], TrainingSetup]:
    return lambda built: with_samples(built, make_edit)


def always(edit: Any) -> Callable[[TrainingSetup], TrainingSetup]:
    return samples(edit_always(edit))


MISMATCH, RANDOM = "data.augment_target_mismatch", "data.duplicate_randomness"
SWAPPED = [2, 1, 0]
BUGS: dict[str, Bug] = {
    "points turned, normals not": Bug("clouds", at(0, TurnPoints, "train"), "augmentation-mismatch", MISMATCH),
    "normals turned the other way": Bug("clouds", at(0, TurnNormalsBack, "train"), "augmentation-mismatch", MISMATCH),
    "points mirrored, normals not": Bug("clouds", at(None, MirrorPoints, "train"), "augmentation-mismatch", MISMATCH),
    "points stretched, normals not": Bug("parts", at(None, StretchPoints, "train"), "augmentation-mismatch", MISMATCH),
    "points shuffled, labels not": Bug(
        "parts", at(0, lambda: ShufflePoints("points", "normals"), "train"), "augmentation-mismatch", MISMATCH
    ),
    "points shuffled, normals not": Bug(
        "parts", at(0, lambda: ShufflePoints("points", "label"), "train"), "augmentation-mismatch", MISMATCH
    ),
    "labels rolled by one": Bug("parts", at(None, RollLabels, "train"), "augmentation-mismatch", MISMATCH),
    "images flipped, boxes not": Bug("crowds", at(0, FlipImages, "train"), "augmentation-mismatch", MISMATCH),
    "images upside down, boxes not": Bug(
        "crowds", at(0, lambda: FlipImages(1), "train"), "augmentation-mismatch", MISMATCH
    ),
    "normalised images flipped, boxes not": Bug(
        "crowds", at(None, lambda: FlipImages(3), "train"), "augmentation-mismatch", MISMATCH
    ),
    "boxes flipped about their left side": Bug(
        "crowds", at(0, lambda: FlipBoxesWrongly("corners"), "train"), "augmentation-mismatch", MISMATCH
    ),
    "boxes flipped by the height": Bug(
        "crowds", at(0, lambda: FlipBoxesWrongly("height"), "train"), "augmentation-mismatch", MISMATCH
    ),
    "boxes flipped along y": Bug(
        "crowds", at(0, lambda: FlipBoxesWrongly("axis"), "train"), "augmentation-mismatch", MISMATCH
    ),
    "images shrunk, boxes not": Bug("crowds", at(0, ShrinkImages, "train"), "augmentation-mismatch", MISMATCH),
    "images shifted, boxes not": Bug("crowds", at(0, ShiftImages, "train"), "augmentation-mismatch", MISMATCH),
    "range images upside down, labels not": Bug(
        "scans",
        at(None, lambda: MoveRangeImage("upside down", "image", "range_image"), "train"),
        "augmentation-mismatch",
        MISMATCH,
    ),
    "images upside down, ranges and labels not": Bug(
        "scans", at(None, lambda: MoveRangeImage("upside down", "image"), "train"), "augmentation-mismatch", MISMATCH
    ),
    "labels upside down": Bug(
        "scans", at(None, lambda: MoveRangeImage("upside down", "label"), "train"), "augmentation-mismatch", MISMATCH
    ),
    "range images mirrored, labels not": Bug(
        "scans",
        at(None, lambda: MoveRangeImage("mirrored", "image", "range_image"), "train"),
        "augmentation-mismatch",
        MISMATCH,
    ),
    "range images rolled, labels not": Bug(
        "scans",
        at(None, lambda: MoveRangeImage("rolled", "image", "range_image"), "train"),
        "augmentation-mismatch",
        MISMATCH,
    ),
    "a band of the image emptied": Bug(
        "scans", at(None, lambda: MoveRangeImage("band", "image"), "train"), "projection-coverage", "data.projection"
    ),
    "a projection upside down": Bug(
        "scans", instead("project", lambda t: OwnProjection(t, "upside down")), "projection-coverage", "data.projection"
    ),
    "a projection with empty bands": Bug(
        "scans", instead("project", lambda t: OwnProjection(t, "bands")), "projection-coverage", "data.projection"
    ),
    "volume turned, joints not": Bug("hands", at(None, TurnVolume), "misplaced-volume", MISMATCH),
    "depth mirrored, joints not": Bug("hands", at(0, MirrorDepth), "augmentation-mismatch", MISMATCH),
    "depth in metres by a transform": Bug(
        "hands", at(0, lambda: Metres("depth")), "augmentation-mismatch", "data.normalisation"
    ),
    "joints in metres by a transform": Bug(
        "hands", at(0, lambda: Metres("joints")), "augmentation-mismatch", "data.normalisation"
    ),
    "reference in metres by a transform": Bug(
        "hands", at(0, lambda: Metres("reference")), "misplaced-joints", "data.normalisation"
    ),
    "joints' axes exchanged by a transform": Bug(
        "hands", at(0, lambda: MoveJoints(lambda j: j[..., SWAPPED])), "augmentation-mismatch", "data.layout"
    ),
    "joints moved by 40 mm by a transform": Bug(
        "hands", at(0, lambda: MoveJoints(lambda j: j + torch.tensor([40.0, 0, 0]))), "augmentation-mismatch", MISMATCH
    ),
    "joints moved by 40 mm after the maps": Bug(
        "hands",
        at(None, lambda: MoveJoints(lambda j: j + torch.tensor([40.0, 0, 0]))),
        "augmentation-mismatch",
        MISMATCH,
    ),
    "joints' axes exchanged in the set": Bug(
        "hands", always(field("joints", lambda j: j[..., SWAPPED])), "misplaced-joints", "data.layout"
    ),
    "joints 40 mm deeper in the set": Bug(
        "hands",
        always(field("joints", lambda j: j + torch.tensor([0, 0, 40.0]))),
        "misplaced-joints",
        "data.centre",
        math.inf,
    ),
    "joints 40 mm aside in the set": Bug(
        "hands",
        always(field("joints", lambda j: j + torch.tensor([40.0, 0, 0]))),
        "misplaced-joints",
        "data.centre",
        math.inf,
    ),
    "a reference 250 mm too deep": Bug(
        "hands", always(field("reference", far_reference)), "misplaced-joints", "data.centre"
    ),
    "a reference that counts the background": Bug("hands", always(with_background), "misplaced-joints", "data.centre"),
    "depth in metres in the set": Bug(
        "hands", always(field("depth", lambda d: d / 1000)), "misplaced-joints", "data.normalisation"
    ),
    "both views the same": Bug("pairs", instead("two_views", SameViews), "mismatched-views", RANDOM),
    "one cloud for every index": Bug("clouds", always(one_cloud), "repeated-samples", "data.sampling"),
    "one sample for every index": Bug("parts", always(one_sample), "repeated-samples", "data.sampling"),
    "one scan for every index": Bug("scans", always(one_sample), "repeated-samples", "data.sampling"),
    "one image for every index": Bug("crowds", always(one_sample), "repeated-samples", "data.sampling"),
    "ten clouds for all indices": Bug("clouds", always(ten_clouds), "repeated-samples", "data.sampling"),
    "a set's own generator": Bug("clouds", samples(own_generator), "own-generator", RANDOM),
    "rooms shuffled, labels not": Bug(
        "rooms", at(0, lambda: ShuffleRoom("colours", is_turned=False), "train"), "augmentation-mismatch", MISMATCH
    ),
    "rooms shuffled, colours not": Bug(
        "rooms", at(0, lambda: ShuffleRoom("label", is_turned=False), "train"), "augmentation-mismatch", MISMATCH
    ),
    "rooms turned and shuffled, labels not": Bug(
        "rooms", at(0, lambda: ShuffleRoom("colours", is_turned=True), "train"), "augmentation-mismatch", MISMATCH
    ),
    "depth of the next frame": Bug("hands", always(next_depth), "misplaced-joints", "data.pairing", math.inf),
    "labels rolled within a batch": Bug(
        "clouds", at(None, lambda: RollRows("label")), "exchanged-rows", "data.pairing"
    ),
    "clouds rolled within a batch": Bug(
        "clouds", at(None, lambda: RollRows("points")), "exchanged-rows", "data.pairing"
    ),
    "labels flipped by collate": Bug("clouds", lambda b: with_sets(b, Collated), "exchanged-rows", "data.pairing"),
    "clouds centred over a batch": Bug("clouds", at(None, CentreBatch), "exchanged-rows", "data.padding"),
    "an empty depth image": Bug(
        "hands", always(field("depth", torch.zeros_like)), "repeated-samples", "data.missing_modality"
    ),
    "noise by a generator of the module": Bug(
        "clouds", at(None, lambda: Noise("of the module")), "data-mutation", RANDOM
    ),
    "noise by a new generator": Bug("clouds", at(None, lambda: Noise("fresh")), "data-mutation", RANDOM),
    "noise by a new generator of one seed": Bug("clouds", at(None, lambda: Noise("again")), "exchanged-rows", RANDOM),
    **{
        f"noise by {kind}": Bug("clouds", at(None, functools.partial(Noise, kind), "train"), "own-generator", RANDOM)
        for kind in ("numpy", "torch", "random", "global numpy", "global torch", "global random")
    },
}


# --- transforms without a bug -----------------------------------------------------------------------------------------


class TurnBoth(TurnPoints):
    def __call__(self, draws: Any, *, points: Tensor, normals: Tensor) -> dict[str, Tensor]:
        matrix = _turn(draws.uniform(high=6.28)).transpose(1, 2)
        return {"points": points @ matrix, "normals": normals @ matrix}


class DropPoints:
    """A random part of the points with all that belongs to them, moved to the origin and with fewer classes."""

    chooses_points = True

    def __call__(self, draws: Any, *, points: Tensor, normals: Tensor, label: Tensor) -> dict[str, Tensor]:
        order = draws.permutation(points.shape[1])[:, :48]
        pick = order[..., None].expand(-1, -1, 3)
        return {
            "points": points.gather(1, pick),
            "normals": normals.gather(1, pick),
            "label": label.gather(1, order) // 2,
        }


class FlipBoth:
    def __call__(self, draws: Any, *, image: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        left, top, right, bottom = boxes.unbind(-1)
        width = image.shape[2]
        return {"image": image.flip(2), "boxes": torch.stack([width - right, top, width - left, bottom], -1)}


class ErasePixels:
    """A grey rectangle in a random place: boxes keep theirs, as a person behind a car does."""

    def __call__(self, draws: Any, *, image: Tensor) -> dict[str, Tensor]:
        top, left = (
            int(share * (side - 40)) for share, side in zip(draws.uniform(2)[0], image.shape[1:3], strict=True)
        )
        erased = image.clone()
        erased[:, top : top + 40, left : left + 40] = 114
        return {"image": erased}


class CropBoth:
    """The left two thirds; boxes outside are taken out."""

    def __call__(
        self, draws: Any, *, image: Tensor, boxes: Tensor, label: Tensor, is_ignored: Tensor
    ) -> dict[str, Tensor]:
        width = image.shape[2] * 2 // 3
        rows = (boxes[0, :, 0] < width - 4).nonzero()[:, 0]
        limit = torch.tensor([width, 10_000] * 2)
        kept = {"boxes": torch.minimum(boxes, limit), "label": label, "is_ignored": is_ignored}
        return {"image": image[:, :, :width], **{name: value[:, rows] for name, value in kept.items()}}


class DropRows:
    """Random rows of a range image are emptied, as if lasers had failed; labels stay."""

    def __call__(self, draws: Any, *, image: Tensor) -> dict[str, Tensor]:
        is_kept = draws.uniform(image.shape[2]) > 0.2
        return {"image": image * is_kept[:, None, :, None]}


class MirrorAll:
    def __call__(self, draws: Any, *, image: Tensor, range_image: Tensor, label: Tensor) -> dict[str, Tensor]:
        noise = 0.05 * draws.normal(*image.shape[1:])
        return {"image": image.flip(3) + noise, "range_image": range_image.flip(2), "label": label.flip(2)}


class MirrorHand:
    """A left hand of a right one: depth and joints are mirrored, and the middle of the camera."""

    def __call__(
        self, draws: Any, *, depth: Tensor, joints: Tensor, camera: Tensor, reference: Tensor
    ) -> dict[str, Tensor]:
        sign, middle = torch.tensor([-1.0, 1.0, 1.0]), camera.clone()
        middle[:, 2] = depth.shape[2] - 1 - camera[:, 2]
        noise = torch.where(depth > 0, 2 * draws.normal(*depth.shape[1:]), 0.0)
        return {
            "depth": (depth + noise).flip(2),
            "joints": joints * sign,
            "reference": reference * sign,
            "camera": middle,
        }


class Jitter:
    def __call__(self, draws: Any, *, points: Tensor) -> dict[str, Tensor]:
        return {"points": points + 0.02 * draws.normal(*points.shape[1:])}


HEALTHY: dict[str, tuple[str, Callable[[TrainingSetup], TrainingSetup]]] = {
    "points and normals turned": ("clouds", at(0, TurnBoth)),
    "points moved by noise": ("clouds", at(None, Jitter)),
    "points, normals and labels shuffled": (
        "parts",
        at(0, lambda: ShufflePoints("points", "normals", "label"), "train"),
    ),
    "some points with fewer classes": ("parts", at(None, DropPoints, "train")),
    "image and boxes flipped": ("crowds", at(0, FlipBoth)),
    "pixels erased": ("crowds", at(0, ErasePixels)),
    "image cropped, boxes taken out": ("crowds", at(0, CropBoth, "train")),
    "rows of range images dropped": ("scans", at(None, DropRows, "train")),
    "range images mirrored with labels": ("scans", at(None, MirrorAll, "train")),
    "hands mirrored with joints": ("hands", at(0, MirrorHand)),
}
"""A run, and a plugin's transform that does nothing wrong."""
SHIPPED: dict[str, tuple[str, ...]] = {
    "clouds": (
        *("{name: normalize_unit_sphere}", "{name: scale}", "{name: rotate, axis: any}", "{name: perturb_rotation}"),
        *(
            "{name: translate}",
            "{name: jitter}",
            "{name: flip}",
            "{name: elastic}",
            "{name: sample_points, num_points: 24}",
        ),
        *("{name: shuffle_points}", "{name: farthest_points, num_points: 24}", "{name: drop_points}"),
    ),
    "crowds": (
        *(
            "{name: flip_image}",
            "{name: color_jitter}",
            "{name: cut_image}",
            "{name: turn_image}",
            "{name: mosaic, height: 192, width: 256, plain_epochs: 1}",
        ),
        *(
            "{name: mix_up, plain_epochs: 1}",
            "{name: fit_image, height: 192, width: 256}",
            "{name: scale_steps}",
            "{name: normalize_image}",
        ),
    ),
    "rooms": (
        *(
            "{name: rotate}",
            "{name: flip}",
            "{name: elastic}",
            "{name: chromatic_auto_contrast}",
            "{name: hue_saturation}",
        ),
        *("{name: chromatic_translation}", "{name: chromatic_jitter}", "{name: drop_colour}"),
        *("{name: voxel_sample, size_m: 0.2}", "{name: crop_points, max_points: 512}", "{name: place_on_floor}"),
        "{name: shuffle_points}",
    ),
}
"""Transforms of the package, all of them in one run."""
CODES = ("augmentation-mismatch", "own-generator", "exchanged-rows", "repeated-samples", "misplaced-joints")
ALSO = ("projection-coverage", "mismatched-views", "misplaced-volume", "misplaced-heatmap", "data-mutation")


def find(built: TrainingSetup, codes: tuple[str, ...] = (*CODES, *ALSO), forward_s: float = math.inf) -> list[Finding]:
    """What some checks find, without notes; with `forward_s` as at the start of a training."""
    all_checks()
    context = Context(built, World(), forward_s)
    return [finding for code in codes for finding in CHECKS[code](context) if finding.severity != "note"]


def is_found(bug: Bug, seed: int) -> bool:
    """Whether its check finds a planted bug, with the cause first."""
    found = find(bug.plant(RUNS[bug.run](seed)), (bug.code,), bug.forward_s)
    return bool(found) and found[0].cause == bug.cause


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    if words:
        table(BUGS, is_found, int(words[0]))
        runs = {f"{name}, seed {seed}": run(seed) for name, run in RUNS.items() for seed in range(int(words[0]))}
        runs |= {name: plant(RUNS[run](0)) for name, (run, plant) in HEALTHY.items()}
        print_alarms((name, find(built)) for name, built in runs.items())
        return
    for name, run in RUNS.items():
        context = Context(run(0), World(), 1.5)
        _ = context.dry_run, context.statistics
        times = {code: f"{seconds * 1e3:.0f} ms" for code, seconds in processor_time(CODES, context).items()}
        sys.stdout.write(f"{name}: {times}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
