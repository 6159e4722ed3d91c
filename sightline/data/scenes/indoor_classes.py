"""The thirteen classes of indoor scenes, and the two orders in which files number them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["CLASS_NAMES", "CLUTTER", "ORDERS"]

CLASS_NAMES = (
    *("ceiling", "floor", "wall", "beam", "column", "window", "door"),
    *("table", "chair", "sofa", "bookcase", "board", "clutter"),
)
"""The classes of Armeni et al. 2016 in the order of PointNet's release of S3DIS, which is this project's own."""

CLUTTER = CLASS_NAMES.index("clutter")

ORDERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "A": CLASS_NAMES,
        "B": (*CLASS_NAMES[:7], "chair", "table", "bookcase", "sofa", "board", "clutter"),
    }
)
"""Class names by label: A as PointNet numbers them, B as the names file of the Point Transformer's own code does."""
