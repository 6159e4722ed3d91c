"""Probe metrics on trained features, compared with random weights and with chance.

Final metric of a run without labels: accuracy of a linear SVM probe on the classes of its own data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from sightline.config import RunConfig
from sightline.contract.errors import DataError, UserError
from sightline.engine.distributed import World
from sightline.workbench.probe.classifiers import Outcome, Probe, UnprobableError, assert_fits, chance_accuracy
from sightline.workbench.probe.features import FeatureCache, feature_statistics, share_errors
from sightline.workbench.probe.probed_run import (
    EncoderRecipe,
    FeatureComparison,
    FeatureSplit,
    ProbedRun,
    extract_split,
    open_data,
    warnings_on_data,
)
from sightline.workbench.probe.svm import SVM, start

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


_METHOD = "probe_svm_accuracy"
_MAX_TURN_S = 1.0


def final_metrics(
    config: RunConfig, model: nn.Module, world: World, *, cache: FeatureCache | None
) -> tuple[dict[str, float], list[str]]:
    """Compute `probe_svm_accuracy` as `sightline probe --method svm` does on the config's own data, and notes on it.

    The notes state why it is missing: data without classes, a model without `encode`, features that are not finite, too
    little memory. An error never ends the run. To be called on every process: rank 0 trains the probe, and all get the
    same value.
    """
    try:
        with share_errors(world):  # a process may lack scikit-learn, or the data
            probe = SVM(standardise="no")
            data = open_data(config)
            assert_fits(probe, len(data.train.indices))
            remarks = warnings_on_data(config, data.train.dataset.info, config.model, data)
        split = extract_split(model, EncoderRecipe(config.model, config.train.precision), data, world, cache=cache)
    except Exception as error:  # noqa: BLE001 - no error may lose hours of training for one metric
        return {}, [_describe_omission(error)]  # on all processes, possibly with different texts
    text = fit_on_rank_zero(
        world, lambda: _train_probe(probe, split, data.num_classes), timeout_s=config.distributed.timeout_s
    )
    metrics, notes = json.loads(text)
    return metrics, [*remarks, *notes]


def fit_on_rank_zero(world: World, learn: Callable[[], str], *, timeout_s: float) -> str:
    """Run `learn` on rank 0 and return its result on all processes, without a time limit.

    The other processes do not wait in one collective, which `timeout_s` would end, but in repeated short ones, while
    rank 0 runs `learn` in a thread; so a lost process is still noticed.
    """
    if world.size == 1:
        return learn()
    turn_s = min(_MAX_TURN_S, timeout_s / 10)
    learning = world.rank_zero_only(start)(learn)
    text = ""
    while not text:
        text = world.broadcast_text(_wait_for_text(learning, turn_s), operation="the probe's figure")
    return text


def _wait_for_text(learning: Future[str] | None, turn_s: float) -> str:
    if learning is None:
        return ""
    wait([learning], timeout=turn_s)
    return learning.result() if learning.done() else ""


def _train_probe(probe: SVM, split: FeatureSplit, num_classes: int) -> str:
    try:
        outcome = probe(split.train, split.test)
    except DataError as error:  # too few samples of a class
        return json.dumps([{}, [_describe_omission(error)]])
    chance = chance_accuracy(split.train.labels, split.test.labels, num_classes)
    guessing = f"guessing gets {chance['uniform_guess']:.4f}, always the largest class {chance['largest_class']:.4f}"
    return json.dumps([dict(outcome.metrics), [f"{_METHOD}: {line}" for line in (guessing, *outcome.warnings)]])


def _describe_omission(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        text = f"not enough memory for the features; a smaller evaluate.batch_size needs less ({text})"
    elif isinstance(error, UnprobableError):
        text = f"{text}; sightline probe RUN --data CONFIG trains and tests on other clouds"
    elif not isinstance(error, UserError):
        text = f"{type(error).__name__}: {text}"
    return f"{_METHOD} is left out: {text}"
