"""Embeddings that are the same for every object, or that all lie on one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sightline.doctor.checks.loss.pair_rows import OUTPUTS
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.engine.device import to_device
from sightline.optional_members import ModelMembers
from sightline.tasks.contrast import Contrast
from sightline.types import Batch, SampleKey

__all__ = ["FeatureSpread", "collapsed_features", "collapsed_trained_features", "spread_of"]

_NUM_SAMPLES = 64
_FEWEST = 8
_FEWEST_STEPS = 100  # before that the running averages, which evaluation uses, are still those of the start
_LEAST_VARIANCE_FRESH = 1e-10  # float32 rows of length 1 are off by some 1e-7, whose square this is a thousand times
_LEAST_VARIANCE = 1e-4  # of rows of length 1: all angles between them are below about a degree
_LEAST_RANK = 1.5


class FeatureSpread(NamedTuple):
    """How unit rows lie about each other: `variance` 0 where all are alike, 1 where they point everywhere.

    `rank` is the number of directions that they differ in, as many as the spectrum is worth: 1 on a line.
    Source: Roy and Vetterli 2007, "The effective rank".
    """

    variance: float
    rank: float
    num_rows: int

    @property
    def figures(self) -> dict[str, float]:
        """As the evidence of findings has them."""
        return {"variance": self.variance, "effective_rank": self.rank}


def spread_of(rows: np.ndarray) -> FeatureSpread:
    """The spread of rows (N, D), each scaled to length 1 first; a row of zeros stays what it is."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(lengths > 0, lengths, 1.0)
    centred = unit - unit.mean(axis=0)
    variance = float((centred**2).sum(axis=1).mean())
    spectrum = np.linalg.svd(centred, compute_uv=False)
    share = spectrum / spectrum.sum() if spectrum.sum() > 0 else np.ones(1)
    share = share[share > 0]
    return FeatureSpread(variance, float(np.exp(-(share * np.log(share)).sum())), len(rows))


@check(
    "G18",
    "collapsed-features",
    "preflight",
    causes=("model.constant_output", "model.init", "model.activation"),
    config_path="model",
)
def collapsed_features(context: Context) -> list[Finding]:
    """Rows of different objects differ at the first step, where their clouds do."""
    rehearsal = context.dry_run
    if not isinstance(context.built.job.task, Contrast) or not rehearsal.is_sound or _is_all_alike(rehearsal.batch):
        return []
    found = []
    for name, rows in _embeddings(rehearsal.seen_outputs):
        spread = spread_of(rows)
        if len(rows) > 1 and spread.variance <= _LEAST_VARIANCE_FRESH:
            found.append(
                collapsed_features.finding(
                    context,
                    f"the model gives the same '{name}' for every object",
                    measured=f"variance {spread.variance:.3g} of {len(rows)} rows of length 1, of different clouds",
                    expected=f"above {_LEAST_VARIANCE_FRESH:g}: nothing can be learnt from rows that are all alike",
                    action=f"look at the layers before '{name}': a factor of zero, a ReLU at the end, a broken pooling",
                    evidence=spread.figures,
                )
            )
    return found[:1]


@check(
    "G18",
    "collapsed-trained-features",
    "offline",
    severity="warning",
    causes=("loss.collapse", "loss.negatives", "optim.lr"),
    config_path="model",
    action="look at the losses beside chance in metrics.jsonl; a lower learning rate, more pairs a step",
)
def collapsed_trained_features(context: Context) -> list[Finding]:
    """The trained network's rows of different objects differ, and in more directions than one."""
    if not isinstance(context.built.job.task, Contrast) or context.built.job.num_steps < _FEWEST_STEPS:
        return []
    model = context.trained_model
    if model is None:
        return []
    return [
        finding
        for name, rows in _of_trained(context, model).items()
        if (finding := _of_rows(context, name, spread_of(rows))) is not None
    ]


def _of_rows(context: Context, name: str, spread: FeatureSpread) -> Finding | None:
    if spread.num_rows < _FEWEST:
        return None
    if spread.variance < _LEAST_VARIANCE:
        summary, measured = f"'{name}' has collapsed: all objects have the same", f"variance {spread.variance:.3g}"
        expected = f"at least {_LEAST_VARIANCE:g}"
    elif spread.rank < _LEAST_RANK:
        summary, measured = f"'{name}' has collapsed onto a line", f"effective rank {spread.rank:.3g}"
        expected = f"at least {_LEAST_RANK:g}"
    else:
        return None
    return collapsed_trained_features.finding(
        context,
        summary,
        measured=f"{measured} of {spread.num_rows} rows of length 1, of different objects",
        expected=expected,
        evidence=spread.figures,
    )


def _of_trained(context: Context, model: nn.Module) -> dict[str, np.ndarray]:
    """Features and embeddings of up to 64 objects of the part that chooses the checkpoint, in evaluation mode."""
    part, job, device = context.built.data.selection, context.built.job, context.world.device
    batch = part.reader(
        [SampleKey(int(index), 0, context.config.seed) for index in part.evenly_spaced_indices(_NUM_SAMPLES)]
    )
    batch = to_device(batch, device, float_dtype=job.precision.parameter_dtype)
    with torch.no_grad(), job.precision.autocast(device):
        found = dict(_embeddings(job.task.predict(model, batch)))
        encode = ModelMembers.encode.get(model)
        if encode is not None:
            with contextlib.suppress(TypeError):  # an encoder of something else than clouds
                found["features"] = _plain(encode(points=batch["points"]))
    return found


def _embeddings(outputs: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    for name in OUTPUTS:
        value = outputs.get(name)
        if isinstance(value, Tensor) and value.ndim == 2 and bool(value.isfinite().all()):
            yield name, _plain(value)


def _plain(rows: Tensor) -> np.ndarray:
    found: np.ndarray = rows.detach().double().cpu().numpy()
    return found


def _is_all_alike(batch: Batch) -> bool:
    points = batch.get("points")
    return not isinstance(points, Tensor) or points.ndim != 3 or bool((points == points[:1]).all())
