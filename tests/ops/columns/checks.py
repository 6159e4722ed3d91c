"""Columns of the exam of public functions (exam.py): functions of an example call that raise what is wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from sightline.ops import waits as device_waits
from sightline.ops.waits import deferred_checks, remember
from sightline.workbench.export.formats import load_written, write_onnx
from sightline.workbench.export.recorded_graph import RecordedGraph, quiet
from tests.ops.columns import rows
from tests.ops.columns.rows import Row
from tests.waits import counted_waits, is_on_host

BITS = 0.0
ROUNDED = 1e-5


class WrongResultError(AssertionError):
    """What a cell found that should not be."""


def call(row: Row, *arguments: Tensor) -> tuple[Tensor, ...]:
    """Call a function; the tensors of its result, those of NumPy too."""
    return tuple(_flatten(row.call(*arguments)))


def _flatten(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, np.ndarray):
        yield torch.from_numpy(result)
    elif dataclasses.is_dataclass(result):
        for field in dataclasses.fields(result):
            yield from _flatten(getattr(result, field.name))
    elif result is not None:
        for part in result:
            yield from _flatten(part)


def assert_close(
    found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float, *, same_dtype: bool = True
) -> None:
    """Compare results: indices by their bits, other numbers up to a share of the largest."""
    if len(found) != len(expected):
        raise WrongResultError(f"{len(found)} results, expected {len(expected)}")
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape:
            raise WrongResultError(f"shape {tuple(one.shape)}, expected {tuple(other.shape)}")
        if same_dtype and one.dtype != other.dtype:
            raise WrongResultError(f"{one.dtype}, expected {other.dtype}")
        if not other.is_floating_point() or tolerance == BITS:
            if not torch.equal(one, other):
                raise WrongResultError(f"{int((one != other).sum())} of {one.numel()} numbers differ")
        elif other.numel():
            error = (one.double() - other.double()).abs().max() / other.double().abs().max().clamp(min=1e-30)
            if not error <= tolerance:
                raise WrongResultError(f"off by {float(error):.2g} of the largest number")


def assert_shapes(found: Sequence[Tensor], expected: Sequence[tuple[int | None, ...]]) -> None:
    shapes = [tuple(result.shape) for result in found]
    is_alike = len(shapes) == len(expected) and all(
        len(one) == len(other) and all(b is None or a == b for a, b in zip(one, other, strict=True))
        for one, other in zip(shapes, expected, strict=True)
    )
    if not is_alike:
        raise WrongResultError(f"shapes {shapes}, expected {list(expected)}")


# --- graphs -----------------------------------------------------------------------------------------------------------


class Calling(nn.Module):
    """A function as a module, as exporters want it."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.row = row
        self.names = tuple(row.arguments)

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        return call(self.row, *arguments)


def compile_it(row: Row) -> None:
    torch.compiler.reset()
    compiled = torch.compile(Calling(row), fullgraph=True, backend="aot_eager")
    arguments = row.make()
    assert_close(compiled(*arguments), call(row, *arguments), ROUNDED)


def export_it(row: Row) -> None:
    """Record the graph with a free batch, or free rows, and call it with another number of them."""
    program, other = _record(row)
    if "sightline" in str(program.graph):
        raise WrongResultError("the graph holds operations of this package")
    assert_close(program.module()(*other), call(row, *other), ROUNDED)


def _other_sizes(row: Row) -> dict[str, int]:
    free = row.free
    return {free: rows.SIZES[free] + (1 if free == "B" else 2)}


_RECORDED: dict[int, tuple[Row, Any]] = {}
"""Rows, which have no hash, by their identity, and their graphs: two columns begin with the same one."""


def _record(row: Row) -> tuple[Any, tuple[Tensor, ...]]:
    """Record the graph with a free size, once; return it and the arguments of another size."""
    arguments, other = row.make(), row.make(seed=1, **_other_sizes(row))
    if id(row) not in _RECORDED:
        torch.compiler.reset()
        shapes = tuple(
            {axis: torch.export.Dim.DYNAMIC for axis, (a, b) in enumerate(zip(x.shape, y.shape, strict=True)) if a != b}
            for x, y in zip(arguments, other, strict=True)
        )
        with quiet():
            _RECORDED[id(row)] = row, torch.export.export(Calling(row), arguments, dynamic_shapes=(shapes,))
    return _RECORDED[id(row)][1], other


def run_onnx(row: Row) -> None:
    """Our exporter: the graph of torch.export with a free size, written without torch's optimiser, for another size."""
    program, other = _record(row)
    expected = call(row, *other)
    names = [f"result_{place}" for place in range(len(expected))]
    given = tuple(f"given_{place}" for place in range(len(other)))  # `sign` would be taken for ONNX's operation
    recorded = RecordedGraph(program, given, tuple({} for _ in given))
    run = load_written(write_onnx(recorded, names, suppression=None), names)
    assert_close([*run(*other).values()], expected, ROUNDED)


