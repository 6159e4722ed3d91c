"""Toy tasks, as unlike one another as the real ones, that must pass the one loop without a special case."""

from __future__ import annotations

from tests.contract.boxes import BOXES
from tests.contract.clouds import CLOUDS
from tests.contract.frames import FRAMES
from tests.contract.grids import GRIDS
from tests.contract.images import ASSIGNED, FEW_BOXES, IMAGES, SETS
from tests.contract.pairs import PAIRS
from tests.contract.toy import Toy

__all__ = ["ALL", "TOYS"]

TOYS: dict[str, Toy] = {**CLOUDS, **PAIRS, **GRIDS, **BOXES, **IMAGES, **FRAMES}
ALL: dict[str, Toy] = {**TOYS, **ASSIGNED, **SETS, **FEW_BOXES}
"""With those that differ in an assigner alone, or that have little or nothing to learn from."""
