"""Random numbers that the code of a data set draws: in its constructor, and where samples are read."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator, Sized
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from sightline.doctor.attempts import MissingError, NotApplicableError, attempt
from sightline.doctor.objects import get_python_function

_VALUES = frozenset(
    "rand randn randint rand_like randn_like randint_like randrange integers random random_sample uniform normal "
    "gauss standard_normal choice choices multinomial bernoulli poisson exponential normal_ uniform_ random_".split()
)
"""Names of functions that draw values. An order, or a choice without replacement, divides what is there."""
_ORDERS = frozenset(("randperm", "permutation", "shuffle", "sample"))
_MAKERS = frozenset("arange linspace logspace range zeros ones empty full eye tril triu Generator manual_seed".split())
"""Names of functions that take sizes, ends and seeds, and no data."""
_READS = ("__getitem__", "__getitems__", "__iter__")
_DEPTH, _NUM_SPREAD = 4, 64


class Draw(NamedTuple):
    """Call that draws values, as it is written, with its file, its line and the function that it stands in."""

    text: str
    function: str
    file: str
    line: int


class DrawnOnce(NamedTuple):
    """Set of data that it was given, whose constructor draws values beside these; its `epochs` have had the same."""

    name: str
    given: str
    draw: Draw
    epochs: int


def find_drawn_once(data: Any, collate: Any, epochs: int, *, repeats: bool) -> DrawnOnce:
    """Find what the constructor of a set draws beside data that it is given. Raises NotApplicableError without it.

    Nothing is said of a set that makes all of its samples. Where it is not known that whole epochs repeat (`repeats`),
    nothing is said either of one whose reads draw as well, or call what may.
    """
    kind = type(data)
    begin = get_python_function(kind.__init__)
    given = "" if begin is None else _find_given(data, begin)
    draws = [draw for draw in iter_draws(begin, kind) if draw.text] if begin is not None and given else []
    if not draws:
        raise NotApplicableError("no set that is given data, and draws in its constructor")
    reads = [get_python_function(getattr(kind, name)) for name in _READS if hasattr(kind, name)]
    for function in () if repeats else (*reads, get_python_function(collate)):
        if function is not None and any(True for _ in iter_draws(function, kind, strict=True)):
            raise NotApplicableError("a set that draws as it is read")
    return DrawnOnce(kind.__name__, given, draws[0], epochs)


def mark_set(data: Any) -> dict[str, Any]:
    """Mark what a set holds: other objects, other numbers, or other items of its lists are other marks."""
    return {name: _mark(value) for name, value in vars(data).items()}


def _mark(value: Any) -> Any:
    if isinstance(value, Tensor):
        return id(value), value._version
    if isinstance(value, np.ndarray) and value.dtype != object:
        few = value.reshape(-1)[:: max(1, value.size // _NUM_SPREAD**2)]
        return id(value), few.tobytes()
    if isinstance(value, list):
        return id(value), len(value), tuple(id(each) for each in value[:: max(1, len(value) // _NUM_SPREAD)])
    return id(value), len(value) if isinstance(value, Sized) and not isinstance(value, str) else None


def _find_given(data: Any, begin: FunctionType) -> str:
    """Name an attribute with several items that the constructor makes, without a draw, of what it is given.

    That are its arguments, and data that its module holds.
    """
    tree = _parse(begin)
    parameters = {*inspect.signature(begin).parameters} - {"self"}
    for node in ast.walk(tree) if tree is not None else ():
        for target, value in _iter_assigned(node):
            if not isinstance(target, ast.Attribute) or _is_made(value):
                continue
            names = {each.id for each in ast.walk(value) if isinstance(each, ast.Name)}
            is_given = names & parameters or any(_is_many(begin.__globals__.get(name)) for name in names)
            held = getattr(data, target.attr, None)
            if is_given and _is_many(held) and not _is_of_labels(held, data):
                return target.attr
    return ""


def _is_made(value: ast.expr) -> bool:
    """Return True for values that the set draws, or makes of sizes and ends: `torch.arange(n) / n`, `[0] * n`."""
    is_repeated = isinstance(value, ast.BinOp) and isinstance(value.op, ast.Mult) and isinstance(value.left, ast.List)
    return is_repeated or any(_iter_calls(value, _VALUES | _MAKERS))


def _get_called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _is_of_labels(held: Any, data: Any) -> bool:
    """Return True for a class of each sample: a set that draws the rest makes its samples."""
    values = np.asarray(held) if isinstance(held, Tensor | np.ndarray | list) else np.empty(0)
    return values.ndim == 1 and values.dtype.kind in "iub" and len(values) == len(data)


def _iter_assigned(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Yield what a statement assigns, and what to: each of several by itself."""
    if not isinstance(node, ast.Assign):
        return
    for target in node.targets:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield from zip(target.elts, node.value.elts, strict=False)
        else:
            yield target, node.value


def _is_many(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.ndim > 0 and len(value) > 1
    return isinstance(value, Sized) and not isinstance(value, str | type | ModuleType) and len(value) > 1


def iter_draws(function: FunctionType, kind: type, *, strict: bool = False, depth: int = _DEPTH) -> Iterator[Draw]:
    """Yield the calls that draw values in a function, and in the methods and functions that it calls.

    With `strict`, calls of what the set holds are yielded as well, and draws of an order: they may draw.
    """
    tree = _parse(function)
    if tree is None or not depth:
        if strict:
            yield Draw("", function.__qualname__, function.__code__.co_filename, 0)
        return
    first = function.__code__.co_firstlineno
    for call in _iter_calls(tree, _VALUES | (_ORDERS if strict else frozenset())):
        text = ast.unparse(call.func)
        yield Draw(text, function.__name__, function.__code__.co_filename, first + call.lineno - 1)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = _get_called(call)
        is_own = isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") == "self"
        called = getattr(kind, name, None) if is_own else function.__globals__.get(name)
        if is_own and called is None and strict:
            yield Draw("", name, function.__code__.co_filename, first + call.lineno - 1)
        if isinstance(called, FunctionType) and called is not function:
            yield from iter_draws(called, kind, strict=strict, depth=depth - 1)


def _iter_calls(tree: ast.AST, names: frozenset[str]) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = _get_called(node)
            is_divided = any(
                word.arg == "replace" and getattr(word.value, "value", True) is False for word in node.keywords
            )
            if name in names and not is_divided:
                yield node


@functools.lru_cache(maxsize=64)
def _parse(function: FunctionType) -> ast.AST | None:
    source = attempt("source", inspect.getsource, {"object": function})
    tree = (
        source
        if isinstance(source, MissingError)
        else attempt("source", ast.parse, {"source": textwrap.dedent(source)})
    )
    return None if isinstance(tree, MissingError) else tree
