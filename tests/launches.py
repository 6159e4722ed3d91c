"""Kernels that a training step launches on a GPU, counted on a CPU in the form of a GPU.

python -m tests.launches                writes the tables of docs/inside/gpu_counts.md anew
python -m tests.launches RECIPE ...     prints where the launches of recipes come from, at the sizes of `gpu_steps`

An operator of torch counts as one launch, however many kernels torch needs for it, unless it is a view, makes memory
that nothing is written to, returns nothing, or works on the host (`call_on_host`). One of `sightline.ops` counts as
the launches that it declares, and its check besides, where its GPU kernel takes the arguments; else as its plain form.
A list of tensors (`_foreach_*`, `_fused_*`) counts as the parts into which torch divides it. The optimiser has the form
that the engine chooses on CUDA, dropout is torch's operator for CUDA, and the precision is float32.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu_steps import BEGIN, END, PAGE, RECIPE_STEPS, RecipeStep
from benchmarks.marked_pages import with_block
from sightline.config import read_config
from sightline.contract.pytree import tree_leaves
from sightline.engine.optimizers import OptimizerSpec
from sightline.layers import edge_conv
from sightline.ops.operator import Operator
from tests.recipe_steps import RECIPES, SmallStep, TrainingStep
from tests.waits import DeviceMode, device_form, is_on_host

PRECISION = "train.precision=float32"
_NO_LAUNCH = re.compile(
    r"aten::(empty|new_empty|detach|_unsafe_view|unsafe_split|lift_fresh|_local_scalar_dense|resize_|set_|is_|_pin)"
)
_LISTS = re.compile(r"aten::_(foreach|fused)_")
_MAX_TENSORS, _MAX_BLOCKS, _CHUNK = (110, 64, 48, 36, 30), 320, 65536
"""Tensors of one launch by the number of lists, blocks of one, and elements of a block.

Source: `MultiTensorApply.cuh` of PyTorch.
"""


class Launches(DeviceMode):
    """Launches inside the block by operator and place."""

    def __init__(self, host_numbers: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.count: Counter[tuple[str, str]] = Counter()
        self._of_host = {id(number) for number in host_numbers}

    def see(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        can_launch = name.startswith("aten::") and not function.is_view and not _NO_LAUNCH.match(name)
        if can_launch and not is_on_host() and (number := self._count_launches(name, args, result)):
            self.count[name.partition("::")[2], _locate()] += number
        return result

    def see_kernel(self, operator: Operator[..., Any]) -> None:
        assert operator.launches is not None
        self.count[operator.name, _locate()] += operator.launches

    def _count_launches(self, name: str, args: Sequence[Any], result: Any) -> int:
        if not _LISTS.match(name):
            return int(any(tensor.numel() for _, tensor in tree_leaves(result)))
        lists = [value for value in args if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor)]
        if self._of_host.issuperset(map(id, lists[0])):
            return 0
        return _count_parts([tensor.numel() for tensor in lists[0]], len(lists)) + (name == "aten::_foreach_norm")


def _count_parts(sizes: Sequence[int], num_lists: int) -> int:
    """Count the launches for lists of tensors: a new one after so many tensors, and after so many blocks."""
    parts = tensors = blocks = 0
    for size in filter(None, sizes):
        tensors += 1
        for _ in range(-(-size // _CHUNK)):
            blocks += 1
            if blocks == _MAX_BLOCKS:
                parts, tensors, blocks = parts + 1, 1, 0
        if blocks and tensors == _MAX_TENSORS[num_lists - 1]:
            parts, tensors, blocks = parts + 1, 0, 0
    return parts + bool(blocks)


def _locate() -> str:
    """Return the innermost line of the package, in a backward pass that of the operation's forward pass."""
    node = torch._C._current_autograd_node()
    if node is not None:
        lines = [line for line in node.metadata.get("traceback_", ()) if "/sightline/" in line]
        match = re.search(r'/sightline/([^"]+)", line (\d+)', lines[-1]) if lines else None
        return f"{match[1]}:{match[2]}, backward" if match else "backward"
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename.rpartition("/sightline/")[2]
        if file not in (frame.f_code.co_filename, "ops/operator.py"):
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


