"""Few-shot episodes: which classes, which samples to learn from, which to predict; seeded, kept and read back."""

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
"""Where queries come from: more samples of the training part, as in CrossPoint, or the test part, as in Point-BERT."""
CONVENTIONS: tuple[Convention, ...] = ("train", "test")


@dataclass(frozen=True)
class EpisodeSetting:
    """So many classes (`ways`), samples of each to learn from (`shots`), and queries of each."""

    ways: int
    shots: int
    queries: int

    @property
    def name(self) -> str:
        """As metrics are called: 5w10s."""
        return f"{self.ways}w{self.shots}s"


@dataclass(frozen=True)
class Episode:
    """One draw: `support` are places in the training part, `query` in the part that the convention names.

    Both are ordered by class, in the order of `classes`; no place is in both where both are of the training part.
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
    """Episodes of one setting, a pure function of labels, seed and setting; the classes of a run are drawn evenly.

    Raises DataError where fewer classes than `ways` have enough samples.
    """
    of_class = {int(label): np.flatnonzero(train_labels == label) for label in np.unique(train_labels)}
    asked = {int(label): np.flatnonzero(test_labels == label) for label in np.unique(test_labels)}
    needed = setting.shots + (setting.queries if convention == "train" else 0)
    able = [
        label
        for label, places in of_class.items()
        if len(places) >= needed and (convention == "train" or len(asked.get(label, ())) >= setting.queries)
    ]
    if len(able) < setting.ways:
        also = "" if convention == "train" else f" and {setting.queries} of the test part"
        raise DataError(
            f"few-shot {setting.name}: needs {setting.ways} classes with {needed} training samples{also}, there are "
            f"{len(able)}; give fewer ways, shots or queries"
        )
    episodes = []
    for run in range(runs):
        draw = np.random.default_rng(np.random.SeedSequence((seed, setting.ways, setting.shots, setting.queries, run)))
        classes = tuple(int(label) for label in draw.choice(able, size=setting.ways, replace=False))
        support: list[int] = []
        query: list[int] = []
        for label in classes:
            drawn = draw.permutation(of_class[label])
            support += drawn[: setting.shots].tolist()
            rest = drawn[setting.shots :] if convention == "train" else draw.permutation(asked[label])
            query += rest[: setting.queries].tolist()
        episodes.append(Episode(setting, convention, classes, tuple(support), tuple(query)))
    return episodes


def plain_episodes(episodes: Sequence[Episode], train_labels: np.ndarray, test_labels: np.ndarray) -> dict[str, Any]:
    """Episodes as JSON holds them, with the digest of the labels that they are places of."""
    return {
        "labels": _digest(train_labels, test_labels),
        "episodes": [
            {
                "ways": each.setting.ways,
                "shots": each.setting.shots,
                "queries": each.setting.queries,
                "convention": each.convention,
                "classes": list(each.classes),
                "support": list(each.support),
                "query": list(each.query),
            }
            for each in episodes
        ],
    }


def read_episodes(path: Path, train_labels: np.ndarray, test_labels: np.ndarray) -> list[Episode]:
    """The episodes of a file that `plain_episodes` went into, on their own or in the document of a probe.

    Raises ConfigError for a file that holds none, for places that there are none of or that are of other classes, and
    for queries that are in the support; DataError for those of other data.
    """
    try:
        document = parse_json(read_regular_file(path))
        kept = document if "episodes" in document else document["details"]["few_shot"]
        episodes = [_episode(each) for each in kept["episodes"]]
        digest = kept["labels"]
    except FileNotFoundError:
        raise ConfigError(f"episodes: there is no file {path}") from None
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ConfigError(f"episodes: {path} holds no episodes of a few-shot probe ({error!r})") from None
    if digest != _digest(train_labels, test_labels):
        raise DataError(f"episodes: those of {path} are of other data: the labels differ; draw new ones, or give them")
    if not episodes:
        raise ConfigError(f"episodes: {path} holds an empty list")
    for number, each in enumerate(episodes):
        fault = _fault(each, train_labels, train_labels if each.convention == "train" else test_labels)
        if fault:
            raise ConfigError(f"episodes: {path}: episodes.{number}: {fault}; a file is repeated as it was written")
    return episodes


def _fault(episode: Episode, train_labels: np.ndarray, asked_labels: np.ndarray) -> str:
    """What is wrong with an episode, whose queries are of the part with `asked_labels`; empty if nothing is."""
    setting = episode.setting
    if len(set(episode.classes)) != setting.ways:
        return f"classes: found {list(episode.classes)}, expected {setting.ways} different ones"
    of_each = (
        ("support", episode.support, setting.shots, train_labels),
        ("query", episode.query, setting.queries, asked_labels),
    )
    for name, places, count, labels in of_each:
        outside = [place for place in places if not 0 <= place < len(labels)]
        if outside:
            return f"{name}: found {outside[0]}, allowed is 0 to {len(labels) - 1}"
        if len(places) != setting.ways * count:
            return f"{name}: found {len(places)} places, {setting.ways} classes of {count} are {setting.ways * count}"
        if len(set(places)) < len(places):
            return f"{name}: a place stands there twice"
        if not np.array_equal(labels[list(places)], np.repeat(episode.classes, count)):
            return f"{name}: its places are not {count} samples of each of the classes, in their order"
    both = set(episode.support) & set(episode.query) if episode.convention == "train" else set()
    return f"query: place {min(both)} is in the support too: its class is known" if both else ""


def _episode(kept: Mapping[str, Any]) -> Episode:
    if kept["convention"] not in CONVENTIONS:
        raise ValueError(f"convention {kept['convention']!r}")
    setting = EpisodeSetting(int(kept["ways"]), int(kept["shots"]), int(kept["queries"]))
    return Episode(setting, kept["convention"], *(tuple(map(int, kept[k])) for k in ("classes", "support", "query")))


def _digest(*labels: np.ndarray) -> str:
    digest = hashlib.sha256()
    for each in labels:
        digest.update(each.astype("<i8").tobytes() + b"|")
    return digest.hexdigest()
