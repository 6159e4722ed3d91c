"""Metrics of probes beside those of random weights and of guessing; the final metric of contrast runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sightline.config import RunConfig
from sightline.contract.errors import DataError, UserError
from sightline.engine.distributed import World
from sightline.workbench.probe.classifiers import SVM
from sightline.workbench.probe.features import FeatureSplit, Scale, share_errors
from sightline.workbench.probe.methods import (
    Outcome,
    Probe,
    UnprobableError,
    assert_fits,
    chance_accuracy,
    start,
)
from sightline.workbench.probe.probed_run import ProbedRun, extract_split, open_data, warnings_on_data


@dataclass(frozen=True, repr=False)
class Comparison:
    """Outcomes of the probes of a run, those of the same network with random weights, and the accuracy of guessing.

    `scales` are those of the training features, of the run's weights and of random ones.
    """

    probed: ProbedRun
    trained: Mapping[str, Outcome]
    random: Mapping[str, Outcome]
    guessing: dict[str, float]
    scales: tuple[Scale, Scale]

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of all probes."""
        return {name: value for outcome in self.trained.values() for name, value in outcome.metrics.items()}

    @property
    def baselines(self) -> dict[str, tuple[float, float]]:
        """Value of each accuracy with random weights, and that of guessing."""
        return {
            name: (value, outcome.chance.get(name, self.guessing["uniform_guess"]))
            for outcome in self.random.values()
            for name, value in outcome.metrics.items()
            if not name.endswith("_std")
        }

    def __repr__(self) -> str:
        figures = ", ".join(
            f"{name} {self.metrics[name]:.4g} (random weights {random:.4g}, chance {chance:.4g})"
            for name, (random, chance) in self.baselines.items()
        )
        return f"Comparison({self.probed.run}: {figures})"

    def list_notes(self) -> list[str]:
        """List the scale of the features, the protocols and warnings, those of random weights last."""
        ours, theirs = self.scales
        lines = [f"features: {ours}; of random weights: {theirs}"]
        lines += [line for outcome in self.trained.values() for line in (*outcome.protocol, *outcome.warnings)]
        return lines + [f"random weights: {line}" for outcome in self.random.values() for line in outcome.warnings]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, with a description of the run and data."""
        probed, data = self.probed, self.probed.data
        sizes = {"train": len(data.train.indices), "test": len(data.test.indices), "num_classes": data.num_classes}
        return {
            "run": str(probed.run),
            "checkpoint": str(probed.checkpoint),
            "data": {"name": data.config.data.name, **sizes, "transforms_not_applied": list(data.left_out)},
            "features": {name: dataclasses.asdict(s) for name, s in zip(("run", "random"), self.scales, strict=True)},
            "metrics": self.metrics | {f"{name}_random": value for name, (value, _) in self.baselines.items()},
            "chance": {name: value for name, (_, value) in self.baselines.items()} | self.guessing,
            "tables": {name: dataclasses.asdict(outcome.table) for name, outcome in self.trained.items()},
            "protocol": self.list_notes(),
            "notes": list(probed.notes),
            "is_test_selected": probed.is_test_selected,
        }


def compare_with_random(
    probes: Mapping[str, Probe], probed: ProbedRun, trained: FeatureSplit, random: FeatureSplit
) -> Comparison:
    """Apply the same probes to trained and to random features, and compute the accuracy of guessing."""
    ours, theirs = ({name: probe(s.train, s.test) for name, probe in probes.items()} for s in (trained, random))
    guessing = chance_accuracy(trained.train.labels, trained.test.labels, probed.data.num_classes)
    return Comparison(probed, ours, theirs, guessing, (Scale.of(trained.train), Scale.of(random.train)))


_METRIC = "probe_svm_accuracy"
_MAX_TURN_S = 1.0


def final_metrics(config: RunConfig, model: nn.Module, world: World) -> tuple[dict[str, float], list[str]]:
    """Compute `probe_svm_accuracy` as `evaluate --probe svm` does on the config's own data, and notes on it.

    The notes state why it is missing: data without classes, a model without `encode`, features that are not finite, too
    little memory. An error never ends the run. To be called on every process: rank 0 trains the probe, and all get the
    same value.
    """
    try:
        with share_errors(world):  # a process may lack scikit-learn, or the data
            probe = SVM()
            data = open_data(config)
            assert_fits(probe, len(data.train.indices))
            remarks = warnings_on_data(config, data.train.dataset.info, config.model, data)
        split = extract_split(model, config.train.precision, data, world)
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
    return json.dumps([dict(outcome.metrics), [f"{_METRIC}: {line}" for line in (guessing, *outcome.warnings)]])


def _describe_omission(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        text = f"not enough memory for the features; a smaller evaluate.batch_size needs less ({text})"
    elif isinstance(error, UnprobableError):
        text = f"{text}; sightline evaluate RUN --probe svm --data CONFIG trains and tests on other clouds"
    elif not isinstance(error, UserError):
        text = f"{type(error).__name__}: {text}"
    return f"{_METRIC} is left out: {text}"
