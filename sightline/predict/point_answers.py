"""A class for every point of a file: those that the model saw answer for themselves, the others by the nearest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.engine.loading import TrainedRun
from sightline.errors import ConfigError, DataError
from sightline.geometry.neighbours import nearest_neighbours
from sightline.metrics.answers import answers_of
from sightline.predict.answers import ReadFile, Refusal
from sightline.predict.cloud_samples import FileSample, Origin
from sightline.schema import nearest
from sightline.types import Batch, DataInfo, Field

__all__ = ["PointAnswers", "SegmentPrediction", "standing_for"]

_FIRST_NUMBER = 2**40
"""Points are numbered from here on: no class has such a number, so that none is taken for an ignored point."""


@dataclass(frozen=True, eq=False)
class SegmentPrediction:
    """What a run says of every point of one file, all N in the order of the file.

    `points` (N, 3) float64 are in the file's own coordinates. `labels` (N,) int64 are the most probable classes, among
    the parts of `category` where the run's set has categories. `probability` (N,) float32 is that of the label among
    all classes, as the model gives it. `treatment` says in words what was done to the points.
    """

    file: Path
    points: np.ndarray
    labels: np.ndarray
    probability: np.ndarray
    class_names: tuple[str, ...]
    category: str | None
    treatment: str
    answered: np.ndarray
    """Which answer of the model stands for each point (N,), rows of `table`."""
    table: np.ndarray | None = None
    """The model's answers (K, C) float32, one probability per class, K at most N; only where they were asked for."""

    @property
    def num_points(self) -> int:
        return len(self.labels)

    @property
    def probabilities(self) -> np.ndarray | None:
        """Every class's probability of every point (N, C) float32, made anew; None where they were not asked for."""
        return None if self.table is None else self.table[self.answered]

    @cached_property
    def mean_probability(self) -> float:
        """The mean of `probability` over all points."""
        return float(self.probability.mean(dtype=np.float64))

    @cached_property
    def shares(self) -> dict[str, float]:
        """The share of the points of each class that occurs, the largest first."""
        counts = np.bincount(self.labels)
        order = np.argsort(-counts, kind="stable")
        return {
            self.name_of(label): float(counts[label]) / self.num_points for label in order.tolist() if counts[label]
        }

    def name_of(self, label: int) -> str:
        """The name of a class; its number where the run's set has no names."""
        return self.class_names[label] if label < len(self.class_names) else str(label)


