"""A class for every point of a file: its own where the model saw the point, else that of the nearest point seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sightline import registry
from sightline.data.scans.scan_reading import NoReturn
from sightline.data.scans.submission import label_path, scan_name
from sightline.engine.distributed import World
from sightline.engine.run_loading import TrainedRun
from sightline.errors import ConfigError, DataError, UserError
from sightline.geometry.neighbours import nearest_neighbours
from sightline.metrics.predicted_labels import predict_labels
from sightline.predict.cloud_samples import FileSample, PointOrigin
from sightline.predict.clouds import CloudPredictor
from sightline.predict.point_files import ENDINGS, write_point_files
from sightline.predict.predictor import Inference, ReadFile, Refusal, refuse_non_finite
from sightline.predict.scan_samples import Rings
from sightline.predict.segment_prediction import SegmentPrediction
from sightline.predict.stage_timer import StageTimer, median_times
from sightline.schema import suggest
from sightline.types import Field

__all__ = ["PointPredictor", "SegmentPrediction", "nearest_predicted_row"]

_FIRST_NUMBER = 2**40
"""Points are numbered from here on: no class has such a number, so that none is taken for an ignored point."""
_NUM_SHARES = 3
"""So many classes are named in the table."""


@registry.predictors.add("segment")
class PointPredictor(CloudPredictor[SegmentPrediction]):
    """A `SegmentPrediction` for each cloud, from the `probabilities` of its points and the `cloud_offsets`.

    A sample gets its own points' numbers for labels, so that whatever a transform drops and reorders can be traced.
    `category` is the name that all files have; without it a file's folder names it. `with_probabilities` keeps every
    class's probabilities; `probabilities` is the number format in which `write` stores them. `files` are those that
    `write` makes of each cloud, all kinds without it; of scans there are `.label` files too, in the ids of the set.
    `lift` stands in for that of the run's task. Of scans, `no_return=nan` takes points that are NaN at x, y and z for
    such without a return, and `rings=order` the ring of each point from the order of the file.
    Raises ConfigError for a name that the run's set does not have.
    Source: made here.
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
        with_probabilities: bool = False,
        probabilities: Literal["float16", "float32"] | None = None,
        files: tuple[Literal["labels", "ply", "label"], ...] | None = None,
        lift: Literal["nearest", "knn"] | None = None,
        no_return: NoReturn | None = None,
        rings: Rings | None = None,
    ) -> None:
        if lift is not None:
            task = replace(run.config.task, arguments={**run.config.task.arguments, "lift": lift})
            run = replace(run, config=replace(run.config, task=task))
        super().__init__(run, columns=columns, to_sphere=to_sphere)
        info, form = self.info, self.info.clouds
        self.is_timed = info.scans is not None
        self._ids = None if info.scans is None else np.array(info.scans.ids_of_classes, dtype=np.uint32)
        self._ms: dict[Path, dict[str, float]] = {}
        self._labels_of: Mapping[Path, Path] = {}
        self.no_return, self.rings = no_return, rings
        if info.scans is None and (no_return or rings):
            raise ConfigError("no_return, rings: are of LiDAR scans, which the run was not trained on; leave them out")
        if info.scans is None and "label" in (files or ()):
            raise ConfigError("files: label files hold the ids of LiDAR scans, which the run was not trained on")
        self.kinds: list[str] = list(files or ("labels", "ply"))
        self.kinds += ["label"] if files is None and info.scans is not None else []
        self.kinds += ["probabilities"] if probabilities is not None else []
        self.endings = tuple(ENDINGS[kind] for kind in self.kinds)
        if form is not None and form.preparation is not None:
            raise ConfigError(
                f"{run.path}: was trained on a set whose preparing chooses points; a class for every point of a file "
                "needs a set that keeps all of them"
            )
        self.with_probabilities = with_probabilities or probabilities is not None
        self.stored = None if probabilities is None else np.dtype(probabilities).newbyteorder("<")
        self.draws_meshes = form is not None and form.unit_sphere != "none"
        points = info.fields["points"]
        number = Field("points", "int64", "number of the point", collate=points.collate, offsets=points.offsets)
        self.fields = {**self.fields, "label": number}
        self.categories = _names_of(run.facts) if "category" in info.fields else []
        if self.categories:
            self.fields = {**self.fields, "category": info.fields["category"]}
        self.category = None if category is None else self._asked_for(category)
        classes = run.class_names or tuple(map(str, range(run.facts["num_classes"])))
        self.shares = {f"share of {name}": name for name in classes}
        self.csv_columns = ("file", "category", "num_points", "mean_probability", "treatment", *self.shares)

    def read(self, path: Path) -> ReadFile:
        """The sample of a file."""
        laps = StageTimer(World())
        file = super().read(path)
        laps.end_stage("read")
        self._ms[path] = laps.ms
        return file

    def given(self, path: Path, sample: FileSample) -> dict[str, Any]:
        """The number of every point, and the category."""
        numbers = {"label": torch.arange(sample.num_points) + _FIRST_NUMBER}
        return numbers | ({"category": torch.tensor(self._category_of(path))} if self.categories else {})

    def predict(self, files: Sequence[ReadFile], inference: Inference) -> list[SegmentPrediction | Refusal]:
        """Raises ConfigError for a run whose transforms choose points and not their labels."""
        batch, predictions = inference.batch, inference.predictions
        numbers = (batch["whole_label"] if "nearest" in batch else batch["label"]).flatten() - _FIRST_NUMBER
        bounds = list(pairwise(predictions["cloud_offsets"].tolist()))
        if len(numbers) != bounds[-1][1]:
            raise ConfigError(
                f"{self.run.path}: the run's transforms leave {bounds[-1][1]} points and {len(numbers)} labels of "
                "points; a transform that chooses points must choose from 'label', too"
            )
        device = predictions["probabilities"].device
        known = {"category": batch["category"].to(device)} if self.categories else {}
        laps = StageTimer(World())
        labels = predict_labels(known, predictions, self.run.facts)
        found = [
            self._of(file, numbers[start:end].numpy(), predictions["probabilities"][start:end], own)
            for file, own, (start, end) in zip(files, labels, bounds, strict=True)
        ]
        laps.end_stage("decode")
        together = {"lift" if s == "decode" else s: ms + laps.ms.get(s, 0) for s, ms in inference.ms.items()}
        for file in files:
            self._ms[file.path] |= {stage: ms / len(files) for stage, ms in together.items()}
        return found

    def document(self, prediction: SegmentPrediction) -> dict[str, Any]:
        """The share of each class; labels and probabilities are for `write`."""
        return {
            "file": str(prediction.file),
            "category": prediction.category,
            "num_points": prediction.num_points,
            "mean_probability": prediction.mean_probability,
            "shares": prediction.shares,
            "treatment": prediction.treatment,
            **({"ms": self._ms[prediction.file]} if self.is_timed else {}),
        }

    def row(self, document: Mapping[str, Any]) -> Sequence[Any]:
        """The largest shares in words."""
        shares = _largest(document["shares"])
        return [document["file"], document["num_points"], shares, document["mean_probability"]]

    def csv_row(self, document: Mapping[str, Any]) -> Sequence[Any]:
        """A column for each class, 0 where no point has it."""
        shares = document["shares"]
        return [
            shares.get(self.shares[name], 0.0) if name in self.shares else document[name] for name in self.csv_columns
        ]

    def output_names(self, files: Sequence[Path], out: Path) -> Mapping[Path, Path]:
        """As of any cloud; `.label` files of a SemanticKITTI tree go where its evaluator looks for them."""
        if "label" in self.kinds:
            placed: dict[Path, Path] = {}
            for file in files:
                place = label_path(scan_name(file))
                if place is not None and placed.setdefault(out / place, file) != file:
                    other = placed[out / place]
                    raise UserError(f"--out {out}: {other} and {file} both go to {place}; predict them one by one")
            self._labels_of = {file: place for place, file in placed.items()}
        return super().output_names(files, out)

    def write(self, prediction: SegmentPrediction, name: Path) -> dict[str, Path]:
        """Labels, the coloured cloud, with a number format for them the probabilities, and the ids of scans."""
        laps = StageTimer(World())
        paths = {kind: name.with_name(name.name + ENDINGS[kind]) for kind in self.kinds}
        if prediction.file in self._labels_of:
            paths["label"] = self._labels_of[prediction.file]
        ids = None if self._ids is None else self._ids[prediction.labels]
        write_point_files(prediction, paths, probabilities=self.stored, ids=ids)
        laps.end_stage("write")
        self._ms[prediction.file] |= laps.ms
        return paths

    def summary(self, documents: Sequence[Mapping[str, Any]]) -> list[str]:
        """The median time of each stage, and scans a second over all of them."""
        if not self.is_timed or not documents:
            return []
        total = sum(sum(each["ms"].values()) for each in documents)
        rate = f"{1e3 * len(documents) / total:.2f} scans a second"
        return [median_times(documents, list(documents[0]["ms"]), noun="scan"), rate]

    def _of(
        self, file: ReadFile, numbers: np.ndarray, probabilities: Tensor, labels: Tensor
    ) -> SegmentPrediction | Refusal:
        if not bool(probabilities.isfinite().all()):
            return refuse_non_finite(file.path)
        probability = probabilities.gather(1, labels[:, None])[:, 0]
        origin = file.source.origin
        assert origin is not None, "sets whose samples have none are refused at the start"
        answered = nearest_predicted_row(origin, numbers)
        treatment = [file.source.treatment]
        num_others = len(answered) - len(np.unique(numbers)) if origin.rows is not None else len(answered)
        if num_others:
            treatment.append(f"{num_others} of {len(answered)} points as the nearest of {len(numbers)}")
        return SegmentPrediction(
            file=file.path,
            points=origin.points,
            labels=labels.cpu().numpy()[answered],
            probability=probability.float().cpu().numpy()[answered],
            class_names=self.run.class_names,
            category=self.categories[int(file.sample["category"])] if self.categories else None,
            treatment=", ".join(treatment),
            table_rows=answered,
            table=probabilities.float().cpu().numpy() if self.with_probabilities else None,
        )

    def _asked_for(self, name: str) -> int:
        if not self.categories:
            raise ConfigError(f"--category {name}: the set that the run was trained on has no categories; leave it out")
        found = _number_of(name, self.categories)
        if found is None:
            hint = suggest(name, self.categories, otherwise="")
            raise ConfigError(f"--category {name}: is none of {', '.join(self.categories)}{hint}")
        return found

    def _category_of(self, path: Path) -> int:
        if self.category is not None:
            return self.category
        folder = path.absolute().parent.name
        found = _number_of(folder, self.categories)
        if found is None:
            raise DataError(
                f"{path}: is in the folder '{folder}', which names no category; give --category NAME, or use folders "
                f"called {', '.join(self.categories)}"
            )
        return found


