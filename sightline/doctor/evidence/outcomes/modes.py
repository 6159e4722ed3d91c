"""Outputs of a network in evaluation mode against those in training mode, on copies and on the same samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline.contract.pytree import dense_leaves, tree_map
from sightline.doctor.attempts import LeftOutError, NotApplicableError
from sightline.instrument import Inputs, copy_module

_DROPOUTS = (nn.modules.dropout._DropoutNd,)
_NORMS = (nn.modules.batchnorm._BatchNorm,)
_MIN_ROWS, _MIN_SPREAD = 4, 1e-4
"""Samples of a batch, and least spread of their outputs by the size of these."""
_MAX_RATIO = 10.0
"""Ratio of a running variance to that of a batch, and distance of a mean in deviations, from which a layer is named."""


class Compared(NamedTuple):
    """Mean squares of an output: `gap` between the modes, `noise` between passes in training mode; and what differs.

    `ratio` is how far the running statistics of a layer are from those of the batch: the largest ratio of two
    variances, or distance of two means in deviations. With `is_young`, that variance is what is left of its start, 1.
    """

    path: str
    gap: float
    noise: float
    ratio: float
    layer: str | None
    words: str
    is_young: bool = False


def compare_modes(model: nn.Module, inputs: Inputs, flags: Mapping[str, bool]) -> Compared:
    """Compare the modes of a network on a batch, by copies, of the output that differs most.

    `flags` are the training flags of modules in training, by name: a batch norm that is frozen stays so. Dropouts are
    off. Raises NotApplicableError for a network of one mode, and for fewer than four samples.
    """
    norms = [name for name, module in model.named_modules() if isinstance(module, _NORMS) and flags.get(name, True)]
    if not any(getattr(model.get_submodule(name), "running_var", None) is not None for name in norms):
        raise NotApplicableError("no running statistics")
    sizes = [len(tensor) for _, tensor in dense_leaves(inputs) if tensor.ndim]
    if not sizes or sizes[0] < _MIN_ROWS:
        raise LeftOutError(f"fewer than {_MIN_ROWS} samples in a batch")
    with torch.no_grad():
        evaluated = _run(copy_module(model).eval(), inputs)
        trained_model = _set_training(copy_module(model), flags)
        trained = _run(trained_model, inputs)
        halves = [_run(_set_training(copy_module(model), flags), half) for half in _halve(inputs, sizes[0])]
    found = [
        Compared(path, *numbers, 0.0, None, "")
        for path, tensor in trained.items()
        if (numbers := _compare(tensor, evaluated.get(path), [half.get(path) for half in halves])) is not None
    ]
    if not found:
        raise NotApplicableError("no outputs of several samples in both modes")
    worst = max(found, key=lambda each: each.gap / (each.noise + 1e-3))
    return worst._replace(**_find_layer(model, trained_model, norms))


def _set_training(model: nn.Module, flags: Mapping[str, bool]) -> nn.Module:
    """Set training mode, dropouts off; statistics that a pass leaves are then those of its batch."""
    model.train()
    for name, module in model.named_modules():
        module.training = flags.get(name, True) and not isinstance(module, _DROPOUTS)
        if isinstance(module, _NORMS) and module.momentum is not None:
            module.momentum = 1.0
    return model


def _run(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    args, kwargs = tree_map(inputs, lambda _, tensor: tensor.detach().clone())
    outputs = model(*args, **kwargs)
    return {path: t.detach().float() for path, t in dense_leaves(outputs) if t.is_floating_point() and t.ndim}


def _halve(inputs: Inputs, number: int) -> Iterator[Inputs]:
    """Yield the first and the second half of the samples; what is not of samples is in both."""
    for rows in (slice(number // 2), slice(number // 2, number)):

        def take(_: str, tensor: Tensor, rows: slice = rows) -> Tensor:
            return tensor[rows] if tensor.ndim and len(tensor) == number else tensor

        yield tree_map(inputs, take)


def _compare(trained: Tensor, evaluated: Tensor | None, halves: list[Tensor | None]) -> tuple[float, float] | None:
    """Compare an output (B, ...) of both modes, and of passes of half of the samples."""
    if evaluated is None or evaluated.shape != trained.shape or len(trained) < 2 or None in halves:
        return None
    joined = torch.cat([half for half in halves if half is not None])
    if joined.shape != trained.shape:
        return None
    spread = (trained - trained.mean(0)).square().mean()
    if not bool(spread > _MIN_SPREAD * trained.square().mean()):
        return None
    numbers = torch.stack([(evaluated - trained).square().mean(), (joined - trained).square().mean()]) / spread
    gap, noise = numbers.nan_to_num(nan=0.0).tolist()
    return gap, noise


def _find_layer(model: nn.Module, trained: nn.Module, norms: list[str]) -> dict[str, Any]:
    """Find the first batch norm whose running statistics are unlike those of the batch, or the most unlike one."""
    found = [
        (name, *_compare_statistics(own, batch))
        for name in norms
        if isinstance(own := model.get_submodule(name), _NORMS)
        and isinstance(batch := trained.get_submodule(name), _NORMS)
        if own.running_var is not None and batch.momentum is not None
    ]
    if not found:
        return {}
    far = [each for each in found if each[1] > _MAX_RATIO]
    name, ratio, words, is_young = far[0] if far else max(found, key=lambda each: each[1])
    return {"ratio": ratio, "layer": name, "words": words, "is_young": is_young}


def _compare_statistics(
    own: nn.modules.batchnorm._BatchNorm, batch: nn.modules.batchnorm._BatchNorm
) -> tuple[float, str, bool]:
    """Compare running statistics with those of a batch, in the channel that differs most.

    Returns how far they are apart, in words too, and whether most of a running variance is left of its start, which is
    1: a network that is trained for few steps on inputs of small variances keeps that.
    """
    mean, variance, of_mean, of_variance = (
        torch.as_tensor(each).double()
        for each in (own.running_mean, own.running_var, batch.running_mean, batch.running_var)
    )
    floor = of_variance.clamp(min=1e-12)
    kinds = (
        ("running variance", variance / floor, variance, of_variance),
        ("running mean", (mean - of_mean).abs() / floor.sqrt(), mean, of_mean),
    )
    word, ratios, values, of_batch = max(kinds, key=lambda each: each[1].max().item())
    channel = int(ratios.argmax())
    words = f"{word} {values[channel].item():.3g} in channel {channel}, {of_batch[channel].item():.3g} in the batch"
    left, count = 0.0, 0 if own.num_batches_tracked is None else int(own.num_batches_tracked)
    if word == "running variance" and own.momentum is not None and count:
        left = (1 - own.momentum) ** count
    is_young = left > 0.5 * values[channel].item()
    words += f", and {left:.3g} is left of its start, 1, after {count} batches" if is_young else ""
    return ratios[channel].item(), words, is_young
