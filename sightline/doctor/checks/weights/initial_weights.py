"""Initial weights larger than any scheme makes them, and which scheme each layer follows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding

__all__ = ["InitialWeight", "initial_weights", "scheme_of"]

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_MOST_Z = 6.0
_SURE_Z = 3.0
_TOO_LARGE = 3.0
"""Times the largest deviation that a scheme gives a layer of these sizes."""
_FEWEST = 16
_ROUND = (1e-3, 1e-2, 2e-2)
"""Deviations that papers write down: V2V-PoseNet, VGG, transformers."""
_COLUMNS = ("layer", "weights", "mean", "std", "scheme", "std by the scheme", "z")


@dataclass(frozen=True)
class InitialWeight:
    """A layer's initial weights, and the scheme that explains them: its name, its deviation, and by how many standard
    errors theirs misses it. `largest` is the largest deviation that any scheme gives a layer of these sizes.
    """

    name: str
    size: int
    mean: float
    std: float
    scheme: str | None
    expected: float
    z: float
    largest: float


@check("G20", "initial-weights", "deep", config_path="model")
def initial_weights(context: Context) -> list[Finding]:
    """The deviation of each weight is that of a known scheme, within what a sample of its size allows.

    Source: Glorot and Bengio 2010, eq. 12 and 16; He et al. 2015, eq. 10 and 14; LeCun et al. 1998, section 4.6.
    """
    if context.config.init is not None or context.built.job.step > 0:
        return []
    modules = [(name, m) for name, m in context.built.job.model.named_modules() if isinstance(m, _LAYERS)]
    starts = [
        scheme_of(name, module.weight.detach(), is_transposed=isinstance(module, nn.modules.conv._ConvTransposeNd))
        for name, module in modules
        if module.weight.numel() >= _FEWEST
    ]
    return [_note(context, starts), *_of_large(context, starts)] if starts else []


def scheme_of(name: str, weight: Tensor, *, is_transposed: bool = False) -> InitialWeight:
    """What a weight (out, in, kernel...) looks like; of transposed convolutions (in, out, kernel...)."""
    window = math.prod(weight.shape[2:])
    sizes = (weight.shape[1] * window, weight.shape[0] * window)
    ins, outs = sizes[::-1] if is_transposed else sizes
    values = weight.double().flatten()
    mean, std = float(values.mean()), float(values.std(correction=0))
    kurtosis = float(((values - mean) / std).pow(4).mean()) if std > 0 else 3.0
    schemes = dict(_schemes(ins, outs, sizes[0]))
    largest = max(schemes.values())
    if std == 0:
        return InitialWeight(name, len(values), mean, std, "constant", 0.0, 0.0, largest)
    error = math.sqrt(max(kurtosis - 1, 0.1) / (4 * len(values)))
    misses = {scheme: abs(std / expected - 1) / error for scheme, expected in schemes.items()}
    fitting = [scheme for scheme, miss in misses.items() if miss <= _SURE_Z]  # the commonest first
    nearest = fitting[0] if fitting else min(misses, key=lambda scheme: misses[scheme])
    is_known = misses[nearest] <= _MOST_Z
    return InitialWeight(
        name, len(values), mean, std, nearest if is_known else None, schemes[nearest], misses[nearest], largest
    )


def _schemes(ins: int, outs: int, second: int) -> Iterator[tuple[str, float]]:
    """Deviations by name. The uniform and the normal form of a scheme have the same.

    Torch takes the second axis of a weight for what goes in, in transposed convolutions too.
    """
    yield "torch's default, U(-1/sqrt(fan_in), 1/sqrt(fan_in))", 1 / math.sqrt(3 * second)
    yield "LeCun, 1/sqrt(fan_in)", 1 / math.sqrt(ins)
    yield "He, sqrt(2/fan_in)", math.sqrt(2 / ins)
    yield "He, sqrt(2/fan_out)", math.sqrt(2 / outs)
    yield "Glorot, sqrt(2/(fan_in + fan_out))", math.sqrt(2 / (ins + outs))
    yield "orthogonal, 1/sqrt(the larger)", 1 / math.sqrt(max(ins, outs))
    for std in _ROUND:
        yield f"N(0, {std:g})", std


def _note(context: Context, starts: Sequence[InitialWeight]) -> Finding:
    found = Counter(start.scheme or "none that is known" for start in starts)
    rows = [
        [s.name, s.size, f"{s.mean:.1e}", f"{s.std:.3e}", s.scheme or "?", f"{s.expected:.3e}", f"{s.z:.1f}"]
        for s in starts
    ]
    return initial_weights.finding(
        context,
        "initial weights: " + "; ".join(f"{count} x {scheme}" for scheme, count in found.most_common()),
        severity="note",
        causes=("model.init",),
        measured=f"{len(starts)} weights of linear maps and convolutions",
        expected="for each the deviation that its scheme gives",
        action="nothing",
        evidence={"table": {"title": "initial weights", "columns": list(_COLUMNS), "rows": rows}},
    )


def _of_large(context: Context, starts: Sequence[InitialWeight]) -> Iterator[Finding]:
    large = [start for start in starts if start.std > _TOO_LARGE * start.largest]
    if large:
        most = max(large, key=lambda start: start.std / start.largest)
        yield initial_weights.finding(
            context,
            f"the initial weights of '{most.name}' are larger than any scheme makes them",
            severity="warning",
            causes=("model.init", "model.numerics"),
            layer=most.name,
            param=f"{most.name}.weight",
            measured=f"std {most.std:.3g}, {most.std / most.largest:.3g} times the largest of the schemes",
            expected=f"at most {_TOO_LARGE * most.largest:.3g}",
            action="draw them anew: N(0, 2/fan_in) before a ReLU, or as in the paper",
            evidence={"layers": [start.name for start in large[:10]], "num_layers": len(large)},
        )
