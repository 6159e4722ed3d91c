"""Few-shot classification on frozen features: mean and spread over seeded episodes.

Few-shot episodes: seeded choice of classes, support and query samples; written to and read from files.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from sightline.contract import registry
from sightline.contract.arguments import Count, Seed
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.regular_files import parse_json, read_regular_file
from sightline.workbench.probe.classifiers import Outcome, Table, require_sklearn, standardise, support_vector_machine
from sightline.workbench.probe.features import Features

Convention = Literal["train", "test"]
"""Source of queries: other samples of the training split (as CrossPoint), or the test split (as Point-BERT)."""
CONVENTIONS: tuple[Convention, ...] = ("train", "test")


@dataclass(frozen=True)
class EpisodeSetting:
    """Few-shot setting: number of classes (`ways`), support samples per class (`shots`), and queries per class."""

    ways: int
    shots: int
    queries: int

    @property
    def name(self) -> str:
        """Name of the setting in metrics, e.g. 5w10s."""
        return f"{self.ways}w{self.shots}s"


@dataclass(frozen=True)
class Episode:
    """Few-shot episode: `support` are indices into the training split, `query` into the split of the convention.

    Both are ordered by class, in the order of `classes`; they are disjoint if both are of the training split.
    """

    setting: EpisodeSetting
    convention: Convention
    classes: tuple[int, ...]
    support: tuple[int, ...]
    query: tuple[int, ...]


def draw_episodes(
    setting: EpisodeSetting,
    convention: Convention,
    train_labels: np.ndarray,
    test_labels: np.ndarray,
    *,
    runs: int,
    seed: int,
) -> list[Episode]:
    """Draw episodes of one setting: a pure function of labels, seed and setting; classes are drawn uniformly.

    Raises DataError if fewer classes than `ways` have enough samples.
    """
    train_indices = {int(label): np.flatnonzero(train_labels == label) for label in np.unique(train_labels)}
    test_indices = {int(label): np.flatnonzero(test_labels == label) for label in np.unique(test_labels)}
    needed = setting.shots + (setting.queries if convention == "train" else 0)
    eligible = [
        label
        for label, indices in train_indices.items()
        if len(indices) >= needed and (convention == "train" or len(test_indices.get(label, ())) >= setting.queries)
    ]
    if len(eligible) < setting.ways:
        test_samples = "" if convention == "train" else f" and {setting.queries} of the test part"
        raise DataError(
            f"few-shot {setting.name}: needs {setting.ways} classes with {needed} training samples{test_samples}, "
            f"there are {len(eligible)}; give fewer ways, shots or queries"
        )
    episodes = []
    for run in range(runs):
        draw = np.random.default_rng(np.random.SeedSequence((seed, setting.ways, setting.shots, setting.queries, run)))
        classes = tuple(int(label) for label in draw.choice(eligible, size=setting.ways, replace=False))
        support: list[int] = []
        query: list[int] = []
        for label in classes:
            drawn = draw.permutation(train_indices[label])
            support += drawn[: setting.shots].tolist()
            candidates = drawn[setting.shots :] if convention == "train" else draw.permutation(test_indices[label])
            query += candidates[: setting.queries].tolist()
        episodes.append(Episode(setting, convention, classes, tuple(support), tuple(query)))
    return episodes


def plain_episodes(episodes: Sequence[Episode], train_labels: np.ndarray, test_labels: np.ndarray) -> dict[str, Any]:
    """Convert episodes to plain values for JSON, with the digest of the labels that they index."""
    return {
        "labels": _hash_labels(train_labels, test_labels),
        "episodes": [
            {
                "ways": episode.setting.ways,
                "shots": episode.setting.shots,
                "queries": episode.setting.queries,
                "convention": episode.convention,
                "classes": list(episode.classes),
                "support": list(episode.support),
                "query": list(episode.query),
            }
            for episode in episodes
        ],
    }


def read_episodes(path: Path, train_labels: np.ndarray, test_labels: np.ndarray) -> list[Episode]:
    """Read the episodes of a file that `plain_episodes` made, alone or in the document of a probe.

    Raises ConfigError for a file without episodes, for indices that are out of range or of other classes, and for
    queries that are in the support; DataError for episodes of other data.
    """
    try:
        document = parse_json(read_regular_file(path))
        stored = document if "episodes" in document else document["details"]["few_shot"]
        episodes = [_parse_episode(values) for values in stored["episodes"]]
        digest = stored["labels"]
    except FileNotFoundError:
        raise ConfigError(f"episodes: there is no file {path}") from None
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ConfigError(f"episodes: {path} contains no episodes of a few-shot probe ({error!r})") from None
    if digest != _hash_labels(train_labels, test_labels):
        raise DataError(
            f"episodes: {path} belongs to other data: the labels differ; draw new episodes, or probe on its data"
        )
    if not episodes:
        raise ConfigError(f"episodes: {path} contains an empty list")
    for number, episode in enumerate(episodes):
        fault = _describe_fault(episode, train_labels, train_labels if episode.convention == "train" else test_labels)
        if fault:
            raise ConfigError(f"episodes: {path}: episodes.{number}: {fault}; use the file as it was written")
    return episodes


def _describe_fault(episode: Episode, train_labels: np.ndarray, query_labels: np.ndarray) -> str:
    """Describe the fault of an episode, whose queries index `query_labels`; empty if it is valid."""
    setting = episode.setting
    if len(set(episode.classes)) != setting.ways:
        return f"classes: found {list(episode.classes)}, expected {setting.ways} different ones"
    sides = (
        ("support", episode.support, setting.shots, train_labels),
        ("query", episode.query, setting.queries, query_labels),
    )
    for name, indices, count, labels in sides:
        outside = [index for index in indices if not 0 <= index < len(labels)]
        if outside:
            return f"{name}: found {outside[0]}, allowed is 0 to {len(labels) - 1}"
        if len(indices) != setting.ways * count:
            return f"{name}: found {len(indices)} indices, {setting.ways} classes of {count} are {setting.ways * count}"
        if len(set(indices)) < len(indices):
            return f"{name}: an index occurs twice"
        if not np.array_equal(labels[list(indices)], np.repeat(episode.classes, count)):
            return f"{name}: its indices are not {count} samples of each of the classes, in their order"
    both = set(episode.support) & set(episode.query) if episode.convention == "train" else set()
    return f"query: index {min(both)} is also in the support: its class is known" if both else ""


def _parse_episode(values: Mapping[str, Any]) -> Episode:
    if values["convention"] not in CONVENTIONS:
        raise ValueError(f"convention {values['convention']!r}")
    setting = EpisodeSetting(int(values["ways"]), int(values["shots"]), int(values["queries"]))
    return Episode(
        setting, values["convention"], *(tuple(map(int, values[k])) for k in ("classes", "support", "query"))
    )


def _hash_labels(*labels: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in labels:
        digest.update(array.astype("<i8").tobytes() + b"|")
    return digest.hexdigest()


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