def run_onnx_by_torch(row: Row) -> None:
    arguments = row.make()
    torch.compiler.reset()
    with quiet(), torch.no_grad():
        program = torch.onnx.export(Calling(row), arguments, dynamo=True, verbose=False)
        assert program is not None
        run = load_written(program.model_proto.SerializeToString(), [o.name for o in program.model_proto.graph.output])
    assert_close([*run(*arguments).values()], call(row, *arguments), ROUNDED)


def run_meta(row: Row) -> None:
    assert_shapes(call(row, *(_with_known(a.to("meta"), a) for a in row.make())), row.shapes())


def _with_known(tensor: Tensor, values: Tensor) -> Tensor:
    """As if the host had sent the whole numbers, offsets and sizes, which it then knows."""
    if not values.is_floating_point():
        remember(tensor, device_waits._LIST, values.tolist())
    return tensor


# --- transforms -------------------------------------------------------------------------------------------------------


def vmap_it(row: Row) -> None:
    calls = [row.make(seed=seed) for seed in range(3)]
    found = torch.func.vmap(Calling(row))(*(torch.stack(values) for values in zip(*calls, strict=True)))
    expected = [torch.stack(values) for values in zip(*(call(row, *given) for given in calls), strict=True)]
    assert_close(found, expected, ROUNDED)


def _objective(row: Row) -> tuple[Callable[..., Tensor], list[Tensor], list[Tensor]]:
    """A number of the real arguments, these, and a direction: their squares, and a sum of what the function makes."""
    arguments = row.make(torch.float64)
    places = [place for place, value in enumerate(arguments) if value.is_floating_point()]

    def compute(*floats: Tensor, held: Sequence[str] = ()) -> Tensor:
        """Compute; the function gets the arguments of these names as they were."""
        given = [*arguments]
        for place, value in zip(places, floats, strict=True):
            given[place] = arguments[place] if [*row.arguments][place] in held else value
        made = [result for result in call(row, *given) if result.is_floating_point()]
        weighted = [(result * _spread(result)).sum() for result in made]
        return sum([value.square().sum() for value in floats] + weighted, start=torch.zeros((), dtype=torch.float64))

    floats = [arguments[place] for place in places]
    return compute, floats, [torch.cos(3 * torch.arange(v.numel(), dtype=v.dtype)).view(v.shape) for v in floats]


def _spread(result: Tensor) -> Tensor:
    return torch.sin(1 + torch.arange(result.numel(), dtype=torch.float64)).view(result.shape)


def _assert_slope(row: Row, slope: Callable[[Callable[..., Tensor], list[Tensor], list[Tensor]], Tensor]) -> None:
    compute, floats, direction = _objective(row)
    step, held = 1e-6, row.arguments.keys() - row.differentiable
    with torch.no_grad():
        ahead, behind = (
            compute(*(value + sign * step * way for value, way in zip(floats, direction, strict=True)), held=held)
            for sign in (1, -1)
        )
    expected, found = (ahead - behind) / (2 * step), slope(compute, floats, direction).detach()
    if not abs(float(found - expected)) <= 1e-5 * max(1.0, abs(float(expected))):
        raise WrongResultError(f"slope {float(found):.6g}, by finite differences {float(expected):.6g}")


def _dot(gradients: Sequence[Tensor], direction: Sequence[Tensor]) -> Tensor:
    return torch.stack([(one * other).sum() for one, other in zip(gradients, direction, strict=True)]).sum()


def differentiate(row: Row) -> None:
    def slope(compute: Callable[..., Tensor], floats: list[Tensor], direction: list[Tensor]) -> Tensor:
        leaves = [value.clone().requires_grad_() for value in floats]
        return _dot(torch.autograd.grad(compute(*leaves), leaves), direction)

    _assert_slope(row, slope)


def differentiate_by_func(row: Row) -> None:
    def slope(compute: Callable[..., Tensor], floats: list[Tensor], direction: list[Tensor]) -> Tensor:
        return _dot(torch.func.grad(compute, argnums=tuple(range(len(floats))))(*floats), direction)

    _assert_slope(row, slope)


def differentiate_forward(row: Row) -> None:
    def slope(compute: Callable[..., Tensor], floats: list[Tensor], direction: list[Tensor]) -> Tensor:
        with torch.autograd.forward_ad.dual_level():
            duals = [
                torch.autograd.forward_ad.make_dual(value, way) for value, way in zip(floats, direction, strict=True)
            ]
            tangent = torch.autograd.forward_ad.unpack_dual(compute(*duals)).tangent
        return torch.zeros(()) if tangent is None else tangent

    _assert_slope(row, slope)


# --- number formats ---------------------------------------------------------------------------------------------------


def run_autocast(row: Row) -> None:
    arguments = row.make()
    with torch.autocast("cpu", torch.bfloat16):
        found = call(row, *arguments)
    assert_close(found, call(row, *arguments), ROUNDED)


