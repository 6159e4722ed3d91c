"""Score that a loop computes of each batch: asked again of the samples of several batches at once."""

from __future__ import annotations

import contextlib
import dis
import gc
import io
import math
from collections.abc import Callable, Mapping, Sequence
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.doctor.attempts import LeftOutError, NotApplicableError
from sightline.doctor.objects import read_variables
from sightline.instrument.random_state import preserve_random_state

_REL_TOL, _ABS_TOL, _MAX_NUMBERS = 1e-3, 1e-6, 1_000_000
_PLAIN = (int, float, str, bool, type(None), torch.dtype, torch.device)
Rows = Tensor | np.ndarray
_HARMLESS = (*_PLAIN, ModuleType, FunctionType, BuiltinFunctionType, type, np.ufunc)
_STORES = {"STORE_GLOBAL", "DELETE_GLOBAL", "STORE_ATTR", "DELETE_ATTR"}
_WRITERS = {"open", "write", "save", "dump", "exec", "eval", "setattr", "add_scalar", "log"}


class ScoreCall(NamedTuple):
    """Call of a function of one batch: arguments by name, the number of samples, and what it returned."""

    function: FunctionType
    arguments: Mapping[str, Any]
    size: int
    value: float


class Averaged(NamedTuple):
    """Function whose figures of batches, of these sizes, have another mean than the figure of all their samples."""

    name: str
    file: str
    line: int
    figures: list[float]
    sizes: list[int]
    whole: float

    @property
    def mean(self) -> float:
        """Mean of the figures of batches."""
        return sum(self.figures) / len(self.figures)


def read_call(code: CodeType, values: Mapping[str, Any]) -> tuple[dict[str, Any], int] | None:
    """Read the arguments of a call of plain values, with a row for each sample in two or more; None for another."""
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    arguments = {name: values[name] for name in names if name in values}
    if len(arguments) < len(names) or code.co_posonlyargcount or code.co_flags & 0x0C:  # *args, **kwargs
        return None
    rows = [each for each in arguments.values() if isinstance(each, Rows)]
    sizes = {len(each) if each.ndim else 0 for each in rows}
    is_plain = all(isinstance(each, _PLAIN) for each in arguments.values() if not isinstance(each, Rows))
    is_small = sum(each.numel() if isinstance(each, Tensor) else each.size for each in rows) <= _MAX_NUMBERS
    if len(rows) < 2 or len(sizes) != 1 or min(sizes) < 2 or not is_plain or not is_small:
        return None
    return {name: _copy(each) for name, each in arguments.items()}, sizes.pop()


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return np.copy(value) if isinstance(value, np.ndarray) else value


def find_function(frame: FrameType) -> FunctionType | None:
    """Find the function of a call by its code: among what its caller and its own module name, or in memory."""
    code, caller = frame.f_code, frame.f_back
    scopes = [] if caller is None else [read_variables(caller), caller.f_globals]
    named = [value for scope in scopes for value in [*scope.values()]]
    for values in ([*named, frame.f_globals.get(code.co_name)], gc.get_referrers(code)):
        found = {id(each): each for each in values if isinstance(each, FunctionType) and each.__code__ is code}
        if found:
            return found.popitem()[1] if len(found) == 1 else None
    return None


def read_number(value: Any) -> float | None:
    """Return the number that a function has returned; None for another value, and for one that has a gradient."""
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 and not value.requires_grad else None
    is_number = isinstance(value, float | np.floating) and not isinstance(value, bool)
    return float(value) if is_number else None


def is_self_contained(function: Callable[..., Any]) -> bool:
    """Return True if a call reaches nothing that outlives it but modules, classes, plain values and such functions.

    One that may write elsewhere, to a list, a counter or a file, is not to be called again.
    """
    pending: list[Any] = [function]
    codes: set[CodeType] = set()
    while pending:
        value = pending.pop()
        if isinstance(value, FunctionType) and "site-packages" not in value.__code__.co_filename:
            if value.__code__ not in codes:
                codes.add(value.__code__)
                if any(map(_is_writer, _list_codes(value.__code__))):
                    return False
                pending += _list_reached(value)
        elif isinstance(value, tuple):
            pending += value
        elif not isinstance(value, _HARMLESS):
            return False
    return True


def _list_reached(function: FunctionType) -> list[Any]:
    """List what a function names outside of itself: globals, variables of functions around it, and defaults."""
    names = {name for code in _list_codes(function.__code__) for name in code.co_names}
    outside = [function.__globals__[name] for name in names & function.__globals__.keys()]
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return [*outside, *(cell.cell_contents for cell in function.__closure__ or ()), *defaults]


def _is_writer(code: CodeType) -> bool:
    """Return True for code that binds outer names, sets attributes, or names what writes files."""
    for step in dis.get_instructions(code):
        if step.opname in _STORES or (step.opname == "STORE_DEREF" and step.argval in code.co_freevars):
            return True
    return not _WRITERS.isdisjoint(code.co_names)


def _list_codes(code: CodeType) -> list[CodeType]:
    inner = [each for each in code.co_consts if isinstance(each, CodeType)]
    return [code, *(found for each in inner for found in _list_codes(each))]


def compare_scores(calls: Sequence[ScoreCall]) -> Averaged | None:
    """Ask the function for all samples of its calls; None where that is a mean, or a sum, of what they returned.

    Raises NotApplicableError for one that may write elsewhere, that does not repeat, or of which a gradient can be had:
    a loss.
    """
    function, figures, sizes = calls[0].function, [call.value for call in calls], [call.size for call in calls]
    if not is_self_contained(function):
        raise LeftOutError("a score that may change more than it returns")
    if not all(map(math.isfinite, figures)):
        raise NotApplicableError("figures that are no numbers")
    again, whole = _ask(function, calls[:1]), _ask(function, calls)
    if not math.isclose(again, figures[0], rel_tol=1e-6, abs_tol=_ABS_TOL):
        raise LeftOutError("a score that does not repeat")
    weighted = sum(map(float.__mul__, figures, map(float, sizes))) / sum(sizes)
    known = weighted, sum(figures) / len(figures), sum(figures)
    if any(math.isclose(whole, each, rel_tol=_REL_TOL, abs_tol=_ABS_TOL) for each in known):
        return None
    code = function.__code__
    return Averaged(code.co_name, code.co_filename, code.co_firstlineno, figures, sizes, whole)


def _ask(function: Callable[..., Any], calls: Sequence[ScoreCall]) -> float:
    joined = {name: _join([call.arguments[name] for call in calls]) for name in calls[0].arguments}
    leaves = [
        value.requires_grad_() for value in joined.values() if isinstance(value, Tensor) and value.is_floating_point()
    ]
    silent = io.StringIO()
    shown = contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent)
    with shown[0], shown[1], torch.enable_grad(), preserve_random_state():
        value = function(**joined)
    if isinstance(value, Tensor) and value.requires_grad and leaves:
        raise NotApplicableError("a loss, whose gradient can be had")
    number = read_number(value)
    if number is None or not math.isfinite(number):
        raise NotApplicableError("no number of several batches")
    return number


def _join(values: Sequence[Any]) -> Any:
    """Join the rows of several batches; what has none has to be the same in all."""
    if isinstance(values[0], Tensor):
        return torch.cat([*values])
    if isinstance(values[0], np.ndarray):
        return np.concatenate([*values])
    if any(each != values[0] for each in values):
        raise LeftOutError("arguments that differ from batch to batch")
    return values[0]
