"""Probe metrics on trained features, compared with random weights and with chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sightline.probe.features import feature_statistics
from sightline.probe.folds import chance_accuracy
from sightline.probe.outcome import Outcome, Probe
from sightline.probe.probed_run import FeatureComparison, ProbedRun

__all__ = ["Comparison", "compare_with_baselines"]


_BLIND = "the test part chose neither the checkpoint nor anything of the method"
_TEST_SELECTED = "the test part chose the checkpoint (test-selected), and nothing of the method"


@dataclass(frozen=True)
class Comparison:
    """Outcomes of a probe for a run and for random weights by seed, and the accuracy of guessing."""

    trained: Outcome
    random: Mapping[int, Outcome]
    chance: Mapping[str, float]
    statistics: Mapping[str, float]
    random_statistics: Mapping[int, Mapping[str, float]]

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the run, and their mean (for several seeds also the deviation) with random weights."""
        figures = dict(self.trained.metrics)
        for name in self.figures:
            values = [outcome.metrics[name] for outcome in self.random.values()]
            figures[f"{name}_random"] = float(np.mean(values))
            if len(values) > 1:
                figures[f"{name}_random_std"] = float(np.std(values))
        return figures

    @property
    def figures(self) -> list[str]:
        """Names of the accuracies, without deviations."""
        return [name for name in self.trained.metrics if not name.endswith("_std")]

    def get_chance(self, name: str) -> float:
        """Return the value of an accuracy that guessing reaches."""
        return self.trained.chance.get(name, self.chance["uniform_guess"])

    def document(self, probed: ProbedRun) -> dict[str, Any]:
        """Return everything as plain values, with a description of the run and data."""
        return {
            "run": str(probed.run),
            "checkpoint": str(probed.checkpoint),
            "data": {
                "name": probed.data.config.data.name,
                "train": len(probed.data.train.indices),
                "test": len(probed.data.test.indices),
                "num_classes": probed.data.num_classes,
                "train_identity": probed.data.identity(probed.data.train),
                "test_identity": probed.data.identity(probed.data.test),
                "transforms_not_applied": list(probed.data.left_out),
            },
            "metrics": self.metrics,
            "chance": dict(self.chance) | dict(self.trained.chance),
            "features": dict(self.statistics),
            "random": {
                str(seed): {
                    "metrics": dict(outcome.metrics),
                    "warnings": list(outcome.warnings),
                    "features": dict(self.random_statistics[seed]),
                }
                for seed, outcome in self.random.items()
            },
            "protocol": list(self.trained.protocol),
            "warnings": list(self.trained.warnings),
            "notes": list(probed.notes),
            "selection": _TEST_SELECTED if probed.is_test_selected else _BLIND,
            "details": dict(self.trained.details),
        }


def compare_with_baselines(probe: Probe, twins: FeatureComparison, num_classes: int) -> Comparison:
    """Apply the same probe to trained and to random features, and compute the baselines."""
    trained = twins.trained
    return Comparison(
        trained=probe(trained.train, trained.test),
        random={seed: probe(split.train, split.test) for seed, split in twins.random.items()},
        chance=chance_accuracy(trained.train.labels, trained.test.labels, num_classes),
        statistics=feature_statistics(trained.train.rows),
        random_statistics={seed: feature_statistics(split.train.rows) for seed, split in twins.random.items()},
    )
