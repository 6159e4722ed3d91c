"""Geometry, layers and kernels: pure functions and modules."""

from __future__ import annotations

from collections.abc import Mapping

PARTS: Mapping[str, Mapping[str, str]] = {
    "suppressions": {"geometry.boxes.suppression": "adaptive greedy set soft_gaussian soft_linear"},
}
"""Kind of part -> module of this folder -> names that it registers (`contract/catalogue.py`)."""
