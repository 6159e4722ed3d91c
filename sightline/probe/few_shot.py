"""Few-shot classification on frozen features: mean and spread over seeded episodes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from sightline import registry
from sightline.arguments import Count, Seed
from sightline.errors import ConfigError
from sightline.probe.classifiers import require_sklearn, standardise, support_vector_machine
from sightline.probe.episodes import (
    CONVENTIONS,
    Convention,
    Episode,
    EpisodeSetting,
    draw_episodes,
    plain_episodes,
    read_episodes,
)
from sightline.probe.features import Features
from sightline.probe.outcome import Outcome, Table

__all__ = ["FewShot", "predict_queries", "score_episode"]

_PARTS = {"train": "training part", "test": "test part"}
_ORIGIN = {
    "train": "more samples of the training part (CrossPoint)",
    "test": "samples of the test part (as Point-BERT's folds, classified here without fine-tuning)",
}


@registry.probes.add("few_shot")
class FewShot:
    """Few-shot probe: linear SVM (C = 1) on `shots` samples of `ways` classes, scored on `queries` per class.

    Features are standardised by the support only. Metrics are mean and population deviation over `runs` episodes:
    `fewshot_5w10s`, `fewshot_5w10s_std` with queries from the training split; those with queries from the test split
    end in `_test_queries`. `episodes` repeats those of a file, which defines all other arguments. Source: Afham et al.
    2022, section 4.1.
    """

    most_rows: ClassVar[int | None] = None

    def __init__(
        self,
        *,
        ways: tuple[Count, ...] = (5, 10),
        shots: tuple[Count, ...] = (10, 20),
        queries: Count = 20,
        runs: Count = 10,
        convention: Literal["both", "train", "test"] = "both",
        seed: Seed = 0,
        episodes: str | None = None,
    ) -> None:
        if not ways or not shots or min(ways) < 2:
            raise ConfigError("ways: give at least one number of classes, 2 or more, and one of shots")
        require_sklearn()
        options = {
            "ways": ways,
            "shots": shots,
            "queries": queries,
            "runs": runs,
            "convention": convention,
            "seed": seed,
        }
        changed = [name for name, value in options.items() if value != _get_default(name)]
        if episodes is not None and changed:
            raise ConfigError(
                f"episodes: those of {episodes} are repeated unchanged, and {', '.join(changed)} would have no effect; "
                "give only the file, or no file"
            )
        self.settings = [EpisodeSetting(w, s, queries) for w in sorted(set(ways)) for s in sorted(set(shots))]
        self.runs = runs
        self.conventions: tuple[Convention, ...] = CONVENTIONS if convention == "both" else (convention,)
        self.seed = seed
        self.file = None if episodes is None else Path(episodes)
        if self.file is not None and not self.file.is_file():  # reported before features are computed
            raise ConfigError(f"episodes: there is no file {self.file}")

    @property
    def queries_description(self) -> str:
        """Description of the queries: source split, number per class and number of points."""
        if self.file is not None:
            return f"as in {self.file}"
        return f"{_PARTS[self.conventions[0]]}, {self.settings[0].queries} of a class, the points of the probe"

    def __call__(self, train: Features, test: Features) -> Outcome:
        """Compute mean accuracy and deviation of each setting and convention."""
        episodes = self._episodes(train, test)
        metrics: dict[str, float] = {}
        chance: dict[str, float] = {}
        rows = []
        for (setting, convention), group in groupby(
            episodes, key=lambda episode: (episode.setting, episode.convention)
        ):
            accuracies = [score_episode(episode, train, test) for episode in group]
            name = f"fewshot_{setting.name}" + ("_test_queries" if convention == "test" else "")
            if name in metrics:
                raise ConfigError(
                    f"episodes: those of {setting.name} with queries of {convention} are not contiguous, or "
                    "differ in their number of queries; use the file as it was written"
                )
            metrics |= {name: float(np.mean(accuracies)), f"{name}_std": float(np.std(accuracies))}
            chance[name] = 1.0 / setting.ways
            rows.append(
                (setting.name, convention, metrics[name], metrics[f"{name}_std"], chance[name], len(accuracies))
            )
        return Outcome(
            metrics=metrics,
            chance=chance,
            tables=(Table("few-shot", ("setting", "queries from", "mean", "std", "chance", "runs"), rows),),
            protocol=(
                "few-shot: linear SVM with C = 1 on features standardised by the support alone; std is that of the "
                "population of runs; supports are of the training part",
                *(f"queries from {name}: {_ORIGIN[name]}" for name in CONVENTIONS if name in {row[1] for row in rows}),
            ),
            details={"few_shot": plain_episodes(episodes, train.labels, test.labels)},
        )

    def _episodes(self, train: Features, test: Features) -> list[Episode]:
        if self.file is not None:
            return read_episodes(self.file, train.labels, test.labels)
        return list(self._draw(train.labels, test.labels))

    def _draw(self, train_labels: np.ndarray, test_labels: np.ndarray) -> Iterator[Episode]:
        for setting in self.settings:
            for convention in self.conventions:
                yield from draw_episodes(setting, convention, train_labels, test_labels, runs=self.runs, seed=self.seed)


def _get_default(name: str) -> Any:
    return inspect.signature(FewShot).parameters[name].default


def score_episode(episode: Episode, train: Features, test: Features) -> float:
    """Compute the accuracy on an episode's queries."""
    support = train.take(np.array(episode.support))
    query = (train if episode.convention == "train" else test).take(np.array(episode.query))
    return float((predict_queries(support, query.rows) == query.labels).mean())


def predict_queries(support: Features, rows: np.ndarray) -> np.ndarray:
    """Predict classes (N,) of `rows` (N, D) by a linear SVM (C = 1) on the support, standardised by the support."""
    support_rows, query_rows = standardise(support.rows.astype(np.float64), rows.astype(np.float64))
    predictions: np.ndarray = (
        support_vector_machine(1.0, kernel="linear").fit(support_rows, support.labels).predict(query_rows)
    )
    return predictions
