"""Episodes are seeded and disjoint; the classifier is the authors'; nothing of the queries is learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sightline.contract.errors import DataError
from sightline.workbench.probe.features import Features
from sightline.workbench.probe.few_shot import FewShot, draw_episodes, predict_queries
from tests.golden_parity import load_golden
from tests.probe.blobs import blobs


@pytest.mark.shared
@pytest.mark.parametrize("case", range(3))
def test_golden_few_shot(shared: Path, case: int) -> None:
    arrays = load_golden(shared, "fn_svm_fewshot").arrays
    golden = {name.partition(".")[2]: value for name, value in arrays.items() if name.startswith(f"fewshot{case}.")}
    answers = predict_queries(Features(golden["support"], golden["support_y"]), golden["query"])
    assert np.array_equal(answers, golden["pred"])
    assert 100 * (answers == golden["query_y"]).mean() == golden["accuracy_percent"]


def test_supports_and_queries_are_disjoint_and_of_their_classes() -> None:
    train, _ = blobs(900, num_classes=8)
    for support, query in draw_episodes(train.labels, ways=5, shots=10, queries=20, runs=6, seed=4):
        classes = train.labels[support[::10]]
        assert len(set(classes)) == 5
        assert np.array_equal(train.labels[support], np.repeat(classes, 10))
        assert np.array_equal(train.labels[query], np.repeat(classes, 20))
        assert len({*support, *query}) == 150


def test_episodes_depend_on_the_seed_alone_and_differ_between_runs() -> None:
    train, _ = blobs(900, num_classes=8)
    first, again, other = (
        draw_episodes(train.labels, ways=3, shots=5, queries=10, runs=4, seed=seed) for seed in (0, 0, 1)
    )
    assert all(map(np.array_equal, _flat(first), _flat(again)))
    assert len({tuple(support) for support, _ in (*first, *other)}) == 8


def _flat(episodes: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    return [indices for episode in episodes for indices in episode]


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
    assert outcome.metrics == {"fewshot_5w10s": 1.0, "fewshot_5w10s_std": 0.0}
    assert outcome.chance == {"fewshot_5w10s": 0.2}


@pytest.mark.parametrize("ways", [5, 10])
def test_features_of_noise_are_at_chance(ways: int) -> None:
    """50 runs of 20 * ways queries: the mean's deviation is below 0.01, so 0.03 is beyond three of them."""
    draw = np.random.default_rng(0)
    noise = Features(draw.standard_normal((1200, 12)).astype(np.float32), draw.integers(0, 12, 1200))
    metrics = FewShot(ways=(ways,), shots=(10,), runs=50)(noise, noise).metrics
    assert abs(metrics[f"fewshot_{ways}w10s"] - 1 / ways) < 0.03


def test_too_few_samples_are_told() -> None:
    train, test = blobs(60)
    with pytest.raises(DataError, match="few-shot 5w20s: needs 5 classes with 40 training samples, there are 0"):
        FewShot(ways=(5,), shots=(20,))(train, test)
