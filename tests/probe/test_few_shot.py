"""Episodes are seeded, disjoint and repeatable; the classifier is the authors'; nothing of the queries is learnt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.contract.errors import ConfigError, DataError
from sightline.workbench.probe.classifiers import standardise
from sightline.workbench.probe.features import Features
from sightline.workbench.probe.few_shot import (
    EpisodeSetting,
    FewShot,
    draw_episodes,
    plain_episodes,
    predict_queries,
    read_episodes,
)
from tests.golden_parity import load_golden
from tests.probe.blobs import blobs


@pytest.mark.shared
@pytest.mark.parametrize("case", range(3))
def test_golden_few_shot(shared: Path, case: int) -> None:
    arrays = load_golden(shared, "fn_svm_fewshot").arrays
    golden = {name.partition(".")[2]: value for name, value in arrays.items() if name.startswith(f"fewshot{case}.")}
    support = Features(golden["support"], golden["support_y"])
    known, asked = standardise(support.rows, golden["query"])
    for ours, rows in ((known, golden["support"]), (asked, golden["query"])):
        assert np.allclose(ours, (rows - golden["mean"]) / golden["scale"], rtol=0, atol=1e-12)
    answers = predict_queries(support, golden["query"])
    assert np.array_equal(answers, golden["pred"])
    assert 100 * (answers == golden["query_y"]).mean() == golden["accuracy_percent"]


def test_supports_and_queries_are_disjoint_and_of_their_classes() -> None:
    train, test = blobs(900, num_classes=8)
    setting = EpisodeSetting(ways=5, shots=10, queries=20)
    for convention, asked in (("train", train), ("test", test)):
        for episode in draw_episodes(setting, convention, train.labels, test.labels, runs=6, seed=4):
            assert len(set(episode.classes)) == 5
            assert np.array_equal(train.labels[list(episode.support)], np.repeat(episode.classes, 10))
            assert np.array_equal(asked.labels[list(episode.query)], np.repeat(episode.classes, 20))
            assert len(set(episode.support)) == 50
            assert len(set(episode.query)) == 100
            if convention == "train":
                assert not set(episode.support) & set(episode.query)


def test_episodes_depend_on_the_seed_alone_and_differ_between_runs() -> None:
    train, test = blobs(900, num_classes=8)
    setting = EpisodeSetting(ways=3, shots=5, queries=10)
    first, again, other = (
        draw_episodes(setting, "train", train.labels, test.labels, runs=4, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert len({each.support for each in (*first, *other)}) == 8


def test_a_query_is_answered_the_same_whatever_stands_beside_it() -> None:
    """The scaler is fitted on the support alone: an outlandish query moves no other one."""
    train, test = blobs(300)
    alone = predict_queries(train, test.rows)
    crowd = predict_queries(train, np.concatenate([test.rows, 1e6 * np.ones((50, 16))]))
    assert np.array_equal(alone, crowd[: len(alone)])


def test_figures_by_hand() -> None:
    """Classes far apart are all answered right; the deviation is that of the population."""
    train, test = blobs(900, num_classes=6, apart=40.0)
    outcome = FewShot(ways=(5,), shots=(10,), queries=5, runs=3)(train, test)
    assert outcome.metrics == {
        "fewshot_5w10s": 1.0,
        "fewshot_5w10s_std": 0.0,
        "fewshot_5w10s_test_queries": 1.0,
        "fewshot_5w10s_test_queries_std": 0.0,
    }
    assert outcome.chance == {"fewshot_5w10s": 0.2, "fewshot_5w10s_test_queries": 0.2}


@pytest.mark.parametrize("ways", [5, 10])
def test_features_of_noise_are_at_chance(ways: int) -> None:
    """50 runs of 20 * ways queries: the mean's deviation is below 0.01, so 0.03 is beyond three of them."""
    draw = np.random.default_rng(0)
    noise = [Features(draw.standard_normal((1200, 12)).astype(np.float32), draw.integers(0, 12, 1200)) for _ in "ab"]
    metrics = FewShot(ways=(ways,), shots=(10,), runs=50, convention="train")(*noise).metrics
    assert abs(metrics[f"fewshot_{ways}w10s"] - 1 / ways) < 0.03


