"""Imports commands, components and checks, and what pictures and kernels need, for the server of forked processes.

Each process of a test would take more than a second of processor time for it.
"""

import gc

import numba
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import typer.main

from sightline import cli
from sightline.contract.registry import REGISTRIES
from sightline.workbench.check.suite import all_rules
from tests.command import built_once
from tests.processes import skip_sync

for registry in REGISTRIES.values():
    registry.names()
all_rules()
numba.njit(lambda number: number)(1)
PIL.Image.init()
typer.main.get_command = built_once
built_once(cli.app)
skip_sync()
gc.collect()
gc.freeze()  # a search of what is imported would cost each process a quarter of a second, and a copy of its memory
