"""Data of another scale than the weights to start from learned on, by the statistics that they kept."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline.doctor.context import Context, check
from sightline.doctor.core.dry_run import isolated_copy
from sightline.doctor.core.finding import Finding, FindingLocation
from sightline.engine.build import DataSubset
from sightline.engine.device import to_device
from sightline.types import Batch, SampleKey

__all__ = ["LayerScale", "feature_scale", "layer_scales", "other_scale", "sampled_batch"]

_NUM_SAMPLES = 16
_OTHER_SCALE = 4.0  # augmentation by 0.5 to 2 and another data set in the same unit stay below two
_NOT_LINEAR = 0.05
_TINY = 1e-300


class LayerScale(NamedTuple):
    """How a batch norm's inputs lie against what it remembers: their deviation as a multiple, the median channel's."""

    layer: str
    ratio: float


@check(
    "G39",
    "feature-scale",
    "preflight",
    severity="warning",
    causes=("data.normalisation", "clf.feature_scale", "data.layout", "cfg.override"),
)
def feature_scale(context: Context) -> list[Finding]:
    """With weights from `init`, the first batch norms are given numbers of the size that they have averages of.

    The averages are those of the data that the weights learned on, so no sample of it is needed.
    Source: Ioffe and Szegedy 2015, section 3.1 (inference uses the statistics of training).
    """
    if context.config.init is None or context.built.init_report is None or context.built.job.step > 0:
        return []
    job, part, device = context.built.job, context.built.data.selection, context.world.device
    try:
        batch = sampled_batch(part, seed=context.config.seed)
        batch = to_device(batch, device, float_dtype=job.precision.parameter_dtype)
        with job.precision.autocast(device):
            scales = layer_scales(job.model, batch, job.task.predict)
    except Exception:  # noqa: BLE001 - whatever a model or data set dies of, `first-step` reports it
        return []
    found = other_scale(scales, where=context.place("data"), source=context.config.init.source)
    return [] if found is None else [found]


def sampled_batch(part: DataSubset, *, seed: int) -> Batch:
    """Sixteen samples of a part, or all that it has: enough to detect another scale."""
    return part.reader([SampleKey(int(index), 0, seed) for index in part.evenly_spaced_indices(_NUM_SAMPLES)])


def layer_scales(model: nn.Module, batch: Batch, run: Callable[[nn.Module, Batch], Any]) -> list[LayerScale]:
    """The scale of the inputs of each batch norm that has learned, and whose inputs double when the points do.

    Those are the first ones: a norm makes what comes after it forget the scale. `run` puts a batch through a model, on
    copies that take the statistics of this batch, whichever kernels do it.
    """
    learned = {name: module for name, module in model.named_modules() if _has_learned(module)}
    doubled = {**batch, "points": 2 * batch["points"]}
    once, twice = (_statistics(model, given, run) for given in (batch, doubled))
    found = []
    for name, module in learned.items():
        growth = (_size(*twice[name]) / _size(*once[name]).clamp(min=_TINY)).median()
        if abs(float(growth) - 2) > _NOT_LINEAR:
            continue
        mean, variance = once[name]
        kept_mean, kept_variance = _averages(module)
        about = variance + (mean - kept_mean).square()
        kept = kept_variance + module.eps
        found.append(LayerScale(name, float((about / kept).sqrt().median())))
    return found


def _has_learned(module: Any) -> bool:
    """Whether it is a batch norm whose averages are not those that it was made with."""
    if not isinstance(module, nn.modules.batchnorm._BatchNorm) or module.running_mean is None:
        return False
    assert module.running_var is not None, "averages come in pairs"
    return not (bool((module.running_mean == 0).all()) and bool((module.running_var == 1).all()))


def _averages(module: Any) -> tuple[Tensor, Tensor]:
    """Mean and variance that a norm has learned, without the 0 and 1 that it began with.

    Those still have a share of (1 - momentum)^n after n batches. Weights of others may not count their batches.
    """
    count = 0 if module.num_batches_tracked is None else int(module.num_batches_tracked)
    share = 0.0 if count == 0 or module.momentum is None else (1 - module.momentum) ** count
    mean, variance = module.running_mean.double(), module.running_var.double()
    return mean / (1 - share), ((variance - share) / (1 - share)).clamp(min=_TINY)


def _statistics(
    model: nn.Module, batch: Batch, run: Callable[[nn.Module, Batch], Any]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of the inputs of every batch norm, by channel, as one batch shows them."""
    copied = isolated_copy(model).train()
    norms = {name: m for name, m in copied.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    for norm in norms.values():
        norm.momentum = 1.0
    with torch.no_grad():
        run(copied, batch)
    return {
        name: (norm.running_mean.double(), norm.running_var.double())
        for name, norm in norms.items()
        if norm.running_mean is not None and norm.running_var is not None
    }


def _size(mean: Tensor, variance: Tensor) -> Tensor:
    return (variance + mean.square()).sqrt()


def other_scale(scales: list[LayerScale], *, where: FindingLocation, source: str) -> Finding | None:
    """The finding of the first of these layers on the data of a network of `source`; None where all is well."""
    finite = [each for each in scales if math.isfinite(each.ratio) and each.ratio > 0]
    if not finite or not _is_other(finite[0].ratio):
        return None
    first = finite[0]
    times = f"{max(first.ratio, 1 / first.ratio):.3g} times as {'large' if first.ratio > 1 else 'small'}"
    return feature_scale.finding(
        dataclasses.replace(where, layer=first.layer),
        f"the inputs of the loaded weights are {times} as those that they learned on",
        measured=f"inputs of {first.layer} lie {first.ratio:.3g} times as far from its running average as there",
        expected=f"between {1 / _OTHER_SCALE:g} and {_OTHER_SCALE:g} times",
        action="normalise clouds as the run that the weights are of did: transforms.evaluate, or how the set was "
        "prepared (sightline data info DIR)",
        evidence={"from": source, "layers": [[each.layer, each.ratio] for each in finite[:8]]},
    )


def _is_other(ratio: float) -> bool:
    return not 1 / _OTHER_SCALE <= ratio <= _OTHER_SCALE
