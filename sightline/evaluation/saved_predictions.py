"""Saved predictions of an evaluation: label files of samples, and a manifest."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sightline.data.files.scan_files import write_label_ids
from sightline.data.scans.submission import label_path, without_endings
from sightline.engine.build import DataSubset
from sightline.engine.distributed import World
from sightline.engine.evaluate import Evaluation
from sightline.errors import UserError
from sightline.metrics.predicted_labels import predict_labels
from sightline.optional_members import MetricMembers
from sightline.runs.atomic_files import disk_failure
from sightline.runs.run_documents import load_document
from sightline.types import Batch

__all__ = ["MANIFEST", "LabelWriter", "file_stems", "label_files"]

MANIFEST = "manifest.json"
"""Name of the manifest, which is written last: a folder with it is complete."""
_MAX_STEM_BYTES = 120
_LABEL_DTYPE = np.int16
"""Data type of label files; class indices are far below its bound, and a room of 80 million points takes 160 MB."""


class LabelWriter:
    """Writer of an evaluation's predicted labels, called by an `Evaluator` batch by batch, on every process.

    Samples with a label per point have a file each, int16 (N,) in the order of the points that were scored: those of
    the whole cloud if evaluation thins it and predicts all its points. For LiDAR scans a `.label` file contains the
    same as ids of the set, at the path of SemanticKITTI's evaluator, or next to it. Samples with one label have it in
    the manifest. An earlier manifest of the folder is removed at the first batch; files that only it names, when the
    new one is written; other files stay.
    """

    def __init__(self, path: Path, part: DataSubset, world: World) -> None:
        self.path = path
        self._part = part
        self._facts = part.dataset.info.facts
        form = part.dataset.info.scans
        self._ids = None if form is None else np.array(form.ids_of_classes, dtype=np.uint32)
        self._world = world
        indices = part.indices.tolist()
        names = [part.sample_name(index) for index in indices]
        self._stems = dict(zip(indices, file_stems(names), strict=True))
        self._label_files = dict(zip(indices, label_files(names), strict=True))
        self._entries: list[dict[str, Any]] = []
        self._directory = world.run_directory(path)
        self._former = world.rank_zero_only(_list_manifest_files)(path) or set()
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
                entry |= {"answer": int(predicted)} | ({"label": int(batch["label"][row])} if "label" in batch else {})
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
        self._directory.write_json(MANIFEST, document)
        for file in self._former - {entry.get(kind) for entry in entries for kind in ("file", "label_file")}:
            self._directory.remove(file)

    @contextmanager
    def _writing(self, file: str) -> Iterator[Path]:
        path = self.path / file
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield path
        except OSError as error:
            raise disk_failure(error, path) from error


def label_files(names: Sequence[str]) -> list[str]:
    """Return the path of each scan's label file in the folder of predictions, without the ending of the scan's name."""
    stems = file_stems(without_endings(names))
    return [str(label_path(name) or f"{stem}.label") for name, stem in zip(names, stems, strict=True)]


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


def _list_manifest_files(folder: Path) -> set[str]:
    """List the files that the manifest of a folder names, without those outside the folder."""
    if not (folder / MANIFEST).is_file():
        return set()
    try:
        samples = load_document(folder / MANIFEST)["samples"]
        files = {entry[kind] for entry in samples for kind in ("file", "label_file") if kind in entry}
    except (UserError, KeyError, TypeError):
        return set()
    file_pattern = re.compile(r"(sequences/\d+/predictions/\d+\.label|[^/\\]+\.(npy|label))")
    return {file for file in files if isinstance(file, str) and file_pattern.fullmatch(file)}


def _sample_ious(evaluation: Evaluation) -> Tensor | None:
    """Return the IoU of each sample by the saved predictions: the averaged ones, if there are votes."""
    of_samples = [result for result in evaluation.results if MetricMembers.per_sample.get(result.metric.metric)]
    saved = [result for result in of_samples if result.suffix == evaluation.results[-1].suffix]
    return saved[0].metric.metric.per_sample(saved[0].state) if saved else None  # type: ignore[attr-defined]
