"""What a trained network knows of the targets of a run's samples, beside one that looks at other samples."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.contract.types import Batch, SampleKey
from sightline.doctor.attempts import LeftOutError, MissingError, NotApplicableError, attempt
from sightline.doctor.record import Chance
from sightline.engine.batches.stream import BatchLoader
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.engine.evaluate import Evaluation, Evaluator
from sightline.engine.run_data import DataSubset, read_with
from sightline.parts.tasks.distillation import unwrap_distillation
from sightline.parts.tasks.supervised import Supervised
from sightline.workbench.check.dry_run import isolated_copy
from sightline.workbench.check.sample_statistics import count_bytes, count_to_read, read_samples

_MOST, _FEWEST, _MOVES = 64, 8, (1, 2, 3)
"""Samples of a part at most and at least, and by how many places their inputs are moved."""
_CLEAR = 0.5
"""Share of the loss with the inputs of others below which a network knows its targets, whatever the figure says."""


def measure_chances(built: TrainingSetup, model: nn.Module) -> list[Chance]:
    """Measure the loss and the figure of a trained network on samples of training and of the part that chooses.

    Both are read as in evaluation, and measured again with inputs of other samples. Raises NotApplicableError where the
    task names no inputs, and where a part has no loss or fewer than eight samples.
    """
    task = unwrap_distillation(built.job.task)
    if not isinstance(task, Supervised):
        raise NotApplicableError("a task whose inputs are not named")
    train, chosen = built.data.train, built.data.selection
    parts = [read_with(built.config, train, "evaluate", train), chosen]
    copied = isolated_copy(model).to(built.job.device)
    found = [
        attempt("chance", _measure_part, {"built": built, "model": copied, "part": part, "names": task.input_names})
        for part in parts
    ]
    known = [each for each in found if not isinstance(each, MissingError)]
    missing = [each for each in found if isinstance(each, MissingError)]
    if not known or any(each.kind == "failed" for each in missing):
        raise next((each for each in missing if each.kind == "failed"), missing[0])
    return known


def _measure_part(built: TrainingSetup, model: nn.Module, part: DataSubset, names: Sequence[str]) -> Chance:
    """Measure a part, first with its own inputs; with those of one other sample each, where the loss shows enough."""
    (first,) = read_samples(part.dataset, [SampleKey(int(part.indices[0]), 0, built.config.seed)])
    indices = part.evenly_spaced_indices(min(_MOST, count_to_read(count_bytes(first), is_quick=True)))
    if len(indices) < _FEWEST:
        raise LeftOutError(f"fewer than {_FEWEST} samples")
    figure, loss = _evaluate(built, model, part.reader, indices)
    others = []
    for by in _MOVES:
        moved = _MovedInputs(part.reader, indices, names, by=by)
        hook = model.register_forward_pre_hook(moved.exchange, with_kwargs=True)
        try:
            others.append(_evaluate(built, model, moved, indices))
        finally:
            hook.remove()
        if loss < _CLEAR * others[-1][1]:
            break
    choose = max if built.config.evaluate.mode == "max" else min
    figures, losses = zip(*others, strict=True)
    if not all(map(math.isfinite, (figure, loss, *figures, *losses))):
        raise LeftOutError("an evaluation without a finite loss")
    return Chance(part.split, len(indices), loss, statistics.fmean(losses), figure, choose(figures))


def _evaluate(built: TrainingSetup, model: nn.Module, reader: BatchLoader, indices: np.ndarray) -> tuple[float, float]:
    """Evaluate some samples in one process; return the figure that chooses a checkpoint, and the loss."""
    evaluator: Evaluator = dataclasses.replace(
        built.selection_evaluator,
        reader=reader,
        indices=indices,
        workers=0,
        voting_reader=None,
        votes=1,
        ensemble_models=(),
        loss_names=tuple(built.job.loss_weights),
    )
    with built.job.losses.evaluation_mode(built.job.losses_ema):
        evaluation: Evaluation = evaluator(model, World(device=built.job.device))
    weights = built.job.loss_weights_at(max(built.job.num_steps - 1, 0))
    loss = math.fsum(weights[name] * value for name, value in evaluation.losses.items() if weights.get(name))
    return evaluation.metrics[built.config.evaluate.metric], loss if evaluation.losses else math.nan


class _MovedInputs:
    """Reader of batches, and hook of a model, which then gets the inputs of the sample `by` places further.

    All else reads the batch as it is. Of samples of unlike sizes, the rows of the other one are repeated, or left out,
    so that it has as many.
    """

    def __init__(self, reader: BatchLoader, indices: np.ndarray, names: Sequence[str], *, by: int) -> None:
        self._reader, self._names = reader, names
        self._others = dict(zip(indices.tolist(), np.roll(indices, -by).tolist(), strict=True))
        self._inputs: dict[str, Tensor] = {}

    def __call__(self, keys: Sequence[SampleKey]) -> Batch:
        batch = self._reader(keys)
        others = self._reader([dataclasses.replace(key, index=self._others[key.index]) for key in keys])
        self._inputs = {name: _fit(name, batch, others) for name in self._names if isinstance(batch.get(name), Tensor)}
        return batch

    def exchange(self, _: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        """Put the inputs of the other samples in place of a pass's own."""
        if args or any(named[name].shape != self._inputs[name].shape for name in named if name in self._inputs):
            raise NotApplicableError("a task that divides samples")
        return args, {
            name: self._inputs[name].to(value) if name in self._inputs else value for name, value in named.items()
        }


def _fit(name: str, batch: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> Tensor:
    """Return the input of the other samples in the sizes of their own."""
    own, other = batch[name], others[name]
    if name.endswith("offsets"):
        return own
    for ends in (key for key in batch if key.endswith("offsets")):
        if int(batch[ends][-1]) == len(own) and int(others[ends][-1]) == len(other):
            pairs = [zip(each[ends].tolist(), each[ends][1:].tolist(), strict=False) for each in (batch, others)]
            rows = [start + torch.arange(b - a) % (end - start) for (a, b), (start, end) in zip(*pairs, strict=True)]
            return other[torch.cat(rows)]
    if own.shape != other.shape:
        raise NotApplicableError(f"inputs '{name}' of unlike sizes")
    return other
