"""Scoring of label files of any model against the labels of a data set; no run and no model is needed."""

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

_MAX_NAMED = 3


class ExternalPredictions:
    """Predicted labels of a split's samples, from a folder of `evaluate --save-predictions` or of `.label` files.

    `.label` files have the paths of SemanticKITTI's evaluator, `sequences/08/predictions/000000.label`, or the names of
    the samples, as `predict` and `evaluate` write them, and contain ids of the set's label map. `surplus` are files of
    no sample of the split.
    Raises DataError for samples without a file, and for a folder of other classes.
    """

    def __init__(self, path: Path, part: DataSubset) -> None:
        self._part = part
        self._map = DataMembers.label_map.get(part.dataset)
        names = [part.sample_name(index) for index in part.indices.tolist()]
        if not path.is_dir():
            raise DataError(f"{path}: there is no such folder")
        if (path / MANIFEST).is_file():
            files, self.surplus = _read_manifest_files(path, names, part)
        else:
            if self._map is None:
                raise DataError(f"{path}: has no {MANIFEST}; .label files are of sets with a label map")
            files = _find_label_files(path, names)
            self.surplus = sorted({*path.rglob("*.label")} - {*files})
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise DataError(
                f"{path}: {len(missing)} of {len(files)} {part.split} samples have no predictions: "
                f"{_format_files(missing)}{_format_surplus(self.surplus)}"
            )
        self._files = dict(zip(part.indices.tolist(), files, strict=True))

    def labels_for(self, index: int, *, num_points: int) -> np.ndarray:
        """Read the classes (N,) int64 of a sample. Raises DataError for a wrong length, and for unknown ids."""
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
    """Compute metrics over a split from predicted labels; also return names of metrics that need more than labels.

    Every sample is read whole, without transforms: every original point counts once. Raises ConfigError where no metric
    can be computed, DataError for predictions that do not fit.
    """
    started = time.perf_counter()
    available_keys = (
        AvailableKeys("the data set", frozenset(part.dataset.info.fields)),
        AvailableKeys("files of predictions", _PREDICTION_KEYS),
    )
    results, others = [], []
    for component, metric in zip(components, build_metrics(components, part.dataset.info.facts), strict=True):
        try:
            update = MetricMembers.update_labels.get(metric)
            if update is None:
                raise UnknownKeyError(f"metrics.{component.name} needs more than labels")
            meter = BoundMetric(
                metric, bind(update, *available_keys, owner=f"metrics.{component.name}", exclude=("state",))
            )
        except UnknownKeyError:
            others.append(component.name)
            continue
        results.append(MetricResult(meter, "", make_state(metric, num_samples=int(part.indices.max()) + 1)))
    if not results:
        raise ConfigError(f"metrics: none of {', '.join(others)} is computed from labels of points; iou is")
    needs_range = any("point_range" in result.metric.update.names for result in results)
    for index in part.indices.tolist():
        sample = part.dataset[SampleKey(index, 0, 0)]
        predictions = _make_predictions(sample, index, given)
        if needs_range:
            predictions["point_range"] = point_ranges(sample["points"].view(-1, 3))
        for result in results:
            result.metric.update.function(result.state, **result.metric.update.select(sample, predictions))
    seconds = time.perf_counter() - started
    return make_evaluation(results, num_samples=len(part.indices), seconds=seconds), others


_PREDICTION_KEYS = frozenset({"labels", "target", "cloud_offsets", "point_range", "sample_index"})


def _make_predictions(sample: Mapping[str, Any], index: int, labels_of_files: ExternalPredictions) -> dict[str, Tensor]:
    """Build the keys that metrics read of a sample, as in an evaluation."""
    target = sample["label"].flatten()
    return {
        "labels": torch.from_numpy(labels_of_files.labels_for(index, num_points=len(target))),
        "target": target,
        "cloud_offsets": torch.tensor([0, len(target)]),
        "sample_index": torch.tensor([index]),
    }


def _find_label_files(path: Path, names: Sequence[str]) -> list[Path]:
    """Find the file of each scan, named as by `evaluate` or `predict`, in sub-folders or not."""
    bare = without_endings(names)
    times = Counter(PurePosixPath(name).name for name in bare)
    earlier = file_stems(names)  # which had the endings of the scans' files
    files = []
    for name, first, old in zip(bare, label_files(names), earlier, strict=True):
        last = PurePosixPath(name).name
        others = [f"{name}.label", *([f"{last}.label"] if times[last] == 1 else []), f"{old}.label"]
        candidates = [path / name for name in (first, *others)]
        files.append(next((path for path in candidates if path.is_file()), candidates[0]))
    return files


def _read_manifest_files(path: Path, names: Sequence[str], part: DataSubset) -> tuple[list[Path], list[Path]]:
    """Return the files of samples by their names in the manifest, and those of other samples."""
    document = load_document(path / MANIFEST)
    try:
        file_by_name = {entry["name"]: path / entry["file"] for entry in document["samples"]}
        classes = list(document["class_names"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{path / MANIFEST}: names no files of labels ({error!r}); evaluate the run again") from None
    class_names = list(part.dataset.info.facts.get("class_names", ()))
    if classes != class_names:
        raise DataError(
            f"{path / MANIFEST}: is of the classes {', '.join(classes)}; the data set has {', '.join(class_names)}"
        )
    return [file_by_name.pop(name, path / name) for name in names], sorted(file_by_name.values())


def _format_files(files: Sequence[Path]) -> str:
    more = f" and {len(files) - _MAX_NAMED} more" if len(files) > _MAX_NAMED else ""
    return f"{', '.join(map(str, files[:_MAX_NAMED]))}{more}"


def _format_surplus(surplus: Sequence[Path]) -> str:
    return f"; of other samples there are {len(surplus)}: {_format_files(surplus)}" if surplus else ""
