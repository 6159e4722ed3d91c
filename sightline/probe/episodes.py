"""Few-shot episodes: seeded choice of classes, support and query samples; written to and read from files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sightline.errors import ConfigError, DataError
from sightline.regular_files import parse_json, read_regular_file

__all__ = ["CONVENTIONS", "Convention", "Episode", "EpisodeSetting", "draw_episodes", "plain_episodes", "read_episodes"]

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
