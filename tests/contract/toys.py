"""Toy tasks, as unlike one another as the real ones, that must pass the one loop without a special case."""

from __future__ import annotations

from tests.contract.boxes import BOXES
from tests.contract.clouds import CLOUDS
from tests.contract.grids import GRIDS
from tests.contract.pairs import PAIRS
from tests.contract.toy import Toy

__all__ = ["TOYS"]

TOYS: dict[str, Toy] = {**CLOUDS, **PAIRS, **GRIDS, **BOXES}
