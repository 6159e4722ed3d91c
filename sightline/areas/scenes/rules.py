"""Rules of scenes: crops of the training that leave out a class."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightline.areas.scenes.transforms import CropPoints
from sightline.contract.types import SampleKey
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.finding import Fault
from sightline.doctor.rules import rule

_NUM_SCENES, _NUM_CROPS = 4, 16
_MIN_SCENES, _MIN_POINTS = 2, 50
"""Scenes and points of a class from which on its share in crops is judged."""
_MIN_KEPT = 0.5
"""Share of a class in crops, as a multiple of that of all points: a crop that stays in the middle has the lowest."""


class ClassCrops(NamedTuple):
    """Shares of the points of a class, and of all points of the same scenes, that crops keep, by the mean of these.

    `error` is the standard error of the former, `place` that of the crop in transforms.train.
    """

    name: str
    kept: float
    of_all: float
    error: float
    place: int


@measure()
def class_crops(run: Any) -> list[ClassCrops]:
    """Crop a few scenes of the training several times, each as it reaches `crop_points`; by class."""
    part, facts = run.built.data.train, run.built.data.facts
    pipeline, num_classes = part.reader.transforms, int(facts.get("num_classes", 0))
    owners = [getattr(bound.function, "__self__", None) for bound in pipeline.functions]
    places = [place for place, owner in enumerate(owners) if isinstance(owner, CropPoints)]
    if not places or not num_classes or not len(part.indices):
        raise NotApplicableError("no crops")
    shares = []
    for index in part.evenly_spaced_indices(_NUM_SCENES):
        key = SampleKey(int(index), 0, run.config.seed)
        stages = (batch for _, batch in part.reader.batch_stages(key))
        before = next(batch for place, batch in enumerate(stages) if place == places[0])
        counts = _count(before["label"], num_classes, facts.get("ignore_index"))
        for crop in range(_NUM_CROPS):
            after = pipeline.apply_one(places[0], before, [SampleKey(key.index, crop, key.seed)])
            kept = _count(after["label"], num_classes, facts.get("ignore_index"))
            shares.append(torch.stack([counts, kept]))
    return _compare(torch.stack(shares), list(facts.get("class_names", range(num_classes))), places[0])


def _count(label: Tensor, num_classes: int, ignored: int | None) -> Tensor:
    """Count the points (num_classes,) of each class."""
    is_class = (label >= 0) & (label < num_classes) & (label != (-1 if ignored is None else ignored))
    return label[is_class].long().bincount(minlength=num_classes)


def _compare(counts: Tensor, names: list[Any], place: int) -> list[ClassCrops]:
    """Compare the classes by their points before and after each crop, counts (N, 2, num_classes)."""
    found = []
    for number, name in enumerate(names):
        before, after = counts[:, :, number].double().unbind(dim=1)
        has_class = before > 0
        if int(has_class.sum()) < _MIN_SCENES * _NUM_CROPS or int(before.sum()) < _MIN_POINTS * _NUM_CROPS:
            continue
        kept = after[has_class] / before[has_class]
        all_before, all_after = counts[has_class].sum(dim=2).double().unbind(dim=1)
        error = float(kept.std()) / math.sqrt(len(kept))
        found.append(ClassCrops(str(name), float(kept.mean()), float((all_after / all_before).mean()), error, place))
    return found


@rule(
    "cropped-class",
    "warning",
    "data.sampling data.imbalance cfg.override",
    holds="crops of the training with at least half as large a share of each class as of all points",
    do="raise max_points of crop_points, thin scenes before it (voxel_sample), or look at how far points lie apart",
    is_statistical=True,
)
def cropped_class(class_crops: list[ClassCrops], run: Any) -> Fault | None:
    """Look for a class of which crops keep less than half of what they keep of all points."""
    lost = [each for each in class_crops if each.kept + 2 * each.error < _MIN_KEPT * each.of_all]
    if not lost:
        return None
    worst = min(lost, key=lambda each: each.kept / each.of_all)
    return Fault(
        f"crops leave out {1 - worst.kept:.0%} of the points of '{worst.name}', a class that training hardly sees",
        measured=f"{worst.kept:.1%} of its points are kept, {worst.of_all:.1%} of all points of the same scenes; "
        f"{len(lost)} of {len(class_crops)} classes are such",
        where=run.place(f"transforms.train.{worst.place}"),
    )