@contextlib.contextmanager
def cuda_form(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Build and compute as on CUDA: optimiser, dropout, sizes of blocks, no compiled kernels of CPUs."""
    choose = OptimizerSpec._fused_option

    def choose_on_cuda(spec: OptimizerSpec, groups: Any) -> dict[str, Any]:
        stand_in = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
        chosen = choose(spec, [{"params": [stand_in]}])
        chosen.pop("capturable", None)  # counts of the steps on the device, which torch refuses elsewhere
        can_foreach = "foreach" in signature(spec.optimizer).parameters
        return chosen or ({"foreach": True} if can_foreach else {})  # what torch chooses by itself on CUDA

    def dropout(values: Tensor, share: float, is_training: bool) -> Tensor:
        return torch.native_dropout(values, share, True)[0] if is_training and 0 < share < 1 else values

    with monkeypatch.context() as patch, device_form(monkeypatch):
        patch.setattr(OptimizerSpec, "_fused_option", choose_on_cuda)
        patch.setattr(torch._VF, "dropout", dropout)
        patch.setattr(edge_conv, "_cut", lambda values: [slice(None)])  # a choice by `device.type`
        for name in [name for name in sys.modules if name.startswith("sightline.")]:
            for table in vars(sys.modules[name]).values():
                if isinstance(table, dict) and {"cpu", "cuda"} <= table.keys():  # numbers computed at once
                    patch.setitem(table, "cpu", table["cuda"])
        yield


def count_launches(step: TrainingStep) -> Counter[tuple[str, str]]:
    """Count the launches of a second step, by operator and place; the first one makes what stays on the device."""
    sent = step.send()
    step.run(sent)
    optimizer = step.job.optimizer
    is_fused = any(group.get("fused") for group in optimizer.param_groups)
    numbers = [] if is_fused else [state["step"] for state in optimizer.state.values() if "step" in state]
    with torch.autograd.set_detect_anomaly(True, check_nan=False), Launches(numbers) as launches:
        step.run(sent)
    return launches.count


def count_small(recipe: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """Count those of a recipe's step on small procedural data."""
    with cuda_form(monkeypatch):
        return count_launches(SmallStep(recipe, folder, PRECISION))


def count_real(step: RecipeStep, monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """Count those of a recipe's step at its real size."""
    with cuda_form(monkeypatch):
        config = read_config(step.config, (*step.overrides, *step.counted, PRECISION, "loader.workers=0"))
        return count_launches(TrainingStep(config))


# --- page ------------------------------------------------------------------------------------------------------------


def write_tables(found: Mapping[str, int]) -> None:
    lines = ["| recipe | samples | launches a step | at most |", "|---|---|---|---|"]
    for step in RECIPE_STEPS:
        bar = f"{step.max_launches:,}" if step.max_launches else ""
        lines.append(f"| `{step.recipe}` | {step.size} | {found[step.name]:,} | {bar} |")
    lines += ["", "| task | launches of a small step, three samples |", "|---|---|"]
    for task, recipes in itertools.groupby(RECIPES, lambda recipe: recipe.partition("/")[0]):
        counts = ", ".join(f"`{recipe.partition('/')[2]}` {found[recipe]:,}" for recipe in recipes)
        lines.append(f"| {task} | {counts} |")
    block = "\n\n" + "\n".join(lines) + "\n\n"
    PAGE.write_text(with_block(PAGE.read_text(), start=BEGIN, end=END, block=block))


def list_sources(count: Counter[tuple[str, str]], limit: int = 40) -> Iterator[str]:
    """Lines of the places with the most launches, each with its operators."""
    places = Counter[str]()
    for (_, place), number in count.items():
        places[place] += number
    for place, total in places.most_common(limit):
        operators = ", ".join(f"{number} {name}" for (name, where), number in count.most_common() if where == place)
        yield f"  {total:6,} at {place}: {operators}"


def main(names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    found = {}
    for each in (*RECIPE_STEPS, *(() if names else RECIPES)):
        name = each if isinstance(each, str) else each.name
        if names and name.partition(" ")[0] not in names:
            continue
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
            is_small = isinstance(each, str)
            count = count_small(each, Path(folder), monkeypatch) if is_small else count_real(each, monkeypatch)
        found[name] = count.total()
        print(f"{name}: {count.total()}", flush=True)  # noqa: T201
        if names:
            print("\n".join(list_sources(count)), flush=True)  # noqa: T201
    if not names:
        write_tables(found)


if __name__ == "__main__":
    main(sys.argv[1:])
