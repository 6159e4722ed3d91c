"""Predictor of the task `segment`: a class for every point; points that the model did not see take the nearest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.errors import ConfigError, DataError, UserError
from sightline.contract.schema import suggest
from sightline.contract.types import Field
from sightline.draw.pictures import label_colors
from sightline.engine.run_loading import TrainedRun
from sightline.ops.points.neighbours import nearest_neighbours
from sightline.parts.metrics.predicted_labels import predict_labels
from sightline.parts.tasks.segment import TileWindowsConfig
from sightline.parts.tasks.windows import TileWindows
from sightline.store.files.atomic_write import open_atomic, replace_atomic
from sightline.store.files.ply import write_ply
from sightline.store.files.scan_files import write_label_ids
from sightline.store.files.scan_reading import NoReturn
from sightline.store.scans.label_files import LABEL_FILES, collect_extras
from sightline.workbench.predict.classify import CloudPredictor
from sightline.workbench.predict.file_samples import FileSample, PointOrigin
from sightline.workbench.predict.predictor import Inference, ReadFile, Refusal, refuse_non_finite, report_write_errors


@dataclass(frozen=True, eq=False)
class SegmentPrediction:
    """Predicted class of every point of one file, all N in the order of the file.

    `points` (N, 3) float64 are in the file's own coordinates. `labels` (N,) int64 are the most probable classes, among
    the parts of `category` if the run's set has categories. `probability` (N,) float32 is that of the label among all
    classes. `treatment` describes what was done to the points.
    """

    file: Path
    points: np.ndarray
    labels: np.ndarray
    probability: np.ndarray
    class_names: tuple[str, ...]
    category: str | None
    treatment: str
    probabilities: np.ndarray | None = None
    """Probabilities (N, C) of every class and point, in the requested type; None unless requested."""

    @property
    def num_points(self) -> int:
        """The number of points of the file."""
        return len(self.labels)

    @cached_property
    def mean_probability(self) -> float:
        """Mean of `probability` over all points."""
        return float(self.probability.mean(dtype=np.float64))

    @cached_property
    def shares(self) -> dict[str, float]:
        """Share of the points of each class that occurs, the largest first."""
        counts = np.bincount(self.labels)
        order = np.argsort(-counts, kind="stable")
        return {
            self.label_name(label): float(counts[label]) / self.num_points for label in order.tolist() if counts[label]
        }

    def label_name(self, label: int) -> str:
        """Return the name of a class; its number if the run's set has no names."""
        return self.class_names[label] if label < len(self.class_names) else str(label)


ENDINGS = {"labels": ".labels.npy", "ply": ".ply", "probabilities": ".probabilities.npy"}
"""Ending of each kind of file, but `label`: ids of LiDAR scans, in the form of the benchmark (`label_files`)."""


def _to_float32(points: np.ndarray) -> np.ndarray:
    """Convert the points to float32, which viewers read best, if that keeps every bit."""
    with np.errstate(over="ignore"):
        narrow = points.astype(np.float32)
    return narrow if np.array_equal(narrow, points) else points


_FIRST_NUMBER = 2**40
"""First point number; no class has such a number, so that no point counts as ignored."""
_MAX_NAMED_CLASSES = 3
"""Number of classes named in the table."""