def _in_dtype(dtype: torch.dtype, tolerance: float) -> Callable[[Row], None]:
    def run(row: Row) -> None:
        """Of what is left of the arguments: indices are those of float32, other numbers near those of float64."""
        arguments = row.make(dtype)
        found, *expected = (
            call(row, *(value.to(to) if value.is_floating_point() else value for value in arguments))
            for to in (dtype, torch.float32, torch.float64)
        )
        wide = [d if d.is_floating_point() else f for f, d in zip(*expected, strict=True)]
        assert_close(found, wide, tolerance, same_dtype=False)

    return run


def run_double(row: Row) -> None:
    """Real numbers in float64, whose digits beyond float32 are those of a call with other digits there."""
    arguments = row.make(torch.float64)
    found = call(row, *arguments)
    if any(result.is_floating_point() and result.dtype != torch.float64 for result in found):
        raise WrongResultError("results in less than float64")
    assert_close(
        found, call(row, *(a.float() if a.is_floating_point() else a for a in arguments)), ROUNDED, same_dtype=False
    )


# --- sizes and layouts ------------------------------------------------------------------------------------------------


def run_empty(row: Row) -> None:
    """No rows: the shapes that follow, or one line that says what is wrong."""
    for letter in row.none:
        sizes = {letter: 0}
        assert_shapes(call(row, *row.make(**sizes)), row.shapes(**sizes))
    for letter in row.refused:
        _assert_refused(row, {letter: 0})


def _assert_refused(row: Row, sizes: dict[str, int]) -> None:
    try:
        call(row, *row.make(**sizes))
    except ValueError as error:
        if len(str(error).splitlines()) == 1:
            return
        raise
    raise WrongResultError(f"{sizes}: not refused")


def run_no_batch(row: Row) -> None:
    sizes = {"B": 0} if "B" in row.letters else dict.fromkeys("SNM", 0)
    assert_shapes(call(row, *row.make(**sizes)), row.shapes(**sizes))


def run_strided(row: Row) -> None:
    arguments = row.make()
    expected = call(row, *arguments)
    for spread in (_with_gaps, _by_column):
        assert_close(call(row, *map(spread, arguments)), expected, BITS)


def _with_gaps(values: Tensor) -> Tensor:
    return torch.stack([values, values], dim=-1)[..., 0]


def _by_column(values: Tensor) -> Tensor:
    return values if values.ndim < 2 else values.mT.contiguous().mT


# --- devices ----------------------------------------------------------------------------------------------------------

ELSEWHERE = torch.device("lazy", 1)
"""A second device, of a kind whose tensors torch makes without its driver where they have no memory."""


def run_elsewhere(row: Row) -> None:
    """Tensors without memory on another device: the results lie there."""
    arguments = row.make()
    with FakeTensorMode(shape_env=ShapeEnv()):
        fakes = [_with_known(torch.empty(a.shape, dtype=a.dtype, device=ELSEWHERE), a) for a in arguments]
        elsewhere = {result.device for result in call(row, *fakes)} - {ELSEWHERE}
    if elsewhere:
        raise WrongResultError(f"results on {', '.join(map(str, elsewhere))}")


def count_reads(row: Row) -> int:
    """Count reads of numbers of a device in a call, in the form of a GPU; checks of values are deferred.

    Lists are counted here: the modes of `counted_waits` do not see those that are read inside of operators.
    """
    arguments, lists, read = row.make(), 0, torch.Tensor.tolist

    def tolist(tensor: Tensor) -> Any:
        nonlocal lists
        lists += not is_on_host()
        with torch._C.DisableTorchFunction():  # whose mode would come back here, and count it again
            return read(tensor)

    with pytest.MonkeyPatch.context() as patch, deferred_checks():
        patch.setattr(torch.Tensor, "tolist", tolist)
        with counted_waits(patch) as waits:
            call(row, *arguments)
    return lists + sum(count for place, count in waits.items() if not place.startswith("tolist"))


# --- the exam ---------------------------------------------------------------------------------------------------------

COLUMNS: dict[str, Callable[[Row], None]] = {
    "compile": compile_it,
    "export": export_it,
    "onnx": run_onnx,
    "onnx by torch": run_onnx_by_torch,
    "meta": run_meta,
    "vmap": vmap_it,
    "autograd": differentiate,
    "func.grad": differentiate_by_func,
    "forward mode": differentiate_forward,
    "autocast": run_autocast,
    "float16": _in_dtype(torch.float16, 4e-3),
    "bfloat16": _in_dtype(torch.bfloat16, 3e-2),
    "float64": run_double,
    "empty": run_empty,
    "batch 0": run_no_batch,
    "not contiguous": run_strided,
    "another device": run_elsewhere,
}


GRAPHS = ("compile", "export", "onnx", "onnx by torch")
"""Columns that take some seconds of a row."""


def examine(row: Row, column: str) -> str | None:
    """Return what is wrong in a cell, in one line, or None."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            COLUMNS[column](row)
    except Exception as error:  # noqa: BLE001 - a cell is whatever goes wrong in it
        while error.__cause__ is not None:
            error = error.__cause__
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None
