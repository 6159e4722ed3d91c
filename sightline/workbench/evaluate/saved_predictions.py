"""Saved predictions of an evaluation, as label files with a manifest, and their scores by the labels of a data set."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.config import RunConfig
from sightline.contract import registry
from sightline.contract.binding import AvailableKeys, UnknownKeyError, bind
from sightline.contract.errors import ConfigError, DataError, UserError, join_some
from sightline.contract.metric import make_state
from sightline.contract.types import Batch, ComponentConfig, Folds, SampleKey
from sightline.engine.build import build_metrics
from sightline.engine.distributed import World
from sightline.engine.evaluate import BoundMetric, Evaluation, MetricResult, make_evaluation
from sightline.engine.run_data import DataSubset
from sightline.ops.views.projection import point_ranges
from sightline.parts.metrics.predicted_labels import predict_labels
from sightline.runs.run_documents import load_document
from sightline.store.files.array_files import read_npy
from sightline.store.files.atomic_write import REPEAT, disk_failure
from sightline.store.files.scan_files import read_label_ids, write_label_ids
from sightline.store.files.scan_reading import without_endings
from sightline.store.scans.label_files import LABEL_FILES, LabelFiles, collect_extras

MANIFEST = "manifest.json"
"""Name of the manifest, which is written last: a folder with it is complete."""
_MAX_STEM_BYTES = 120
_LABEL_DTYPE = np.int16
"""Data type of label files; class indices are far below its bound, and a room of 80 million points takes 160 MB."""


class LabelWriter:
    """Writer of an evaluation's predicted labels, called by an `Evaluator` batch by batch, on every process.

    Samples with a label per point have a file each, int16 (N,) in the order of the points that were scored: those of
    the whole cloud if evaluation thins it and predicts all its points. For LiDAR scans a label file of the benchmark
    contains the same as ids, at the path of its evaluator, or next to it. Samples with one label have it in the
    manifest. An earlier manifest of the folder is removed at the first batch.
    """

    writes = "probabilities"
    """Predictions of a task that are written."""

    def __init__(self, path: Path, part: DataSubset, world: World) -> None:
        self.path = path
        self._part = part
        self._facts = part.dataset.info.facts
        form = part.dataset.info.scans
        self._ids = None if form is None else np.array(form.ids_of_classes, dtype=np.uint32)
        self._form = LABEL_FILES[form.label_form if form is not None else "semantic_kitti"]
        self._world = world
        indices = part.indices.tolist()
        names = [part.sample_name(index) for index in indices]
        self._stems = dict(zip(indices, file_stems(names), strict=True))
        self._label_files = dict(zip(indices, label_files(names, self._form), strict=True))
        self._entries: list[dict[str, Any]] = []
        self._directory = world.run_directory(path)
        self._directory.remove(MANIFEST)

    def __call__(self, batch: Batch, predictions: Mapping[str, Any]) -> None:
        """Store the predicted labels of a batch. Raises RunError if the disk refuses them."""
        predicted_labels = predict_labels(batch, predictions, self._facts)
        for row, (index, predicted) in enumerate(zip(batch["sample_index"].tolist(), predicted_labels, strict=True)):
            entry: dict[str, Any] = {"name": self._part.sample_name(index), "index": index}
            if predicted.ndim:
                file = f"{self._stems[index]}.npy"
                labels = predicted.cpu().numpy()
                with self._writing(file) as path:
                    np.save(path, labels.astype(_LABEL_DTYPE))
                entry |= {"file": file, "num_points": len(predicted)}
                if self._ids is not None:
                    entry["label_file"] = self._label_files[index]
                    with self._writing(entry["label_file"]) as path:
                        write_label_ids(path, self._ids[labels])
            else:
                probability = float(predictions["probabilities"][row, predicted])
                entry |= {"answer": int(predicted), "probability": probability}
                entry |= {"label": int(batch["label"][row])} if "label" in batch else {}
            self._entries.append(entry)

    def finish(self, evaluation: Evaluation, about: Mapping[str, Any]) -> None:
        """Write the manifest, which begins with `about`, with the IoU of samples, if any. Called on every process."""
        shares = self._world.gather_text(json.dumps(self._entries), operation="kept predictions")
        entries = sorted((entry for text in shares for entry in json.loads(text)), key=lambda entry: entry["index"])
        ious = _sample_ious(evaluation)
        for entry in entries:
            if ious is not None:
                entry["iou"] = float(ious[entry["index"]])
        document = {**about, "class_names": list(self._facts.get("class_names", ())), "samples": entries}
        if self._ids is not None:
            for path, content in collect_extras(self._form, [Path(entry["label_file"]) for entry in entries]).items():
                self._directory.write_bytes(str(path), content)
        self._directory.write_json(MANIFEST, document)

    @contextmanager
    def _writing(self, file: str) -> Iterator[Path]:
        path = self.path / file
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield path
        except OSError as error:
            raise disk_failure(error, path, again=REPEAT) from error


def label_files(names: Sequence[str], form: LabelFiles) -> list[str]:
    """Return the path of each scan's label file in the folder of predictions, without the ending of the scan's name."""
    stems = file_stems(without_endings(names))
    return [str(form.path_of(name) or f"{stem}{form.ending}") for name, stem in zip(names, stems, strict=True)]


def file_stems(names: Sequence[str]) -> list[str]:
    """Return a unique file name without ending for each sample, the sample's name if possible.

    Long names are cut, so that endings and a second stem of this kind fit behind them.
    """
    cut = [re.sub(r"[^\w.-]+", "_", name).encode()[:_MAX_STEM_BYTES].decode(errors="ignore") for name in names]
    stems = [stem.strip("._") or "sample" for stem in cut]
    times = Counter(stem.lower() for stem in stems)  # some file systems know no capitals
    taken = set(times)
    result = []
    for index, stem in enumerate(stems):
        if times[stem.lower()] > 1:
            stem = next(s for n in range(len(stems) + 1) if (s := f"{stem}.{index + n}").lower() not in taken)
            taken.add(stem.lower())
        result.append(stem)
    return result


def _sample_ious(evaluation: Evaluation) -> Tensor | None:
    """Return the IoU of each sample by the saved predictions: the averaged ones, if there are votes."""
    for result in evaluation.results:
        per_sample = result.metric.metric.per_sample
        if per_sample is not None and result.suffix == evaluation.results[-1].suffix:
            return per_sample(result.state)
    return None


_MAX_NAMED = 3


class ExternalPredictions:
    """Predicted labels of a split's samples, from a folder of `evaluate --save-predictions` or of label files.

    Label files have the paths of the benchmark's evaluator, such as `sequences/08/predictions/000000.label`, or the
    names of the samples, as `predict` and `evaluate` write them, and contain ids of the set's label map. `surplus` are
    files of no sample of the split.
    Raises DataError for samples without a file, and for a folder of other classes.
    """

    def __init__(self, path: Path, part: DataSubset) -> None:
        self._part = part
        self._map, scans = part.dataset.label_map, part.dataset.info.scans
        form = LABEL_FILES["semantic_kitti" if scans is None else scans.label_form]
        names = [part.sample_name(index) for index in part.indices.tolist()]
        if not path.is_dir():
            what = "is a file; give the folder of the predictions" if path.exists() else "there is no such folder"
            raise DataError(f"{path}: {what}")
        if (path / MANIFEST).is_file():
            files, self.surplus = _read_manifest_files(path, names, part)
        else:
            if self._map is None:
                raise DataError(f"{path}: has no {MANIFEST}; {form.ending} files are of sets with a label map")
            files = _find_label_files(path, names, form)
            self.surplus = sorted({*path.rglob(f"*{form.ending}")} - {*files})
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
        if file.suffix != ".npy":
            ids = read_label_ids(file, num_points=num_points, points_path=Path(name))
            classes: np.ndarray = self._map.classes(ids, where=str(file))
            return classes
        labels = read_npy(file)
        if labels.shape != (num_points,) or labels.dtype.kind not in "iu":
            raise DataError(f"{file}: holds {labels.dtype} {labels.shape}, {name} has {num_points} points")
        return labels.astype(np.int64)


def score_labels(
    part: DataSubset, components: Sequence[ComponentConfig], external: ExternalPredictions
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
    results, skipped = [], []
    for component, metric in zip(components, build_metrics(components, part.dataset.info.facts), strict=True):
        try:
            update = metric.update_labels
            if update is None:
                raise UnknownKeyError(f"metrics.{component.name} needs more than labels")
            meter = BoundMetric(
                metric, bind(update, *available_keys, owner=f"metrics.{component.name}", exclude=("state",))
            )
        except UnknownKeyError:
            skipped.append(component.name)
            continue
        results.append(MetricResult(meter, "", make_state(metric, num_samples=int(part.indices.max()) + 1)))
    if not results:
        raise ConfigError(f"metrics: none of {', '.join(skipped)} is computed from labels of points; iou is")
    needs_range = any("point_range" in result.metric.update.names for result in results)
    for index in part.indices.tolist():
        sample = part.dataset[SampleKey(index, 0, 0)]
        predictions = _make_predictions(sample, index, external)
        if needs_range:
            predictions["point_range"] = point_ranges(sample["points"].view(-1, 3))
        for result in results:
            result.metric.update.function(result.state, **result.metric.update.select(sample, predictions))
    seconds = time.perf_counter() - started
    return make_evaluation(results, num_samples=len(part.indices), seconds=seconds), skipped


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


def _find_label_files(path: Path, names: Sequence[str], form: LabelFiles) -> list[Path]:
    """Find the file of each scan, named as by `evaluate` or `predict`, in sub-folders or not."""
    bare, first = without_endings(names), label_files(names, form)
    alternatives = [
        [f"{name}{form.ending}" for name in bare],
        [f"{PurePosixPath(name).name}{form.ending}" for name in bare],
        [PurePosixPath(file).name for file in first],
    ]
    times = [Counter(files) for files in alternatives]
    found = []
    for candidates in zip(first, *alternatives, strict=True):
        unique = [file for file, count in zip(candidates[1:], times, strict=True) if count[file] == 1]
        paths = [path / file for file in (candidates[0], *unique)]
        found.append(next((path for path in paths if path.is_file()), paths[0]))
    return found


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
    return join_some([*map(str, files)], most=_MAX_NAMED)


def _format_surplus(surplus: Sequence[Path]) -> str:
    return f"; of other samples there are {len(surplus)}: {_format_files(surplus)}" if surplus else ""


def tested_folds(part: DataSubset) -> tuple[str, ...]:
    """Return the folds in a test split; empty for a set without folds."""
    folds = part.dataset.info.folds
    return folds.tested if folds is not None else ()


def assert_folds(runs: Sequence[Path], configs: Sequence[RunConfig]) -> None:
    """Raise UserError unless the runs test every fold of one data set exactly once."""
    folds_by_run = [_read_folds(run, config) for run, config in zip(runs, configs, strict=True)]
    for run, config, folds in zip(runs, configs, folds_by_run, strict=True):
        if config.data.name != configs[0].data.name or folds.names != folds_by_run[0].names:
            raise UserError(
                f"{run}: is of data set '{config.data.name}' with {', '.join(folds.names)}, {runs[0]} of "
                f"'{configs[0].data.name}' with {', '.join(folds_by_run[0].names)}; only folds of one set are pooled"
            )
        if [metric.name for metric in config.metrics] != [metric.name for metric in configs[0].metrics]:
            raise UserError(f"{run}: has other metrics than {runs[0]}; pool runs of one recipe")
    times = Counter(name for folds in folds_by_run for name in folds.tested)
    for name, count in times.items():
        if count > 1:
            twice = ", ".join(str(run) for run, folds in zip(runs, folds_by_run, strict=True) if name in folds.tested)
            raise UserError(f"evaluate: {name} is tested by {twice}; its points would count {count} times, give one")
    missing = [name for name in folds_by_run[0].names if name not in times]
    if missing:
        raise UserError(
            f"evaluate: no run tests {', '.join(missing)}; the figures of {len(folds_by_run)} of "
            f"{len(folds_by_run[0].names)} folds are not those of the set; give a run for each"
        )


def _read_folds(run: Path, config: RunConfig) -> Folds:
    """Return the folds of a run's test split. Raises UserError for a set without folds."""
    dataset = registry.data.build(config.data, facts={"split": "test"})
    folds: Folds | None = dataset.info.folds
    if folds is None:
        raise UserError(
            f"{run}: data set '{config.data.name}' is not tested part by part, so that its runs cannot be pooled; "
            "evaluate them one by one"
        )
    return folds
