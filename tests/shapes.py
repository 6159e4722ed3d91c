"""Which recipes train on fixed shapes: the operators of steps on different batches, in the form of a GPU.

python -m tests.shapes        writes the table of docs/inside/gpu_counts.md anew
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from benchmarks.marked_pages import with_block
from sightline.contract.pytree import tree_leaves
from sightline.ops import waits
from tests.processes import ROOT
from tests.recipe_steps import BATCH_SIZE, RECIPES, SmallStep
from tests.waits import DeviceMode, device_form

PAGE = ROOT / "docs" / "inside" / "gpu_counts.md"
NUM_BATCHES = 3
_MOST = "the whole step"
_BEGIN, _END = "<!-- table of tests/shapes.py -->", "<!-- end of it -->"


class Shapes(NamedTuple):
    """How many different steps there were: by the shapes that the network is given, and by all operators and shapes.

    `ragged` are arguments of the network whose samples differ in size, though these few samples may not. `of_host` says
    which numbers of the host a graph of the step would repeat though they differ, or nothing.
    """

    networks: int
    steps: int
    ragged: tuple[str, ...]
    of_host: str = ""

    @property
    def row(self) -> str:
        if self.ragged or self.networks > 1:
            return "nothing"
        return _MOST if self.steps == 1 else "the network"


class _Operators(DeviceMode):
    """Digest of the operators that were called, with the shapes of what they returned."""

    def __init__(self) -> None:
        super().__init__()
        self.digest = hashlib.sha256()

    def see(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        self.digest.update(f"{function}{_list_shapes(result)}".encode())
        return result


def _list_shapes(value: Any) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for _, tensor in tree_leaves(value)]


def count_shapes(recipe: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Shapes:
    """Run a step on each of some batches of equal size, after a first one, which makes what stays on the device."""
    step = SmallStep(recipe, folder)
    with contextlib.closing(step.job.stream.iterate(0, 1 + NUM_BATCHES)) as steps:
        batches = [*steps]
    fields = step.job.stream.reader.fields  # type: ignore[attr-defined]
    ragged = {name for name, field in fields.items() if field.collate == "concatenate"}
    networks, whole, arguments, of_host, sent = set(), set(), set[str](), "", None
    with device_form(monkeypatch), monkeypatch.context() as patch:
        patch.setattr(waits, "_is_of_host", lambda values: False)  # but for numbers in lists, that nobody can tell
        for number, micro_batches in enumerate(batches):
            assert [len(batch["sample_index"]) for batch in micro_batches] == [BATCH_SIZE]
            step.micro_batches = micro_batches
            with (
                _Operators() as operators,
                _recorded_calls(step.job.model, arguments) as calls,
                waits.host_traffic() as traffic,
            ):
                step.run()
            if number:
                of_host = of_host or traffic.find_misuse([tensor for _, tensor in tree_leaves(micro_batches)])
                of_host = of_host or ("" if sent is None else traffic.differs_from(sent))
                sent = traffic.sent
                networks.add(str(calls))
                whole.add(operators.digest.hexdigest())
    return Shapes(len(networks), len(whole), tuple(sorted(arguments & ragged)), of_host)


@contextlib.contextmanager
def _recorded_calls(model: nn.Module, arguments: set[str]) -> Iterator[list[list[tuple[int, ...]]]]:
    """Record the shapes of all tensors that a network and its parts are called with, and add the names of arguments."""
    calls: list[list[tuple[int, ...]]] = []

    def receive(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        calls.append(_list_shapes([list(args), dict(kwargs)]))
        arguments.update(kwargs)

    handles = [module.register_forward_pre_hook(receive, with_kwargs=True) for module in (model, *model.children())]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def read_table() -> dict[str, str]:
    """The table of the page: for each recipe, what has fixed shapes."""
    table = PAGE.read_text().split(_BEGIN)[1].split(_END)[0]
    rows = [line.split("|")[1:] for line in table.strip().splitlines()[2:]]
    named = {recipe: row[0].strip() for row in rows for recipe in re.findall(r"`([^`]+)`", row[1])}
    return {recipe: named.get(recipe, _MOST) for recipe in RECIPES}


def write_table(found: Mapping[str, Shapes]) -> None:
    lines = ["| fixed shapes | recipes |", "|---|---|", f"| {_MOST} | all others |"]
    for row in ("the network", "nothing"):
        recipes = ", ".join(f"`{recipe}`" for recipe, shapes in found.items() if shapes.row == row)
        lines += [f"| {row} | {recipes} |"] if recipes else []
    block = "\n\n" + "\n".join(lines) + "\n\n"
    PAGE.write_text(with_block(PAGE.read_text(), start=_BEGIN, end=_END, block=block))


def main() -> None:
    torch.set_num_threads(1)
    found = {}
    for recipe in RECIPES:
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
            found[recipe] = count_shapes(recipe, Path(folder), monkeypatch)
        print(recipe, found[recipe], flush=True)  # noqa: T201
    write_table(found)


if __name__ == "__main__":
    main()
