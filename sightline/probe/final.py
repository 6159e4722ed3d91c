"""What a run without labels reports of itself at its end: the accuracy of a linear SVM on its own data's classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future, wait

import torch
from torch import nn

from sightline.config import RunConfig
from sightline.engine.distributed import World
from sightline.errors import DataError, UserError
from sightline.probe.cache import FeatureCache
from sightline.probe.data_mismatch import warnings_on_data
from sightline.probe.features import share_errors
from sightline.probe.folds import chance_accuracy
from sightline.probe.outcome import UnprobableError, assert_fits
from sightline.probe.probed_data import EncoderRecipe, FeatureSplit, extract_split, open_data
from sightline.probe.svm import SVM
from sightline.probe.threads import start

__all__ = ["final_metrics", "fit_on_rank_zero"]

_METHOD = "probe_svm_accuracy"
_LONGEST_TURN_S = 1.0


def final_metrics(
    config: RunConfig, model: nn.Module, world: World, *, cache: FeatureCache | None
) -> tuple[dict[str, float], list[str]]:
    """`probe_svm_accuracy`, the figure of `sightline probe --method svm` for the same weights on the config's own data.

    And notes on it, or why it is missing: data without classes, a model without `encode`, features
    that are not finite, memory that does not suffice. A run that has trained is never lost for it. To be called on
    every process: the first one learns, and all get the same figure.
    """
    try:
        with share_errors(world):  # a process may lack scikit-learn, or the data
            probe = SVM(standardise="no")
            data = open_data(config)
            assert_fits(probe, len(data.train.indices))
            remarks = warnings_on_data(config, data.train.dataset.info, config.model, data)
        split = extract_split(model, EncoderRecipe(config.model, config.train.precision), data, world, cache=cache)
    except Exception as error:  # noqa: BLE001 - hours of training are not lost for a figure, whatever is wrong with it
        return {}, [_left_out(error)]  # on all processes, though each may put it in other words
    text = fit_on_rank_zero(
        world, lambda: _learn(probe, split, data.num_classes), timeout_s=config.distributed.timeout_s
    )
    metrics, notes = json.loads(text)
    return metrics, [*remarks, *notes]


def fit_on_rank_zero(world: World, learn: Callable[[], str], *, timeout_s: float) -> str:
    """The result of `learn` on the first process, on every one, however long it takes.

    The others do not wait in one collective, which `timeout_s` would end, but meet the first again and again while it
    learns beside; so a process that is lost is still noticed.
    """
    if world.size == 1:
        return learn()
    turn_s = min(_LONGEST_TURN_S, timeout_s / 10)
    learning = world.rank_zero_only(start)(learn)
    text = ""
    while not text:
        text = world.broadcast_text(_text_within(learning, turn_s), operation="the probe's figure")
    return text


def _text_within(learning: Future[str] | None, turn_s: float) -> str:
    if learning is None:
        return ""
    wait([learning], timeout=turn_s)
    return learning.result() if learning.done() else ""


def _learn(probe: SVM, split: FeatureSplit, num_classes: int) -> str:
    try:
        outcome = probe(split.train, split.test)
    except DataError as error:  # too few samples of a class
        return json.dumps([{}, [_left_out(error)]])
    chance = chance_accuracy(split.train.labels, split.test.labels, num_classes)
    guessing = f"guessing gets {chance['uniform_guess']:.4f}, always the largest class {chance['largest_class']:.4f}"
    return json.dumps([dict(outcome.metrics), [f"{_METHOD}: {line}" for line in (guessing, *outcome.warnings)]])


def _left_out(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        text = f"memory does not suffice for features; a smaller evaluate.batch_size takes less ({text})"
    elif isinstance(error, UnprobableError):
        text = f"{text}; sightline probe RUN --data CONFIG learns and tests on other clouds"
    elif not isinstance(error, UserError):
        text = f"{type(error).__name__}: {text}"
    return f"{_METHOD} is left out: {text}"
