"""Imports components, checks, and what numba needs for a first kernel, for the server that processes are forked from.

Each process of a test would take more than a second of processor time for it.
"""

import gc

import numba

from sightline.contract.registry import REGISTRIES
from sightline.workbench.check.suite import all_rules
from tests.processes import skip_sync

for registry in REGISTRIES.values():
    registry.names()
all_rules()
numba.njit(lambda number: number)(1)
skip_sync()
gc.collect()
gc.freeze()  # a search of what is imported would cost each process a quarter of a second, and a copy of its memory
