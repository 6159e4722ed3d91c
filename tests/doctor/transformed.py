"""Small runs whose plugin transforms or data sets have planted bugs, each as a user would write it.

`python -m tests.doctor.transformed 3` prints with how many of three seeds each is found, `python -m
tests.doctor.transformed` the processor time of the checks on healthy runs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sightline.config import read_config
from sightline.contract.types import Sample, SampleKey
from sightline.doctor.finding import Finding
from sightline.engine.build import DataSubset, TrainingSetup, build, build_transforms
from sightline.engine.distributed import World
from sightline.store.loading.batch_reader import BatchReader, NamedTransform
from sightline.workbench.check.context import CHECKS, Context
from sightline.workbench.check.suite import all_checks
from tests.conftest import ROOT
from tests.doctor.detecting import make_crowds
from tests.doctor.pairing import make_pairs
from tests.doctor.planted_transforms import (
    CentreBatch,
    Collated,
    CropBoth,
    DropPoints,
    DropRows,
    ErasePixels,
    FlipBoth,
    FlipBoxesWrongly,
    FlipImages,
    Jitter,
    Metres,
    MirrorAll,
    MirrorDepth,
    MirrorHand,
    MirrorPoints,
    MoveJoints,
    MoveRangeImage,
    Noise,
    OwnProjection,
    RollLabels,
    RollRows,
    SameViews,
    ShiftImages,
    ShrinkImages,
    ShufflePoints,
    ShuffleRoom,
    StretchPoints,
    TurnBoth,
    TurnNormalsBack,
    TurnPoints,
    TurnVolume,
    edit_always,
    far_reference,
    field,
    next_depth,
    one_cloud,
    one_sample,
    own_generator,
    ten_clouds,
    with_background,
)
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
    small = (f"transforms.{stage}.0.size=24" for stage in ("train", "evaluate"))
    return make_pose(_folder(), *small, f"seed={seed}", f"data.data_seed={seed}", *overrides)


def pairs(seed: int, *overrides: str) -> TrainingSetup:
    return make_pairs(_folder(), f"seed={seed}", f"data.data_seed={seed}", *overrides)


def _folder() -> Path:
    return Path(tempfile.mkdtemp())


RUNS = {run.__name__: run for run in (clouds, parts, crowds, scans, rooms, hands, pairs)}


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
    "depth mirrored in the set": Bug(
        "hands", always(field("depth", lambda d: d.flip(-1))), "misplaced-joints", "data.augment_target_mismatch"
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
        "hands", always(field("depth", torch.zeros_like)), "repeated-samples", "data.corrupt_sample"
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
CODES = (
    *(
        "augmentation-mismatch",
        "own-generator",
        "exchanged-rows",
        "repeated-samples",
        "misplaced-joints",
        "label-channel",
    ),
)
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
    all_checks()
    timed = {name: run(0) for name, run in RUNS.items()}
    timed |= {name: plant(RUNS[run](0)) for name, (run, plant) in HEALTHY.items()}
    for name, built in timed.items():
        context = Context(built, World(), 1.5)
        _ = context.dry_run, context.statistics  # which other checks read, too
        times = {code: f"{seconds * 1e3:.0f} ms" for code, seconds in processor_time(CODES, context).items()}
        sys.stdout.write(f"{name}: {times}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
