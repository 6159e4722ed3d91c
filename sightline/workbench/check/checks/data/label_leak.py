"""Inputs of the model that hold the label, or that change nothing.

A target among the arguments of the model, or a channel from which the label follows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sightline.contract.pytree import tree_leaves
from sightline.contract.types import Batch
from sightline.workbench.check.context import Context, step_check
from sightline.workbench.check.core.dry_run import DryRun, read_batch
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.check.core.model_probe import ModelProbe, float_tensors
from sightline.workbench.check.core.sample_statistics import class_axis, evenly_spaced_keys
from sightline.workbench.check.oracles.results import loss_sums

_MIN_REPEATS = 6
"""Minimum number of labels that repeat another one: fewer prove no function."""
_NUM_SAMPLES, _NUM_PLACES = 64, 3
_TARGETS = frozenset(("label", "part", "boxes"))
_NOT_TARGETS = ("category", "sample_index")


@step_check(
    "label-input",
    causes=("data.label_leak", "model.structure"),
    expected="outputs that do not change: a prediction cannot know its target",
    action="take the target out of the model's forward; losses and metrics read it by themselves",
)
def label_input(context: Context, step: DryRun) -> Iterator[Fault]:
    """Outputs in evaluation mode do not change if the targets in the batch are exchanged between samples.

    Finds: A network that reads the target that it must predict.
    """
    targets = [name for name in step.inputs if _is_target(context, step, name)]
    if not targets or len(targets) == len(step.inputs):  # a network of its target alone reconstructs it
        return
    probe = ModelProbe(context.built.job.model, step.inputs)
    for name in targets:
        changed = probe.changed_by({name: _exchange(step.inputs[name])})
        if changed:
            yield Fault(
                f"the model reads '{name}', which a loss compares its outputs with",
                measured=f"'{changed[0]}' changes if '{name}' is exchanged between samples, in evaluation mode",
                evidence={"target": name},
            )


def _is_target(context: Context, step: DryRun, name: str) -> bool:
    """Return True for a key of the batch that holds classes, boxes, or the target of a squared error.

    Other integers are targets if their exchange changes a loss of the same outputs.
    """
    value = step.inputs[name]
    if not isinstance(value, Tensor) or name not in step.batch or name in _NOT_TARGETS or "offsets" in name:
        return False
    squared = {squares.target_key for squares in context.squared_losses.values()}
    if name in _TARGETS | squared:
        return True
    if value.is_floating_point() or value.dtype == torch.bool:
        return False
    outputs = dict(step.seen_outputs)
    sums = [loss_sums(context.built.job, batch, outputs) for batch in (step.batch, _with(step.batch, name))]
    return any(not torch.equal(sums[0][loss], sums[1][loss]) for loss in sums[0])


def _with(batch: Batch, name: str) -> Batch:
    return {**batch, name: _exchange(batch[name])}


def _exchange(value: Tensor) -> Tensor:
    """Exchange the entries of a tensor: by one sample, or inside of it if all samples are equal."""
    rolled = value.roll(1, 0)
    return rolled if not torch.equal(rolled, value) else value.flatten().roll(1).view(value.shape)


@step_check(
    "label-channel",
    causes=("data.label_leak", "data.layout"),
    config_path="data",
    expected="channels that do not follow from the label",
    action="leave that channel out of the inputs: part labels and classes are often the last column of a file",
)
def label_channel(context: Context, step: DryRun) -> Iterator[Fault]:
    """No channel of the inputs is a function of the label.

    Finds: A label among the channels of the inputs, as it is, scaled, or as a one-hot code.

    The channel must have a single value for each class, and different values for two of them; labels that are ignored
    do not count. An autoregressive network may be given its labels: its output at a place does not depend on the input
    there.
    """
    label = step.batch.get("label")
    inputs = {name: value for name, value in float_tensors(step.inputs) if name in step.batch and value.ndim > 1}
    if not isinstance(label, Tensor) or label.is_floating_point() or not inputs:
        return
    batches = _read_batches(context) if label.shape == (step.num_samples,) else [step.batch]
    for name in inputs:
        channels = [_channels_at(batch[name], batch["label"]) for batch in batches]
        if not channels or any(values is None for values in channels):
            continue
        values = torch.cat(channels, dim=0)  # type: ignore[arg-type]
        labels = torch.cat([batch["label"].flatten() for batch in batches])
        ignored = context.built.data.facts.get("ignore_index")
        is_counted = labels != (-1 if ignored is None else ignored)
        found = _find_function(values[is_counted], labels[is_counted])
        if found is not None and not _is_hidden(context, step, name, found[0]):
            channel, texts = found
            yield Fault(
                f"channel {channel} of '{name}' holds the label",
                measured=f"one value for each class in {int(is_counted.sum())} labels: {texts}",
                evidence={"field": name, "channel": channel},
            )


def _is_hidden(context: Context, step: DryRun, name: str, channel: int) -> bool:
    """Return True if outputs at a few places stay the same with another value of a channel of the input there."""
    label, value = step.batch["label"], step.inputs.get(name)
    probe = context.probe(1 + _NUM_PLACES)
    if label.ndim < 2 or not isinstance(value, Tensor) or probe is None:
        return False
    before = probe.outputs()
    of_places = {key: axis for key, out in before.items() if (axis := class_axis(out, label)) is not None}
    for place in range(1, 1 + _NUM_PLACES):
        at = (slice(None), *(place * size // (1 + _NUM_PLACES) for size in label.shape[1:]))
        changed = value.clone()
        (changed.movedim(1, -1) if value.ndim >= 4 else changed)[(*at, ..., channel)] += 1 + value.abs().amax()
        after = probe.outputs({name: changed})
        if any(
            not torch.equal(before[k].movedim(a, -1)[at], after[k].movedim(a, -1)[at]) for k, a in of_places.items()
        ):
            return False
    return bool(of_places)


def _read_batches(context: Context) -> list[Batch]:
    """Read batches with one label for each sample: those of the first step, under `sightline check` more."""
    if not context.is_thorough:
        return [context.first_outputs[0]]
    job, part = context.built.job, context.built.data.train
    keys = evenly_spaced_keys(part, epoch=0, seed=context.config.seed, most_samples=_NUM_SAMPLES)
    return [read_batch(job, list(chunk), context.world.device) for chunk in keys]


def _channels_at(value: Tensor, label: Tensor) -> Tensor | None:
    """Return the channels (n, C) at each label; None if they do not belong together.

    A channel of a cloud or an image with one label counts if it has one value there: else it becomes NaN.
    """
    rows = value.movedim(1, -1) if value.ndim >= 4 else value
    if rows.shape[: label.ndim] != label.shape:
        return None
    if rows.ndim == label.ndim + 1:
        return rows.flatten(0, label.ndim - 1)
    inner = rows.flatten(label.ndim, -2)
    low, high = inner.amin(dim=label.ndim), inner.amax(dim=label.ndim)
    return torch.where(low == high, low, math.nan).flatten(0, label.ndim - 1)


def _find_function(values: Tensor, labels: Tensor) -> tuple[int, str] | None:
    """Find the first channel with one value for each class, and the values of some classes in words."""
    classes = labels.unique()
    if len(labels) - len(classes) < _MIN_REPEATS:
        return None
    low, high = (torch.stack([getattr(values[labels == c], end)(dim=0) for c in classes]) for end in ("amin", "amax"))
    has_data = (low != high).any(dim=1) if values.shape[1] > 1 else low[:, 0] == low[:, 0]
    low, high, classes = low[has_data], high[has_data], classes[has_data]  # without pixels that no point fell into
    is_function = (low == high).all(dim=0) & (low != low[:1]).any(dim=0)
    if len(classes) < 2 or not bool(is_function.any()):
        return None
    channel = int(is_function.nonzero()[0])
    shown = (f"{float(v):g} for class {int(c)}" for c, v in zip(classes[:3], low[:3, channel], strict=True))
    return channel, ", ".join(shown)


@step_check("idle-input", expected="outputs that follow from the inputs")
def idle_input(context: Context, step: DryRun) -> Iterator[Fault]:
    """Each input of numbers changes the outputs, and not all numbers of the inputs are equal.

    Finds: Inputs that are the same everywhere, such as points set to 0, and inputs that the network ignores.

    Parameters of 0, such as those of a last layer that starts at 0, are drawn at random on the copy.
    """
    inputs = dict(float_tensors(step.inputs))
    if not inputs or not dict(tree_leaves(step.seen_outputs)):
        return
    if all(bool((value == value.flatten()[0]).all()) for value in inputs.values()):
        name, value = next(iter(inputs.items()))
        yield Fault(
            f"'{name}' has the same value everywhere",
            causes=("data.corrupt_sample", "data.normalisation", "data.missing_modality"),
            at="transforms.train",
            measured=f"{float(value.flatten()[0]):g} in all of {value.numel()} numbers of {step.num_samples} samples",
            expected="inputs that differ within a sample and between samples",
            action="look at what the transforms return: a factor of 0, or a range that is clipped",
        )
        return
    probe = context.probe(2 * len(inputs))
    if probe is None:
        return
    _fill_zeros(probe)
    idle = [name for name, value in inputs.items() if probe.changed_by(_disturb(name, value)) == []]
    if idle:
        is_all = len(idle) == len(inputs)
        yield Fault(
            f"the outputs do not depend on '{idle[0]}'",
            severity="error" if is_all else "warning",
            causes=("model.structure", "model.constant_output")
            if not is_all
            else ("model.constant_output", "model.structure"),
            measured=f"the same bits with other values of {', '.join(map(repr, idle))}, in evaluation mode",
            action="look for a factor of 0 or an input that forward does not use; take the latter out of its signature",
        )


def _fill_zeros(probe: ModelProbe) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in probe.model.parameters():
            if not bool(parameter.any()):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def _disturb(name: str, value: Tensor) -> dict[str, Tensor]:
    """Return an input with its values reversed, ten times as large; zeros and ones stay such."""
    is_binary = bool((value * (1 - value) == 0).all())
    return {name: value.flatten().flip(0).view(value.shape) * (1.0 if is_binary else 10.0)}
