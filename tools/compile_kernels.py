"""Compiles the kernels of the shipped networks, so that no first run waits for them: `make install` calls it.

    python tools/compile_kernels.py                     each recipe below takes one step of two samples and scores two
    python tools/compile_kernels.py tests/kernels.txt   the kernels and types of a list: `make test`, before its workers

numba keeps the machine code beside the package, or in the user's cache folder where the package is read-only, and
compiles nothing twice. A line of the list is a kernel and the types of its arguments: `float64[2C]` is an array of two
axes in C order, with `r` one that is read only.
"""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightline.config import read_config
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.engine.loop import train
from sightline.ops.numba_kernels import NumbaKernel

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TWO = ("data.train_size=2", "data.test_size=2", "train.batch_size=2", "train.epochs=1", "evaluate.select=test")
RECIPES = {
    "segment/synthetic_shapes_point_transformer": (),
    "segment/synthetic_shapes_point_transformer_dense": (),
    "classify/synthetic_shapes_dgcnn": (),
    "classify/synthetic_shapes_pointnet2": (),
    "classify/synthetic_shapes_pct": (),
    "contrast/synthetic_shapes_crosspoint": (),
    "pose/synthetic_hands_v2v_small": (),
    "segment/synthetic_lidar_salsanext": (),
    "detect/synthetic_crowds_fcos": ("data.validation_size=2",),
    "detect/synthetic_crowds_retinanet": ("data.validation_size=2",),
}


def compile_list(path: Path) -> None:
    """Compile the kernels of a list that have no machine code yet: those of a file one by one, files side by side."""
    lines = path.read_text().splitlines()
    by_module = [list(group) for _, group in itertools.groupby(lines, lambda line: line.split()[0].rpartition(".")[0])]
    with multiprocessing.get_context("spawn").Pool(min(os.cpu_count() or 1, 4)) as pool:
        pool.map(compile_lines, by_module, chunksize=1)


def compile_lines(lines: Sequence[str]) -> None:
    for line in lines:
        name, *words = line.split()
        module, _, function = name.rpartition(".")
        kernel = getattr(importlib.import_module(module), function)
        kernel.machine_code.compile(tuple(map(parse_type, words)))


def parse_type(word: str) -> Any:
    """Return numba's type of an argument."""
    from numba import types

    scalar, dimensions, layout, readonly = re.fullmatch(r"(\w+)(?:\[(\d)([CA])(r?)\])?", word).groups()
    kind = getattr(types, scalar)
    return kind if dimensions is None else types.Array(kind, int(dimensions), layout, readonly=bool(readonly))


def format_type(kind: Any) -> str:
    """Return the word of numba's type in a list."""
    if not hasattr(kind, "ndim"):
        return str(kind)
    return f"{kind.dtype}[{kind.ndim}{kind.layout}{'' if kind.mutable else 'r'}]"


def list_compiled() -> list[str]:
    """Return a line for each kernel and types that this process had to compile; kernels within kernels left out."""
    lines = set()
    for name, module in list(sys.modules.items()):
        if not name.startswith("sightline."):
            continue
        kernels = [value for value in vars(module).values() if isinstance(value, NumbaKernel)]
        inside = {called for kernel in kernels for called in kernel.plain.__code__.co_names}
        for kernel in kernels:
            stats = getattr(kernel._machine_code, "stats", None)
            if kernel.__module__ == name and kernel.__name__ not in inside and stats is not None:
                lines |= {
                    " ".join([f"{name}.{kernel.__name__}", *map(format_type, types)]) for types in stats.cache_misses
                }
    return sorted(lines)


def main() -> None:
    for path in sys.argv[1:]:
        compile_list(Path(path))
    if sys.argv[1:]:
        return
    for name, words in RECIPES.items():
        built = build(read_config(CONFIGS / f"{name}.yaml", [*TWO, *words]), World())
        train(built.job, World(), lambda record, stop_asked: True)
        if built.selection_evaluator is not None:
            built.selection_evaluator(built.job.model, World())


if __name__ == "__main__":
    main()
