"""Few-shot classification on frozen features: mean and spread over seeded episodes."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from sightline.contract import registry
from sightline.contract.arguments import Count, Seed
from sightline.contract.errors import ConfigError, DataError
from sightline.workbench.probe.features import Features
from sightline.workbench.probe.methods import Outcome, Probe, Table, require_sklearn


def draw_episodes(
    labels: np.ndarray, *, ways: int, shots: int, queries: int, runs: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw episodes: indices (ways * shots,) to learn from and others (ways * queries,) to score, ordered by class.

    They are a pure function of the arguments; classes are drawn uniformly. Raises DataError if fewer classes than
    `ways` have enough samples.
    """
    samples = {int(label): np.flatnonzero(labels == label) for label in np.unique(labels)}
    eligible = [label for label, indices in samples.items() if len(indices) >= shots + queries]
    if len(eligible) < ways:
        raise DataError(
            f"few-shot {ways}w{shots}s: needs {ways} classes with {shots + queries} training samples, "
            f"there are {len(eligible)}; give fewer ways, shots or queries"
        )
    episodes = []
    for run in range(runs):
        draw = np.random.default_rng(np.random.SeedSequence((seed, ways, shots, queries, run)))
        classes = draw.choice(eligible, size=ways, replace=False)
        drawn = [draw.permutation(samples[int(label)])[: shots + queries] for label in classes]
        episodes.append(
            (np.concatenate([rows[:shots] for rows in drawn]), np.concatenate([rows[shots:] for rows in drawn]))
        )
    return episodes


@registry.probes.add("few_shot")
class FewShot(Probe):
    """Few-shot probe: linear SVM (C = 1) on `shots` samples of `ways` classes, scored on `queries` others of each.

    All samples are of the training split. Features are standardised by the samples to learn from. Metrics are mean and
    population deviation over `runs` episodes: `fewshot_5w10s`, `fewshot_5w10s_std`. Source: Afham et al. 2022, section
    4.1.
    """

    most_rows: ClassVar[int | None] = None

    def __init__(
        self,
        *,
        ways: tuple[Count, ...] = (5, 10),
        shots: tuple[Count, ...] = (10, 20),
        queries: Count = 20,
        runs: Count = 10,
        seed: Seed = 0,
    ) -> None:
        if not ways or not shots or min(ways) < 2:
            raise ConfigError("ways: give at least one number of classes, 2 or more, and one of shots")
        require_sklearn()
        self.settings = [(number, size) for number in sorted(set(ways)) for size in sorted(set(shots))]
        self.queries = queries
        self.runs = runs
        self.seed = seed

    def __call__(self, train: Features, test: Features) -> Outcome:
        """Compute mean accuracy and deviation of each setting."""
        metrics: dict[str, float] = {}
        chance: dict[str, float] = {}
        for ways, shots in self.settings:
            episodes = draw_episodes(
                train.labels, ways=ways, shots=shots, queries=self.queries, runs=self.runs, seed=self.seed
            )
            accuracies = []
            for support, query in episodes:
                predicted = predict_queries(train.take(support), train.rows[query])
                accuracies.append(float((predicted == train.labels[query]).mean()))
            name = f"fewshot_{ways}w{shots}s"
            metrics |= {name: float(np.mean(accuracies)), f"{name}_std": float(np.std(accuracies))}
            chance[name] = 1.0 / ways
        rows = [(name, metrics[name], metrics[f"{name}_std"], chance[name]) for name in chance]
        note = f"linear SVM with C = 1 on features standardised by the samples to learn from; {self.runs} episodes"
        return Outcome(metrics, chance, Table("few-shot", ("setting", "mean", "std", "chance"), rows), (note,))


def predict_queries(support: Features, rows: np.ndarray) -> np.ndarray:
    """Predict classes (N,) of `rows` (N, D) by a linear SVM (C = 1) on the support, standardised by the support."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    machine = make_pipeline(StandardScaler(), SVC(kernel="linear", C=1.0))
    machine.fit(support.rows.astype(np.float64), support.labels)
    predictions: np.ndarray = machine.predict(rows.astype(np.float64))
    return predictions