class PointAnswers:
    """Makes a `SegmentPrediction` of the probabilities of points, for every point of each file.

    A sample gets its own points' numbers for labels, so that whatever a transform drops and reorders can be traced.
    `category` is the name that all files have; without it a file's folder names it. Raises ConfigError for a name that
    the run's set does not have.
    """

    hidden = frozenset({"label", "whole_label"})

    def __init__(self, run: TrainedRun, info: DataInfo, *, category: str | None, with_probabilities: bool) -> None:
        form = info.clouds
        if form is not None and form.preparation is not None:
            raise ConfigError(
                f"{run.path}: was trained on a set whose preparing chooses points; a class for every point of a file "
                "needs a set that keeps all of them"
            )
        self.run = run
        self.with_probabilities = with_probabilities
        self.draws_meshes = form is not None and form.unit_sphere != "none"
        points = info.fields["points"]
        number = Field("points", "int64", "number of the point", collate=points.collate, offsets=points.offsets)
        self.fields = {"label": number}
        self.categories = _names_of(run.facts) if "category" in info.fields else []
        if self.categories:
            self.fields["category"] = info.fields["category"]
        self.category = None if category is None else self._asked_for(category)

    def read(self, path: Path, sample: FileSample) -> ReadFile:
        given = {"label": torch.arange(sample.num_points) + _FIRST_NUMBER}
        if self.categories:
            given["category"] = torch.tensor(self._category_of(path))
        return ReadFile(path, sample, given)

    def __call__(
        self, files: Sequence[ReadFile], batch: Batch, predictions: Mapping[str, Any]
    ) -> dict[Path, SegmentPrediction | Refusal]:
        numbers = (batch["whole_label"] if "nearest" in batch else batch["label"]).flatten() - _FIRST_NUMBER
        bounds = list(pairwise(predictions["cloud_offsets"].tolist()))
        if len(numbers) != bounds[-1][1]:
            raise ConfigError(
                f"{self.run.path}: the run's transforms leave {bounds[-1][1]} points and {len(numbers)} labels of "
                "points; a transform that chooses points must choose from 'label', too"
            )
        device = predictions["probabilities"].device
        known = {"category": batch["category"].to(device)} if self.categories else {}
        labels = answers_of(known, predictions, self.run.facts)
        return {
            file.path: self._answer(file, numbers[start:end].numpy(), predictions["probabilities"][start:end], own)
            for file, own, (start, end) in zip(files, labels, bounds, strict=True)
        }

    def _answer(
        self, file: ReadFile, numbers: np.ndarray, probabilities: Tensor, labels: Tensor
    ) -> SegmentPrediction | Refusal:
        if not bool(probabilities.isfinite().all()):
            reason = f"{file.path}: the model's answer is not a finite number; are its weights sound?"
            return Refusal(file.path, reason, is_input=False)
        probability = probabilities.gather(1, labels[:, None])[:, 0]
        origin = file.sample.origin
        assert origin is not None, "sets whose samples have none are refused at the start"
        answered = standing_for(origin, numbers)
        treatment = [file.sample.treatment]
        num_others = len(answered) - len(np.unique(numbers)) if origin.rows is not None else len(answered)
        if num_others:
            treatment.append(f"{num_others} of {len(answered)} points as the nearest of {len(numbers)}")
        return SegmentPrediction(
            file=file.path,
            points=origin.points,
            labels=labels.cpu().numpy()[answered],
            probability=probability.float().cpu().numpy()[answered],
            class_names=self.run.class_names,
            category=self.categories[int(file.given["category"])] if self.categories else None,
            treatment=", ".join(treatment),
            answered=answered,
            table=probabilities.float().cpu().numpy() if self.with_probabilities else None,
        )

    def _asked_for(self, name: str) -> int:
        if not self.categories:
            raise ConfigError(f"--category {name}: the set that the run was trained on has no categories; leave it out")
        found = _number_of(name, self.categories)
        if found is None:
            hint = nearest(name, self.categories, otherwise="")
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


def standing_for(origin: Origin, numbers: np.ndarray) -> np.ndarray:
    """Which answer stands for each point of a file (N,) int64, where answer k is that of the sample's row `numbers[k]`.

    A point that was answered for has its own answer, the first where there are several; any other, and every vertex of
    a mesh, that of the nearest place, the first of equals, by distances in the file's own coordinates.
    """
    answered = np.full(len(origin.points), -1)
    if origin.rows is not None:
        answered[origin.rows[numbers[::-1]]] = np.arange(len(numbers))[::-1]
    others = np.flatnonzero(answered < 0)
    if len(others):
        places, queries = torch.from_numpy(origin.places[numbers])[None], torch.from_numpy(origin.points[others])[None]
        answered[others] = nearest_neighbours(places, num_neighbours=1, queries=queries)[0, :, 0].numpy()
    return answered


def _names_of(facts: Mapping[str, Any]) -> list[str]:
    """The names of the categories, numbers where the set states only how many; none where it does not."""
    names = facts.get("category_names") or range(facts.get("num_categories", 0))
    return [str(name) for name in names]


def _number_of(name: str, names: Sequence[str]) -> int | None:
    """The place of a name, capitals or not; None where there is none."""
    folded = [each.casefold() for each in names]
    return folded.index(name.casefold()) if name.casefold() in folded else None
