"""Networks of the authors' code among the shared samples: names of their weights, and what they compute."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from torch import Tensor

from tests.golden_parity import Golden, load_golden
from tests.processes import ROOT

__all__ = ["read_golden", "relative_error", "round_state"]


def read_golden(name: str, *, area: str = "points") -> Golden:
    """Read a golden file of the shared samples; without them, the check is skipped."""
    shared = Path(os.environ.get("SIGHTLINE_SHARED", ROOT.parent / "shared"))
    if not (shared / "golden" / area / f"{name}.json").is_file():
        pytest.skip(f"{area}/{name}.json is not below {shared / 'golden'}; set SIGHTLINE_SHARED to the shared samples")
    return load_golden(shared, name, area=area)


def round_state(state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Round weights to the float32 of published files, their names after a prefix."""
    return {f"{prefix}{key}": value.float() if value.is_floating_point() else value for key, value in state.items()}


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Compute the largest difference as a share of the largest expected entry; tensors of other shapes are far off."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found.detach() - expected).abs().max() / expected.abs().max())