def nearest_predicted_row(origin: PointOrigin, numbers: np.ndarray) -> np.ndarray:
    """Which answer stands for each point of a file (N,) int64, where answer k is that of the sample's row `numbers[k]`.

    A point that was answered for has its own answer, the first where there are several; any other, and every vertex of
    a mesh, that of the nearest place, the first of equals, by distances in the file's own coordinates.
    """
    answered = np.full(len(origin.points), -1)
    if origin.rows is not None:
        answered[origin.rows[numbers[::-1]]] = np.arange(len(numbers))[::-1]
    others = np.flatnonzero(answered < 0)
    if len(others):
        places, queries = (
            torch.from_numpy(origin.positions[numbers])[None],
            torch.from_numpy(origin.points[others])[None],
        )
        answered[others] = nearest_neighbours(places, num_neighbours=1, queries=queries)[0, :, 0].numpy()
    return answered


def _largest(shares: Mapping[str, float]) -> str:
    """The largest shares in words, and the number of the other classes."""
    words = [f"{name} {share:.0%}" for name, share in list(shares.items())[:_NUM_SHARES]]
    more = len(shares) - len(words)
    return ", ".join(words) + (f" and {more} more" if more else "")


def _names_of(facts: Mapping[str, Any]) -> list[str]:
    """The names of the categories, numbers where the set states only how many; none where it does not."""
    names = facts.get("category_names") or range(facts.get("num_categories", 0))
    return [str(name) for name in names]


def _number_of(name: str, names: Sequence[str]) -> int | None:
    """The place of a name, capitals or not; None where there is none."""
    folded = [each.casefold() for each in names]
    return folded.index(name.casefold()) if name.casefold() in folded else None
