"""Predictions in files, whoever made them, scored against the labels of a data set; no run and no model is needed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.binding import AvailableKeys, UnknownKeyError, bind
from sightline.data.files.array_files import read_npy
from sightline.data.files.scan_files import read_label_ids
from sightline.data.scans.submission import without_endings
from sightline.engine.build import DataSubset, build_metrics
from sightline.engine.evaluate import BoundMetric, Evaluation, MetricResult, make_evaluation
from sightline.errors import ConfigError, DataError
from sightline.evaluation.saved_predictions import MANIFEST, file_stems, label_files
from sightline.geometry.scans.projection import point_ranges
from sightline.metrics.base import make_state
from sightline.optional_members import DataMembers, MetricMembers
from sightline.runs.run_documents import load_document
from sightline.types import ComponentConfig, SampleKey

__all__ = ["ExternalPredictions", "score_labels"]

_MOST_NAMED = 3


class ExternalPredictions:
    """The predicted labels of a part's samples: a folder of `evaluate --save-predictions`, or `.label` files.

    The latter lie as SemanticKITTI's evaluator has them, `sequences/08/predictions/000000.label`, or are called after
    the samples, as `predict` and `evaluate` name them, and hold ids of the set's label map. `surplus` are files that
    belong to no sample of the part.
    Raises DataError for samples without a file, and for a folder of other classes.
    """

    def __init__(self, path: Path, part: DataSubset) -> None:
        self._part = part
        self._map = DataMembers.label_map.get(part.dataset)
        names = [part.sample_name(index) for index in part.indices.tolist()]
        if not path.is_dir():
            raise DataError(f"--predictions {path}: there is no such folder")
        if (path / MANIFEST).is_file():
            files, self.surplus = _kept(path, names, part)
        else:
            if self._map is None:
                raise DataError(f"--predictions {path}: has no {MANIFEST}; .label files are of sets with a label map")
            files = _label_files(path, names)
            self.surplus = sorted({*path.rglob("*.label")} - {*files})
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise DataError(
                f"--predictions {path}: {len(missing)} of {len(files)} {part.split} samples have no predictions: "
                f"{_named(missing)}{_other(self.surplus)}"
            )
        self._files = dict(zip(part.indices.tolist(), files, strict=True))

    def labels_for(self, index: int, *, num_points: int) -> np.ndarray:
        """The classes (N,) int64 of a sample. Raises DataError naming the file for another length and unknown ids."""
        file, name = self._files[index], self._part.sample_name(index)
        if file.suffix == ".label":
            ids = read_label_ids(file, num_points=num_points, points_path=Path(name))
            classes: np.ndarray = self._map.classes(ids, where=str(file))
            return classes
        labels = read_npy(file)
        if labels.shape != (num_points,) or labels.dtype.kind not in "iu":
            raise DataError(f"{file}: holds {labels.dtype} {labels.shape}, {name} has {num_points} points")
        return labels.astype(np.int64)


def score_labels(
    part: DataSubset, components: Sequence[ComponentConfig], given: ExternalPredictions
) -> tuple[Evaluation, list[str]]:
    """The metrics of these blocks over a part, and the names of those that need more than labels of points.

    Every sample is read whole, without transforms: every original point counts once. Raises ConfigError where no metric
    can be computed, DataError for predictions that do not fit.
    """
    started = time.perf_counter()
    offers = (
        AvailableKeys("the data set", frozenset(part.dataset.info.fields)),
        AvailableKeys("files of predictions", _OFFERED),
    )
    measured, others = [], []
    for component, metric in zip(components, build_metrics(components, part.dataset.info.facts), strict=True):
        try:
            update = MetricMembers.update_labels.get(metric)
            if update is None:
                raise UnknownKeyError(f"metrics.{component.name} needs more than labels")
            meter = BoundMetric(metric, bind(update, *offers, owner=f"metrics.{component.name}", exclude=("state",)))
        except UnknownKeyError:
            others.append(component.name)
            continue
        measured.append(MetricResult(meter, "", make_state(metric, num_samples=int(part.indices.max()) + 1)))
    if not measured:
        raise ConfigError(f"metrics: none of {', '.join(others)} is computed from labels of points; iou is")
    needs_range = any("point_range" in one.metric.update.names for one in measured)
    for index in part.indices.tolist():
        sample = part.dataset[SampleKey(index, 0, 0)]
        predictions = _predictions(sample, index, given)
        if needs_range:
            predictions["point_range"] = point_ranges(sample["points"].view(-1, 3))
        for one in measured:
            one.metric.update.function(one.state, **one.metric.update.select(sample, predictions))
    seconds = time.perf_counter() - started
    return make_evaluation(measured, num_samples=len(part.indices), seconds=seconds), others


_OFFERED = frozenset({"labels", "target", "cloud_offsets", "point_range", "sample_index"})


def _predictions(sample: Mapping[str, Any], index: int, given: ExternalPredictions) -> dict[str, Tensor]:
    """What metrics are given of a sample, as evaluation would."""
    target = sample["label"].flatten()
    return {
        "labels": torch.from_numpy(given.labels_for(index, num_points=len(target))),
        "target": target,
        "cloud_offsets": torch.tensor([0, len(target)]),
        "sample_index": torch.tensor([index]),
    }


def _label_files(path: Path, names: Sequence[str]) -> list[Path]:
    """The file of each scan: as `evaluate` names it, or `predict`, in folders or not; else the first of these names."""
    bare = without_endings(names)
    times = Counter(PurePosixPath(name).name for name in bare)
    earlier = file_stems(names)  # which had the endings of the scans' files
    files = []
    for name, first, old in zip(bare, label_files(names), earlier, strict=True):
        last = PurePosixPath(name).name
        others = [f"{name}.label", *([f"{last}.label"] if times[last] == 1 else []), f"{old}.label"]
        places = [path / each for each in (first, *others)]
        files.append(next((place for place in places if place.is_file()), places[0]))
    return files


def _kept(path: Path, names: Sequence[str], part: DataSubset) -> tuple[list[Path], list[Path]]:
    """The files of samples by their names in the manifest, and those of other samples."""
    document = load_document(path / MANIFEST)
    try:
        held = {entry["name"]: path / entry["file"] for entry in document["samples"]}
        classes = list(document["class_names"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{path / MANIFEST}: names no files of labels ({error!r}); evaluate the run again") from None
    own = list(part.dataset.info.facts.get("class_names", ()))
    if classes != own:
        raise DataError(f"{path / MANIFEST}: is of the classes {', '.join(classes)}; the data set has {', '.join(own)}")
    return [held.pop(name, path / name) for name in names], sorted(held.values())


def _named(files: Sequence[Path]) -> str:
    more = f" and {len(files) - _MOST_NAMED} more" if len(files) > _MOST_NAMED else ""
    return f"{', '.join(map(str, files[:_MOST_NAMED]))}{more}"


def _other(surplus: Sequence[Path]) -> str:
    return f"; of other samples there are {len(surplus)}: {_named(surplus)}" if surplus else ""
