"""Rules of point clouds: labels among the parts of their category, one order of points and labels, padding, normals."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sightline.contract.types import Batch, SampleKey
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.finding import Fault
from sightline.doctor.rules import rule

_MIN_CLOUDS, _MIN_PAIRS, _MIN_AGREEMENT, _NUM_QUERIES = 2, 200, 0.2, 256
_MIN_PADDED, _MIN_PADDED_SHARE, _MIN_TURN_RAD, _NUM_TURNED = 4, 0.1, 0.02, 4


@rule(
    "label-outside-parts",
    "error",
    "data.label_mapping data.pairing data.corrupt_sample",
    holds="each label of a point among the parts of its object's category, or the ignore index",
    do="correct the numbering of labels or categories or the fact parts_of_category, or pair samples with their labels",
)
def label_outside_parts(run: Any, surveys: list[Any]) -> Iterator[Fault]:
    """Compare the labels of each object with the parts of its category."""
    for survey in surveys:
        facts = survey.part.dataset.info.facts
        table = [set(parts) for parts in facts.get("parts_of_category", ())] if "num_parts" not in facts else []
        if not table:
            raise NotApplicableError("no parts")
        where = run.locate(survey.part.split, config_path="data")
        if survey.num_sampled and "category" not in survey.fields:
            yield Fault("samples have no 'category'", measured=f"{len(table)} lists of parts", where=where)
            return
        known = [
            labelling
            for labelling in survey.labellings
            if labelling.category is not None and labelling.category < len(table)
        ]
        labels = {labelling.sample: set(labelling.classes.tolist()) & set().union(*table) for labelling in known}
        strays = [labelling for labelling in known if not labels[labelling.sample] <= table[labelling.category]]
        if strays:
            fitting = [
                {k for k, parts in enumerate(table) if labels[labelling.sample] <= parts} for labelling in strays
            ]
            same = [sum(other.category == labelling.category for other in known) for labelling in strays]
            is_mapping = 2 * len(strays) > same[0] > 1 and not _is_varied(strays, fitting)
            first = sorted(labels[strays[0].sample] - table[strays[0].category])
            yield Fault(
                f"a sample of category {strays[0].category} has the part {first[0]}, which is not one of its parts",
                measured=f"so in {len(strays)} of {len(known)} samples; the first is {strays[0].sample}",
                causes=["data.label_mapping"]
                if is_mapping
                else ["data.pairing"]
                if any(fitting)
                else ["data.corrupt_sample"],
                where=where,
            )
            return


def _is_varied(strays: list[Any], fitting: list[set[int]]) -> bool:
    """Return True if objects of most categories have the parts of several others: labels of other samples."""
    fits_by_category: dict[int, set[int]] = {}
    for labelling, fits in zip(strays, fitting, strict=True):
        if len(fits) == 1:
            fits_by_category.setdefault(labelling.category, set()).update(fits)
    return len(fits_by_category) > 1 and 2 * sum(len(fits) > 1 for fits in fits_by_category.values()) > len(
        fits_by_category
    )


@rule(
    "scattered-labels",
    "warning",
    "data.pairing data.ordering data.augment_target_mismatch",
    holds="labels that points next to one another share far more often than by chance",
    do="read and move labels in the order of the points: a sort, a shuffle, or a sample of one of them alone",
    is_statistical=True,
)
def scattered_labels(run: Any) -> Fault | None:
    """Compare the labels of points with those of their nearest ones."""
    batch, ignored = run.dry_run.batch, run.built.data.facts.get("ignore_index")
    pairs = []
    for points, label in _split_clouds(batch) if "label" in run.dry_run.batch_reads else ():
        is_labelled = label != (-1 if ignored is None else ignored)
        points, label = points[is_labelled], label[is_labelled]
        shares = label.unique(return_counts=True)[1].double() / max(1, len(label))
        if len(shares) > 1:
            some = torch.arange(0, len(points), max(1, len(points) // _NUM_QUERIES))
            distances = torch.cdist(points[some], points)
            distances[torch.arange(len(some)), some] = torch.inf
            is_equal = label[some] == label[distances.argmin(dim=1)]
            chance = float(shares.square().sum()) * len(some)
            pairs.append((float(is_equal.sum()) - chance, len(some) - chance, len(some)))
    above, most, count = torch.tensor(pairs, dtype=torch.float64).reshape(-1, 3).sum(dim=0).tolist()
    if len(pairs) < _MIN_CLOUDS or count < _MIN_PAIRS:
        raise NotApplicableError("no labels of points")
    if above >= _MIN_AGREEMENT * most:
        return None
    return Fault(
        "labels are scattered over the points: nearest points have the same label about as often as by chance",
        measured=f"{above / most:.0%} of the way from chance to always, for {count:.0f} points of {len(pairs)} clouds",
        where=run.locate("train", config_path="data"),
    )


def _split_clouds(batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the points (N, 3) and labels (N,) of each cloud of a batch."""
    points, label, offsets = batch.get("points"), batch.get("label"), batch.get("offsets")
    if not isinstance(points, Tensor) or not isinstance(label, Tensor) or label.shape != points.shape[:-1]:
        raise NotApplicableError("no labels of points")
    sizes = offsets.diff().tolist() if points.ndim == 2 and isinstance(offsets, Tensor) else [1] * len(points)
    for cloud, labels in zip(points.cpu().float().split(sizes), label.cpu().split(sizes), strict=True):
        yield cloud.reshape(-1, 3), labels.flatten()


