"""Thirteen classes of indoor scenes, and the two orders in which files number them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["CLASS_NAMES", "CLUTTER", "ORDERS"]

CLASS_NAMES = (
    *("ceiling", "floor", "wall", "beam", "column", "window", "door"),
    *("table", "chair", "sofa", "bookcase", "board", "clutter"),
)
"""Classes of Armeni et al. 2016 in the order of PointNet's release of S3DIS, which this project uses."""

CLUTTER = CLASS_NAMES.index("clutter")

ORDERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "A": CLASS_NAMES,
        "B": (*CLASS_NAMES[:7], "chair", "table", "bookcase", "sofa", "board", "clutter"),
    }
)
"""Class names by label: order A of PointNet, order B of the names file of the Point Transformer code."""