@registry.predictors.add("segment")
class PointPredictor(CloudPredictor[SegmentPrediction]):
    """Predictor of a `SegmentPrediction` per cloud, from the point `probabilities` and the `cloud_offsets`.

    A sample gets the numbers of its points as labels, which reveal what a transform drops and reorders. `category` is
    the category of all files; without it, that of a file is the name of its folder. `probabilities` is the type in
    which every class's probabilities are kept. `files` are the kinds of files that `write` makes for each cloud, by
    default all; for scans also the benchmark's `label` files, in its ids. `lift` and `tiles` replace those of the run's
    task. For scans, `no_return=nan` treats points that are NaN at x, y and z as missing returns. Raises ConfigError for
    a name that the run's set does not have. Source: made here.
    """

    reads = frozenset({"probabilities", "cloud_offsets"})
    hidden = frozenset({"label", "whole_label"})
    columns = ("file", "points", "classes", "mean probability")

    def __init__(
        self,
        *,
        run: TrainedRun,
        columns: Sequence[str] | None = None,
        to_sphere: bool = False,
        category: str | None = None,
        probabilities: Literal["float16", "float32"] | None = None,
        files: tuple[Literal["labels", "ply", "label"], ...] | None = None,
        lift: Literal["nearest", "knn"] | None = None,
        tiles: TileWindowsConfig | None = None,
        no_return: NoReturn | None = None,
    ) -> None:
        stated = {name: value for name, value in (("lift", lift), ("tiles", tiles)) if value is not None}
        if stated:
            task = replace(run.config.task, arguments={**run.config.task.arguments, **stated})
            run = replace(run, config=replace(run.config, task=task))
        super().__init__(run, columns=columns, to_sphere=to_sphere)
        info, cloud_spec = self.info, self.info.clouds
        self._ids = None if info.scans is None else np.array(info.scans.ids_of_classes, dtype=np.uint32)
        self._form = LABEL_FILES["semantic_kitti" if info.scans is None else info.scans.label_form]
        self._label_paths: Mapping[Path, Path] = {}
        self._extras: dict[Path, bytes] = {}
        self.no_return = no_return
        divided = run.config.task.arguments.get("tiles")
        self._tiles = None if divided is None else TileWindows(**divided, up_axis=run.facts["up_axis"])
        if info.scans is None and no_return:
            raise ConfigError("no_return: is an option for LiDAR scans, which the run was not trained on; leave it out")
        if info.scans is None and "label" in (files or ()):
            raise ConfigError("files: label files hold the ids of LiDAR scans, which the run was not trained on")
        self.kinds: list[str] = list(files or ("labels", "ply"))
        self.kinds += ["label"] if files is None and info.scans is not None else []
        self.kinds += ["probabilities"] if probabilities is not None else []
        self._ending_of = {**ENDINGS, "label": self._form.ending}
        self.endings = tuple(self._ending_of[kind] for kind in self.kinds)
        if cloud_spec is not None and cloud_spec.preparation is not None:
            raise ConfigError(
                f"{run.path}: was trained on a set whose preparing chooses points; a class for every point of a file "
                "needs a set that keeps all of them"
            )
        self._probability_dtype = None if probabilities is None else np.dtype(probabilities).newbyteorder("<")
        self.draws_meshes = cloud_spec is not None and cloud_spec.unit_sphere != "none"
        points = info.fields["points"]
        number = Field("points", "int64", "number of the point", collate=points.collate, offsets=points.offsets)
        self.fields = {**self.fields, "label": number}
        self.categories = _list_categories(run.facts) if "category" in info.fields else []
        if self.categories:
            self.fields = {**self.fields, "category": info.fields["category"]}
        self.category = category
        if category is not None and not self.categories:
            raise ConfigError(
                f"category={category}: the set that the run was trained on has no categories; leave it out"
            )
        if category is not None and _find_name(category, self.categories) is None:
            hint = suggest(category, self.categories, otherwise="")
            raise ConfigError(f"category={category}: is none of {', '.join(self.categories)}{hint}")
        classes = run.class_names or tuple(map(str, range(run.facts["num_classes"])))
        self._names = classes

    def make_extra_fields(self, path: Path, sample: FileSample) -> dict[str, Any]:
        """Make the number of every point, and the category."""
        numbers = {"label": torch.arange(sample.num_points) + _FIRST_NUMBER}
        return numbers | ({"category": torch.tensor(self._get_category(path))} if self.categories else {})

    def predict(self, files: Sequence[ReadFile], inference: Inference) -> list[SegmentPrediction | Refusal]:
        """Make the prediction of each file. Raises ConfigError if transforms select points but not their labels."""
        batch, predictions = inference.batch, inference.predictions
        numbers = (batch["whole_label"] if "nearest" in batch else batch["label"]).flatten() - _FIRST_NUMBER
        bounds = list(pairwise(predictions["cloud_offsets"].tolist()))
        if len(numbers) != bounds[-1][1]:
            raise ConfigError(
                f"{self.run.path}: the run's transforms leave {bounds[-1][1]} points and {len(numbers)} labels of "
                "points; a transform that chooses points must choose from 'label', too"
            )
        device = predictions["probabilities"].device
        category = {"category": batch["category"].to(device)} if self.categories else {}
        labels = predict_labels(category, predictions, self.run.facts)
        return [
            self._make_prediction(file, numbers[a:b].numpy(), predictions["probabilities"][a:b], cloud_labels)
            for file, cloud_labels, (a, b) in zip(files, labels, bounds, strict=True)
        ]

    def document(self, prediction: SegmentPrediction) -> dict[str, Any]:
        """Return the share of each class; labels and probabilities are written by `write`."""
        return {
            "file": str(prediction.file),
            "category": prediction.category,
            "num_points": prediction.num_points,
            "mean_probability": prediction.mean_probability,
            "shares": prediction.shares,
            "treatment": prediction.treatment,
        }

    def full_document(self, prediction: SegmentPrediction) -> dict[str, Any]:
        """Return the document with the label of every point, and with probabilities if they are kept.

        A run without categories leaves `category` out.
        """
        table = {} if prediction.probabilities is None else {"probabilities": prediction.probabilities.tolist()}
        document = self.document(prediction)
        if not self.categories:
            del document["category"]
        return {**document, "labels": prediction.labels.tolist(), **table}

    def row(self, document: Mapping[str, Any]) -> Sequence[Any]:
        """Return file, number of points, largest shares and mean probability."""
        shares = _format_largest(document["shares"])
        return [document["file"], document["num_points"], shares, document["mean_probability"]]

    def csv_cells(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return a column for each class, too, 0 if no point has it."""
        shares = {f"share of {name}": document["shares"].get(name, 0.0) for name in self._names}
        return {**super().csv_cells(document), **shares}

    def output_names(self, files: Sequence[Path], out: Path) -> Mapping[Path, Path]:
        """Choose the paths as for any cloud; the benchmark's files of labels go where its evaluator reads them."""
        if "label" in self.kinds:
            label_paths = self._form.paths_of(files)
            first: dict[Path, Path] = {}
            for file, path in label_paths.items():
                if (other := first.setdefault(path, file)) != file:
                    raise UserError(f"--out {out}: {other} and {file} both go to {path}; predict them one by one")
            self._label_paths = {file: out / path for file, path in label_paths.items()}
            extras = collect_extras(self._form, label_paths.values())
            self._extras = {out / path: content for path, content in extras.items()}
        return super().output_names(files, out)

    def write(self, prediction: SegmentPrediction, name: Path) -> dict[str, Path]:
        """Write labels, coloured cloud, probabilities if a type is set, and the ids of scans; each whole or not.

        With the first come the further files of a submission.
        """
        paths = {kind: name.with_name(name.name + self._ending_of[kind]) for kind in self.kinds}
        if prediction.file in self._label_paths:
            paths["label"] = self._label_paths[prediction.file]
        for kind, path in paths.items():
            with _writing(path):
                self._write_file(kind, prediction, path)
        while self._extras:
            path, content = self._extras.popitem()
            with _writing(path):
                replace_atomic(path, content)
        return paths

    def _write_file(self, kind: str, prediction: SegmentPrediction, path: Path) -> None:
        if kind == "ply":
            points, colors = _to_float32(prediction.points), label_colors(prediction.labels)
            names = prediction.class_names
            write_ply(path, points=points, colors=colors, label=prediction.labels, class_names=names)
        elif kind == "label":
            assert self._ids is not None, "label files hold ids"
            write_label_ids(path, self._ids[prediction.labels])
        else:
            values = prediction.labels if kind == "labels" else np.asarray(prediction.probabilities)
            with open_atomic(path) as file:
                np.lib.format.write_array(file, values, allow_pickle=False)

    def _make_prediction(
        self, file: ReadFile, numbers: np.ndarray, probabilities: Tensor, labels: Tensor
    ) -> SegmentPrediction | Refusal:
        if not bool(probabilities.isfinite().all()):
            return refuse_non_finite(file.path)
        probability = probabilities.gather(1, labels[:, None])[:, 0]
        dtype = self._probability_dtype
        origin = file.source.origin
        assert origin is not None, "sets whose samples have none are refused at the start"
        rows = nearest_predicted_row(origin, numbers)
        treatment = [file.source.treatment]
        num_others = len(rows) - len(np.unique(numbers)) if origin.rows is not None else len(rows)
        if num_others:
            treatment.append(f"{num_others} of {len(rows)} points as the nearest of {len(numbers)}")
        if self._tiles is not None:
            treatment.append(self._tiles.describe(torch.from_numpy(origin.points)))
        return SegmentPrediction(
            file=file.path,
            points=origin.points,
            labels=labels.cpu().numpy()[rows],
            probability=probability.float().cpu().numpy()[rows],
            class_names=self.run.class_names,
            category=self.categories[int(file.sample["category"])] if self.categories else None,
            treatment=", ".join(treatment),
            probabilities=None if dtype is None else probabilities.float().cpu().numpy().astype(dtype)[rows],
        )

    def _get_category(self, path: Path) -> int:
        """Return the category index of a file, by default from its folder's name. Raises DataError if unknown."""
        folder = path.absolute().parent.name
        index = _find_name(self.category or folder, self.categories)
        if index is None:
            raise DataError(
                f"{path}: is in the folder '{folder}', which names no category; give category=NAME, or use folders "
                f"called {', '.join(self.categories)}"
            )
        return index


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Make the folder of a file that is written; errors are those of `report_write_errors`."""
    with report_write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with report_write_errors(path):
        yield


def nearest_predicted_row(origin: PointOrigin, numbers: np.ndarray) -> np.ndarray:
    """Return for each point of a file (N,) int64 its prediction row; row k predicts the sample's row `numbers[k]`.

    A predicted point has its own row, the first if there are several; any other, and every vertex of a mesh, that of
    the nearest position, the first of equals, by distances in the file's own coordinates.
    """
    prediction_rows = np.full(len(origin.points), -1)
    if origin.rows is not None:
        prediction_rows[origin.rows[numbers[::-1]]] = np.arange(len(numbers))[::-1]
    unpredicted = np.flatnonzero(prediction_rows < 0)
    if len(unpredicted):
        positions, queries = (
            torch.from_numpy(origin.positions[numbers])[None],
            torch.from_numpy(origin.points[unpredicted])[None],
        )
        prediction_rows[unpredicted] = nearest_neighbours(positions, num_neighbours=1, queries=queries)[0, :, 0].numpy()
    return prediction_rows


def _format_largest(shares: Mapping[str, float]) -> str:
    """Format the largest shares, and the number of other classes."""
    texts = [f"{name} {share:.0%}" for name, share in list(shares.items())[:_MAX_NAMED_CLASSES]]
    num_others = len(shares) - len(texts)
    return ", ".join(texts) + (f" and {num_others} more" if num_others else "")


def _list_categories(facts: Mapping[str, Any]) -> list[str]:
    """Return the names of the categories, or numbers if the set only has their count; empty without categories."""
    names = facts.get("category_names") or range(facts.get("num_categories", 0))
    return [str(name) for name in names]


def _find_name(name: str, names: Sequence[str]) -> int | None:
    """Return the index of a name, ignoring case; None if it is not in the list."""
    folded = [item.casefold() for item in names]
    return folded.index(name.casefold()) if name.casefold() in folded else None
