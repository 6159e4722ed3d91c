"""Embeddings that are the same for every object, or that vary along one line only."""

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

__all__ = ["FeatureSpread", "collapsed_features", "collapsed_trained_features", "measure_spread"]

_NUM_SAMPLES = 64
_MIN_ROWS = 8
_MIN_STEPS = 100  # before, the running averages, which evaluation uses, are close to their initial values
_MIN_VARIANCE_FRESH = 1e-10  # a thousand times the squared float32 error (1e-7) of unit rows
_MIN_VARIANCE = 1e-4  # of unit rows: all angles between them are below about one degree
_MIN_RANK = 1.5


class FeatureSpread(NamedTuple):
    """Spread of unit rows: `variance` is 0 if all are equal and 1 if their mean is 0.

    `rank` is the effective rank of the centred rows, exp of the entropy of their singular values: 1 on a line.
    Source: Roy and Vetterli 2007, "The effective rank".
    """

    variance: float
    rank: float
    num_rows: int

    @property
    def figures(self) -> dict[str, float]:
        """Evidence of a finding: variance and effective rank by name."""
        return {"variance": self.variance, "effective_rank": self.rank}


def measure_spread(rows: np.ndarray) -> FeatureSpread:
    """Compute the spread of rows (N, D), each normalised to length 1 first; a row of zeros stays unchanged."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit_rows = rows / np.where(lengths > 0, lengths, 1.0)
    centred = unit_rows - unit_rows.mean(axis=0)
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
    """Embeddings of different objects differ at the first step, if their clouds differ.

    Finds: Embeddings that are the same for every object, or that vary along one line only.
    """
    rehearsal = context.dry_run
    if not isinstance(context.built.job.task, Contrast) or not rehearsal.is_sound or _are_clouds_equal(rehearsal.batch):
        return []
    findings = []
    for name, rows in _embeddings(rehearsal.seen_outputs):
        spread = measure_spread(rows)
        if len(rows) > 1 and spread.variance <= _MIN_VARIANCE_FRESH:
            findings.append(
                collapsed_features.finding(
                    context,
                    f"the model returns the same '{name}' for every object",
                    measured=f"variance {spread.variance:.3g} of {len(rows)} rows of length 1, of different clouds",
                    expected=f"above {_MIN_VARIANCE_FRESH:g}: nothing can be learnt from equal rows",
                    action=f"look at the layers before '{name}': a factor of zero, a ReLU at the end, a broken pooling",
                    evidence=spread.figures,
                )
            )
    return findings[:1]


@check(
    "G18",
    "collapsed-trained-features",
    "offline",
    severity="warning",
    causes=("loss.collapse", "loss.negatives", "optim.lr"),
    config_path="model",
    action="compare the losses with chance in metrics.jsonl; try a lower learning rate, or more pairs per step",
)
def collapsed_trained_features(context: Context) -> list[Finding]:
    """Embeddings of different objects differ after training, in more than one direction.

    Finds: Embeddings that are the same for every object, or that vary along one line only.
    """
    if not isinstance(context.built.job.task, Contrast) or context.built.job.num_steps < _MIN_STEPS:
        return []
    model = context.trained_model
    if model is None:
        return []
    return [
        finding
        for name, rows in _compute_trained_features(context, model).items()
        if (finding := _finding_collapse(context, name, measure_spread(rows))) is not None
    ]


def _finding_collapse(context: Context, name: str, spread: FeatureSpread) -> Finding | None:
    if spread.num_rows < _MIN_ROWS:
        return None
    if spread.variance < _MIN_VARIANCE:
        summary, measured = f"'{name}' has collapsed: it is the same for all objects", f"variance {spread.variance:.3g}"
        expected = f"at least {_MIN_VARIANCE:g}"
    elif spread.rank < _MIN_RANK:
        summary, measured = f"'{name}' has collapsed onto a line", f"effective rank {spread.rank:.3g}"
        expected = f"at least {_MIN_RANK:g}"
    else:
        return None
    return collapsed_trained_features.finding(
        context,
        summary,
        measured=f"{measured} of {spread.num_rows} rows of length 1, of different objects",
        expected=expected,
        evidence=spread.figures,
    )


def _compute_trained_features(context: Context, model: nn.Module) -> dict[str, np.ndarray]:
    """Compute features and embeddings of up to 64 objects of the selection split: arrays (N, D) by name."""
    part, job, device = context.built.data.selection, context.built.job, context.world.device
    batch = part.reader(
        [SampleKey(int(index), 0, context.config.seed) for index in part.evenly_spaced_indices(_NUM_SAMPLES)]
    )
    batch = to_device(batch, device, float_dtype=job.precision.parameter_dtype)
    with torch.no_grad(), job.precision.autocast(device):
        features = dict(_embeddings(job.task.predict(model, batch)))
        encode = ModelMembers.encode.get(model)
        if encode is not None:
            with contextlib.suppress(TypeError):  # an encoder of other inputs than clouds
                features["features"] = _to_array(encode(points=batch["points"]))
    return features


def _embeddings(outputs: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    for name in OUTPUTS:
        value = outputs.get(name)
        if isinstance(value, Tensor) and value.ndim == 2 and bool(value.isfinite().all()):
            yield name, _to_array(value)


def _to_array(rows: Tensor) -> np.ndarray:
    array: np.ndarray = rows.detach().double().cpu().numpy()
    return array


def _are_clouds_equal(batch: Batch) -> bool:
    points = batch.get("points")
    return not isinstance(points, Tensor) or points.ndim != 3 or bool((points == points[:1]).all())
