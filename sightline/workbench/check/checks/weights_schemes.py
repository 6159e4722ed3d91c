"""Initial weights: the scheme that explains their deviation, and weights larger than any scheme makes them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from sightline.workbench.check.context import Context, check
from sightline.workbench.check.core.finding import Fault

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_MAX_Z = 6.0
_MAX_Z_CERTAIN = 3.0
_MAX_RATIO = 3.0
"""Maximum ratio of a weight's deviation to the largest deviation of all schemes for its size."""
_MIN_SIZE = 16
_ROUND_STDS = (1e-3, 1e-2, 2e-2)
"""Standard deviations stated in papers: V2V-PoseNet, VGG, transformers."""
_COLUMNS = ("layer", "weights", "mean", "std", "scheme", "std by the scheme", "z")


@dataclass(frozen=True)
class InitialWeight:
    """Initial weights of a layer and the scheme that explains them.

    `expected` is the standard deviation of the scheme, `z` the difference from it in standard errors, and `largest` the
    largest deviation of all schemes for a layer of these sizes.
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
def initial_weights(context: Context) -> Iterator[Fault]:
    """The standard deviation of each weight is not far above the largest of the known initialisation schemes.

    Finds: Initial weights larger than any initialisation scheme makes them, and the scheme of each layer.

    Source: Glorot and Bengio 2010, eq. 12 and 16; He et al. 2015, eq. 10 and 14; LeCun et al. 1998, section 4.6.
    """
    if not context.is_fresh:
        return
    modules = [(name, m) for name, m in context.built.job.model.named_modules() if isinstance(m, _LAYERS)]
    weights = [
        find_scheme(name, module.weight.detach(), is_transposed=isinstance(module, nn.modules.conv._ConvTransposeNd))
        for name, module in modules
        if module.weight.numel() >= _MIN_SIZE
    ]
    if weights:
        scheme_counts = Counter(start.scheme or "unknown scheme" for start in weights)
        rows = [
            [s.name, s.size, f"{s.mean:.1e}", f"{s.std:.3e}", s.scheme or "?", f"{s.expected:.3e}", f"{s.z:.1f}"]
            for s in weights
        ]
        yield Fault(
            "initial weights: " + "; ".join(f"{count} x {scheme}" for scheme, count in scheme_counts.most_common()),
            severity="note",
            causes=("model.init",),
            measured=f"{len(weights)} weights of linear maps and convolutions",
            expected="the standard deviation of its scheme for each",
            action="nothing",
            evidence={"table": {"title": "initial weights", "columns": list(_COLUMNS), "rows": rows}},
        )
    large = [weight for weight in weights if weight.std > _MAX_RATIO * weight.largest]
    if large:
        worst = max(large, key=lambda weight: weight.std / weight.largest)
        yield Fault(
            f"the initial weights of '{worst.name}' are larger than any scheme makes them",
            severity="warning",
            causes=("model.init", "model.numerics"),
            layer=worst.name,
            param=f"{worst.name}.weight",
            measured=f"std {worst.std:.3g}, {worst.std / worst.largest:.3g} times the largest of the schemes",
            expected=f"at most {_MAX_RATIO * worst.largest:.3g}",
            action="initialise them by N(0, 2/fan_in) before a ReLU, or as in the paper",
            evidence={"layers": [weight.name for weight in large[:10]], "num_layers": len(large)},
        )


def find_scheme(name: str, weight: Tensor, *, is_transposed: bool = False) -> InitialWeight:
    """Find the scheme of a weight (out, in, kernel...), for transposed convolutions (in, out, kernel...)."""
    window = math.prod(weight.shape[2:])
    sizes = (weight.shape[1] * window, weight.shape[0] * window)
    fan_in, fan_out = sizes[::-1] if is_transposed else sizes
    values = weight.double().flatten()
    mean, std = float(values.mean()), float(values.std(correction=0))
    kurtosis = float(((values - mean) / std).pow(4).mean()) if std > 0 else 3.0
    schemes = dict(_iter_schemes(fan_in, fan_out, sizes[0]))
    largest = max(schemes.values())
    if std == 0:
        return InitialWeight(name, len(values), mean, std, "constant", 0.0, 0.0, largest)
    error = math.sqrt(max(kurtosis - 1, 0.1) / (4 * len(values)))
    misses = {scheme: abs(std / expected - 1) / error for scheme, expected in schemes.items()}
    fitting = [scheme for scheme, miss in misses.items() if miss <= _MAX_Z_CERTAIN]  # the most common first
    nearest = fitting[0] if fitting else min(misses, key=lambda scheme: misses[scheme])
    is_known = misses[nearest] <= _MAX_Z
    return InitialWeight(
        name, len(values), mean, std, nearest if is_known else None, schemes[nearest], misses[nearest], largest
    )


def _iter_schemes(fan_in: int, fan_out: int, second: int) -> Iterator[tuple[str, float]]:
    """Yield the name and the standard deviation of each scheme, which uniform and normal forms share.

    Torch computes its default from the second axis of a weight, in transposed convolutions too.
    """
    yield "torch's default, U(-1/sqrt(fan_in), 1/sqrt(fan_in))", 1 / math.sqrt(3 * second)
    yield "LeCun, 1/sqrt(fan_in)", 1 / math.sqrt(fan_in)
    yield "He, sqrt(2/fan_in)", math.sqrt(2 / fan_in)
    yield "He, sqrt(2/fan_out)", math.sqrt(2 / fan_out)
    yield "Glorot, sqrt(2/(fan_in + fan_out))", math.sqrt(2 / (fan_in + fan_out))
    yield "orthogonal, 1/sqrt(the larger)", 1 / math.sqrt(max(fan_in, fan_out))
    for std in _ROUND_STDS:
        yield f"N(0, {std:g})", std