@rule(
    "padded-points",
    "warning",
    "data.padding data.corrupt_sample",
    holds="points of the object alone; or a mask, or the label ignore_index, for rows that fill a cloud up",
    do="give clouds their own sizes (collate='concatenate'), or sample them to one size, or mask the rest",
    is_statistical=True,
)
def padded_points(run: Any, surveys: list[Any]) -> Iterator[Fault]:
    """Look for clouds that end with equal points, which nothing leaves out."""
    for survey in surveys:
        padding = survey.fields["points"].padded if "points" in survey.fields else {}
        padded = {index: count for index, count in padding.items() if count >= _MIN_PADDED}
        is_masked = any("mask" in name or "valid" in name for name in survey.fields)
        if len(padded) < max(2, _MIN_PADDED_SHARE * survey.num_sampled) or is_masked:
            continue
        index, count = max(padded.items(), key=lambda item: item[1])
        label = survey.part.dataset[SampleKey(index, 0, run.config.seed)].get("label")
        ignored = survey.part.dataset.info.facts.get("ignore_index")
        if ignored is not None and isinstance(label, Tensor) and label.ndim and bool((label[-count:] == ignored).all()):
            continue
        yield Fault(
            f"clouds end with points that are all the same: {len(padded)} of {survey.num_sampled}",
            measured=f"the last {count} points of sample {index}, without a mask",
            where=run.locate(survey.part.split, sample=index, config_path="data"),
        )
        return


@rule(
    "augmentation-mismatch",
    "error",
    "data.augment_target_mismatch data.layout",
    holds="normals turned by the inverse transpose of what turns their points",
    do="let the transform take points and normals, and move them by the same numbers",
)
def turned_normals(run: Any) -> Iterator[Fault]:
    """Compare what each transform does to normals with the linear map that it does to their points."""
    part, stages = run.built.data.train, []
    if "normals" not in part.dataset.info.fields:
        raise NotApplicableError("no normals")
    for index in part.evenly_spaced_indices(_NUM_TURNED):
        stages = list(part.reader.batch_stages(SampleKey(int(index), 0, run.config.seed)))
        for number, ((_, before), (name, after)) in enumerate(itertools.pairwise(stages)):
            error, turn = _measure_turn(before, after)
            if error > max(_MIN_TURN_RAD, turn / 2):
                yield Fault(
                    f"the transform '{name}' moves points and normals differently",
                    measured=f"points turn normals by {turn:.3g} rad, these are {error:.3g} rad off (medians)",
                    where=run.locate("train", sample=int(index), config_path=f"transforms.train.{number}"),
                )
                return


def _measure_turn(before: Batch, after: Batch) -> tuple[float, float]:
    """Measure the angles between normals and where the points' map puts them, and by which it turns them; 0 without."""
    values = [batch.get(name) for batch in (before, after) for name in ("points", "normals")]
    fields = [value for value in values if isinstance(value, Tensor) and value.ndim == 3]
    if len(fields) < 4 or len({field.shape for field in fields}) > 1:
        return 0.0, 0.0
    points, normals, moved, turned = (field[0].double() for field in fields)
    centred, target = points - points.mean(dim=0), moved - moved.mean(dim=0)
    matrix = torch.linalg.lstsq(centred, target, driver="gelsd").solution
    residual = float((target - centred @ matrix).square().mean() / target.square().mean().clamp(min=1e-30))
    if residual > 1e-6 or abs(float(torch.linalg.det(matrix))) < 1e-12:
        return 0.0, 0.0
    expected = normals @ torch.linalg.inv(matrix).T
    angles = []
    for other in (turned, normals):
        cosines = (expected * other).sum(dim=1).abs() / (expected.norm(dim=1) * other.norm(dim=1)).clamp(min=1e-12)
        angles.append(float(cosines.clamp(max=1).acos().median()))
    return angles[0], angles[1]
