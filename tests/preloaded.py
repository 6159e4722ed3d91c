"""Imports components, checks, and what numba needs for a first kernel, for the server that processes are forked from.

Each process of a test would take more than a second of processor time for it.
"""

import numba

from sightline.contract.registry import REGISTRIES
from sightline.workbench.check.suite import all_checks

for registry in REGISTRIES.values():
    registry.names()
all_checks()
numba.njit(lambda number: number)(1)