def test_kept_episodes_repeat_the_figures_exactly(tmp_path: Path) -> None:
    train, test = blobs(900, num_classes=6, apart=0.6)
    drawn = FewShot(ways=(3, 5), shots=(5,), queries=8, runs=3, seed=7)(train, test)
    file = tmp_path / "document.json"
    file.write_text(json.dumps({"details": dict(drawn.details)}))
    assert FewShot(episodes=str(file))(train, test).metrics == drawn.metrics
    assert FewShot(ways=(3, 5), shots=(5,), queries=8, runs=3, seed=8)(train, test).metrics != drawn.metrics


def test_episodes_of_other_data_and_files_without_any_are_refused(tmp_path: Path) -> None:
    train, test = blobs(900)
    episodes = draw_episodes(EpisodeSetting(3, 5, 5), "train", train.labels, test.labels, runs=2, seed=0)
    file = tmp_path / "episodes.json"
    file.write_text(json.dumps(plain_episodes(episodes, train.labels, test.labels)))
    assert read_episodes(file, train.labels, test.labels) == episodes
    with pytest.raises(DataError, match="belongs to other data"):
        read_episodes(file, train.labels[1:], test.labels)
    for text in ("{}", "[1]", "no json"):
        file.write_text(text)
        with pytest.raises(ConfigError, match="contains no episodes"):
            read_episodes(file, train.labels, test.labels)
    with pytest.raises(ConfigError, match="there is no file"):
        read_episodes(tmp_path / "none.json", train.labels, test.labels)


def test_a_file_of_episodes_goes_with_nothing_else(tmp_path: Path) -> None:
    for given in ({"ways": (3,)}, {"shots": (1,)}, {"queries": 5}, {"runs": 2}, {"convention": "test"}, {"seed": 1}):
        with pytest.raises(ConfigError, match=f"^episodes: .*, and {next(iter(given))} would have no effect"):
            FewShot(episodes=str(tmp_path / "any.json"), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("support", lambda each: [600, *each["support"][1:]], "support: found 600, allowed is 0 to 599"),
        ("support", lambda each: [-1, *each["support"][1:]], "support: found -1, allowed is 0 to 599"),
        ("query", lambda each: [600, *each["query"][1:]], "query: found 600, allowed is 0 to 599"),
        ("query", lambda each: [300, *each["query"][1:]], "query: found 300, allowed is 0 to 299"),  # of the test part
        ("query", lambda each: each["query"][:1], "query: found 1 indices, 2 classes of 2 are 4"),
        ("query", lambda each: each["support"][:1] + each["query"][1:], "query: index [0-9]+ is also in the support"),
        ("support", lambda each: each["support"][:1] * 2 + each["support"][2:], "support: an index occurs twice"),
        (
            "support",
            lambda each: each["support"][::-1],
            "support: its indices are not 2 samples of each of the classes",
        ),
        ("classes", lambda each: each["classes"][:1] * 2, "classes: found .*, expected 2 different ones"),
    ],
)
def test_episodes_whose_answers_are_known_or_wrong_are_refused(
    name: str, change: Callable[[Any], list[int]], told: str, tmp_path: Path
) -> None:
    """On noise, queries that are their own support would be answered all right."""
    train, test = blobs(900)
    convention: Any = "test" if "299" in told else "train"
    episodes = draw_episodes(EpisodeSetting(2, 2, 2), convention, train.labels, test.labels, runs=1, seed=0)
    document = plain_episodes(episodes, train.labels, test.labels)
    document["episodes"][0][name] = change(document["episodes"][0])
    file = tmp_path / "episodes.json"
    file.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=f"episodes.0: {told}"):
        FewShot(episodes=str(file))(train, test)


def test_too_few_samples_are_told() -> None:
    train, test = blobs(60)
    with pytest.raises(DataError, match="few-shot 5w20s: needs 5 classes with 40 training samples, there are 0"):
        FewShot(ways=(5,), shots=(20,), convention="train")(train, test)
