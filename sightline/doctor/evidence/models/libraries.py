"""Library versions whose numbers are known to be wrong, each with what computes them, and whether a model meets one."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.subject import Subject


class LibraryFault(NamedTuple):
    """Wrong numbers of a library from the version `first` to `last`, the first and last in which they were seen.

    `find` names the layer of a model that may meet them, or returns None; `seen` says what it looked at, `source` who
    measured the fault.
    """

    library: str
    first: str
    last: str
    what: str
    source: str
    remedy: str
    seen: str
    find: Callable[[nn.Module], str | None]


class MetFault(NamedTuple):
    """Known fault that a layer of a model may meet, and the installed version of the library."""

    fault: LibraryFault
    version: str
    layer: str


def _find_padded_mean(model: nn.Module) -> str | None:
    """Find a mean pooling with padding in a network on a GPU whose weights have the channels last."""
    weights = [weight for weight in model.parameters() if weight.ndim == 4 and weight.is_cuda]
    is_last = any(not w.is_contiguous() and w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    pools = (name for name, module in model.named_modules() if type(module) is nn.AvgPool2d and _is_padded(module))
    return next(pools, None) if is_last else None


def _is_padded(pool: nn.AvgPool2d) -> bool:
    padding = pool.padding if isinstance(pool.padding, tuple) else (pool.padding,)
    return any(padding)


def _find_wide_attention(model: nn.Module) -> str | None:
    """Find an attention with weights of float64 on a CPU."""
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            weight = module.out_proj.weight
            if weight.dtype == torch.float64 and weight.device.type == "cpu":
                return name
    return None


LIBRARY_FAULTS = (
    LibraryFault(
        "torch",
        "2.11",
        "2.11",
        "the gradient of nn.AvgPool2d with padding is wrong on a GPU where the channels come last",
        "https://github.com/pytorch/pytorch/issues/188344, and docs/results/gpu.md of sightline",
        "add the border before the pooling: F.avg_pool2d(F.pad(x, ...), size, stride), or keep the channels first",
        "has padding, in a network with weights on a GPU whose channels come last",
        _find_padded_mean,
    ),
    LibraryFault(
        "torch",
        "2.13",
        "2.13",
        "attention on a CPU reads the bytes of a float32 mask as float64, for float64 queries of 16 keys and more",
        "measured by sightline (tests/doctor/checks/test_libraries.py)",
        "if it gets a float mask, give it in the format of the queries: attn_mask.to(query.dtype)",
        "has float64 weights on a CPU; its masks were not looked at",
        _find_wide_attention,
    ),
)
"""Each was seen in these versions; others were not tried."""


@measure()
def library_faults(subject: Subject) -> list[MetFault]:
    """List the known faults of installed libraries that the model may meet."""
    installed = [(fault, version) for fault in LIBRARY_FAULTS if (version := _find_version(fault)) is not None]
    if not installed:
        raise NotApplicableError("no library of a version with known wrong numbers")
    met = [(fault, version, fault.find(subject.model)) for fault, version in installed]
    return [MetFault(fault, version, layer) for fault, version, layer in met if layer is not None]


def _find_version(fault: LibraryFault) -> str | None:
    """Return the installed version of a fault's library, if it is one of its versions."""
    try:
        version = importlib.metadata.version(fault.library)
    except importlib.metadata.PackageNotFoundError:
        return None
    numbers = _parse(version)
    length = len(_parse(fault.first))
    return version if _parse(fault.first) <= numbers[:length] <= _parse(fault.last) else None


def _parse(version: str) -> tuple[int, ...]:
    """Parse the numbers of a version: 2.11.0+cu130 is (2, 11, 0)."""
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])))
