"""Tape of torch's functions between two moments of a program, and its replay from other tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn, overrides
from torch.overrides import TorchFunctionMode

from sightline.contract.pytree import is_dense
from sightline.instrument import replace_function

_MAX_CALLS = 4_096
_FUSED = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)
"""Modules that compute in another way, and round differently, while functions are observed: they are left alone."""
_TOLERANCE = 1e-6
_BY_ROWS = frozenset("__getitem__ unbind split chunk select narrow tensor_split".split())
"""Functions that take samples one by one, if the first axis is meant."""

_PARTS = _BY_ROWS | frozenset(
    "bool clone contiguous cpu cuda detach double flatten float int long movedim permute reshape squeeze to transpose "
    "type unflatten unsqueeze view T mT".split()
)
"""Functions that return a part of a tensor, or the same numbers in another form; others compute new ones."""
_WRITERS = frozenset("__setitem__ __iadd__ __isub__ __imul__ __itruediv__ __iand__ __ior__".split())
_MAX_KEPT = 2**22
"""Numbers of a tensor whose state is kept before it is written to."""

_LEAVES_TORCH = frozenset("numpy tolist __array__ __reduce_ex__".split())
"""Functions after which others may compute, such as NumPy's: what comes back is no function of the outputs here."""


class TapeError(Exception):
    """A tape that cannot be replayed, with the reason in a few words."""


class GraphError(TapeError):
    """A tape whose calls read the graph of what has made their tensors: it is repeated with that, or not at all."""


@dataclass(frozen=True)
class Slot:
    """Tensor of a template, or a number that was read of one, by its number."""

    number: int


@dataclass
class FunctionCall:
    """Call of a function of torch, or of a part that is taken whole; in a template, tensors are slots.

    `written` are tensors that the call has changed; `has_gradient` is True where autograd recorded it, `is_whole` for
    a part that was named.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any
    written: Sequence[Tensor] = ()
    has_gradient: bool = True
    is_whole: bool = False

    @property
    def name(self) -> str:
        """Name of the function, as messages have it."""
        owner = getattr(self.function, "__self__", None)  # of a property of tensors
        own = (self.function, type(self.function))
        known = (getattr(named, "__name__", "") for named in (own if isinstance(owner, ModuleType) else (owner, *own)))
        return next(name for name in known if name)


class FunctionTape(TorchFunctionMode):
    """Mode that records the calls of torch's functions, in this thread, from `start` until `stop`; results are theirs.

    Contexts of the program may begin and end in between. While it `is_paused`, nothing is recorded. `failure` says why
    the tape is not whole.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[FunctionCall] = []
        self.is_paused = self.is_over = False
        self.failure = ""
        self.before: dict[int, Tensor] = {}
        """What tensors were, by identity, before the tape wrote to them: those of a memory, which it has not made."""
        self._made: set[int] = set()
        self._stack = ExitStack()

    def start(self) -> None:
        """Begin to record; not inside of another mode, whose end would be taken for the end of this one.

        Nor where torch compiles: it would compile functions once more for the mode.
        """
        compiler = sys.modules.get("torch._dynamo.eval_frame")
        if any(backend is not None for backend in getattr(compiler, "cached_backends", {}).values()):
            self.failure, self.is_over = "torch compiles parts of the program", True
        elif overrides._get_current_function_mode_stack():
            self.failure, self.is_over = "another mode of torch's functions is on", True
        if self.is_over:
            return
        self._stack.enter_context(self.leaving_fused())
        overrides._push_mode(self)

    @contextmanager
    def leaving_fused(self) -> Iterator[None]:
        """Context in which modules that torch fuses run outside of this mode."""
        with ExitStack() as stack:
            for kind in _FUSED:
                stack.enter_context(replace_function(kind, "forward", self._run_apart))
            yield

    def stop(self) -> None:
        """End the record; inside of a function that is observed, the mode stays until the next call of this."""
        self.is_over = True
        stack = overrides._get_current_function_mode_stack()
        if not any(mode is self for mode in stack):
            return
        above = []
        while (mode := overrides._pop_mode()) is not self:
            above.append(mode)
        for mode in reversed(above):
            overrides._push_mode(mode)
        self._stack.close()

    def _run_apart(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        stack = overrides._get_current_function_mode_stack()
        if not stack or stack[-1] is not self:
            return original(*args, **kwargs)
        overrides._pop_mode()
        try:
            return original(*args, **kwargs)
        finally:
            overrides._push_mode(self)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.is_paused or self.is_over:
            return func(*args, **kwargs)
        before = _read_versions((args, kwargs))
        self._keep_memory(func, args)
        result = func(*args, **kwargs)
        self._made |= {id(item) for item in iter_items(result) if isinstance(item, Tensor)}
        written = [tensor for tensor, version in before if _read_version(tensor) != version]
        if not self.is_over:  # a backward pass ends the tape inside of its own call
            self.calls.append(FunctionCall(func, tuple(args), dict(kwargs), result, written, torch.is_grad_enabled()))
        if len(self.calls) > _MAX_CALLS:
            self.failure, self.is_over = f"the loss calls more than {_MAX_CALLS:,} functions", True
        return result

    def _keep_memory(self, function: Any, args: Sequence[Any]) -> None:
        """Keep what a tensor was that a function writes to, and that the tape has not made; not of results."""
        name, tensor = getattr(function, "__name__", ""), args[0] if args else None
        if not isinstance(tensor, Tensor) or not (name in _WRITERS or (name.endswith("_") and name[:2] != "__")):
            return
        is_open = id(tensor) not in self._made and id(tensor) not in self.before and not tensor._is_view()
        if is_open and not tensor.requires_grad and is_dense(tensor) and tensor.numel() <= _MAX_KEPT:
            self.before[id(tensor)] = tensor.detach().clone()

    def add(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Add the call of a part that is taken whole, whose own calls were not recorded."""
        has_gradient = torch.is_grad_enabled()
        self.calls.append(FunctionCall(function, tuple(args), dict(kwargs), result, (), has_gradient, is_whole=True))


def insert_calls(tape: FunctionTape, inserted: Iterable[tuple[int, FunctionCall]]) -> FunctionTape:
    """Return a tape with further calls before those at some places of it, in their order."""
    joined, calls = FunctionTape(), list(tape.calls)
    for offset, (position, call) in enumerate(sorted(inserted, key=lambda pair: pair[0])):
        calls.insert(position + offset, call)
    joined.calls, joined.failure, joined.before = calls, tape.failure, tape.before
    return joined


def iter_items(value: Any) -> Iterator[Any]:
    """Iterate over what a tree of lists, tuples, mappings and slices holds."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from iter_items(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from iter_items(item)
    elif isinstance(value, slice):
        yield from (value.start, value.stop, value.step)
    else:
        yield value


def map_items(value: Any, function: Callable[[Any], Any]) -> Any:
    """Replace what a tree of lists, tuples, mappings and slices holds; these become plain ones."""
    if isinstance(value, list | tuple):
        items = [map_items(item, function) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, Mapping):
        return {key: map_items(item, function) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(map_items(item, function) for item in (value.start, value.stop, value.step)))
    return function(value)


def _read_version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _read_versions(tree: Any) -> list[tuple[Tensor, int]]:
    return [(item, _read_version(item)) for item in iter_items(tree) if isinstance(item, Tensor)]


class FunctionTemplate:
    """Calls that lead to a value, with slots in place of tensors; `leaves` are the tensors that none of them has made.

    `root` is the slot of the value, `memory` are leaves that calls write to. Of other tensors than those that are
    `given`, what is taken of each row is a leaf. With `graphs`, the calls of the model are among those of the tape, and
    calls that read graphs, as those of `torch.autograd.grad`, are repeated, too. Raises TapeError where the calls
    cannot be repeated with other tensors.
    """

    def __init__(
        self, tape: FunctionTape, root: Tensor, inputs: Iterable[Tensor] = (), *, graphs: bool = False
    ) -> None:
        calls = _leave_out_parts(tape.calls, {*map(id, inputs), *tape.before})
        if tape.failure:  # what is left are named parts
            calls = [call for call in calls if call.is_whole and any(root is item for item in iter_items(call.result))]
        if tape.failure and not calls:
            raise TapeError(tape.failure)
        self._slots: dict[int, Slot] = {}
        self._items: list[Any] = []
        makers, needed = _list_makers(calls), list_needed(calls, root)
        _assert_repeatable(calls, needed, makers, tape.before, graphs=graphs)
        made = {key for key, numbers in makers.items() if any(number in needed for number in numbers)}
        self._numbers = {id(n) for number in needed for n in iter_items(calls[number].result) if type(n) is float}
        self.root = self._take(root)
        self.calls = [self._convert(calls[number]) for number in sorted(needed)]
        self.leaves: dict[int, Tensor] = {
            slot.number: tape.before.get(key, self._items[slot.number])
            for key, slot in self._slots.items()
            if key not in made and isinstance(self._items[slot.number], Tensor)
        }
        written = {id(tensor) for number in needed for tensor in calls[number].written}
        self.memory = {slot.number for key, slot in self._slots.items() if key in written and key not in made}
        self._slots, self._items = {}, []

    def _convert(self, call: FunctionCall) -> FunctionCall:
        args, kwargs, result = (map_items(tree, self._take) for tree in (call.args, call.kwargs, call.result))
        return FunctionCall(call.function, args, kwargs, result, (), call.has_gradient, call.is_whole)

    def _take(self, item: Any) -> Any:
        if not isinstance(item, Tensor) and id(item) not in self._numbers:
            return item
        if id(item) not in self._slots:
            self._slots[id(item)] = Slot(len(self._items))
            self._items.append(item)
        return self._slots[id(item)]

    def replay(self, leaves: Mapping[int, Any], convert: Callable[[Any], Any] = lambda part: part) -> Any:
        """Repeat the calls with other tensors in place of the leaves, by their slots, and return the value.

        `convert` is applied to parts that are taken whole, such as modules, before they are called.
        """
        values = {slot: leaf.clone() if slot in self.memory else leaf for slot, leaf in leaves.items()}

        def read(item: Any) -> Any:
            return values[item.number] if isinstance(item, Slot) else item

        for call in self.calls:
            with torch.set_grad_enabled(call.has_gradient and torch.is_grad_enabled()):
                function = convert(call.function) if call.is_whole else call.function
                result = function(*map_items(call.args, read), **map_items(call.kwargs, read))
            for slot, item in zip(iter_items(call.result), iter_items(result), strict=True):
                if isinstance(slot, Slot):
                    values[slot.number] = item
        return values[self.root.number]

    def find_difference(self, other: FunctionTemplate) -> str:
        """Say in what the calls of another template differ; "" where they are the same."""
        names = [[call.name for call in compared.calls] for compared in (self, other)]
        if names[0] != names[1]:
            return "it calls other functions in the next step"
        for call, twin in zip(self.calls, other.calls, strict=True):
            pairs = [[*iter_items((compared.args, compared.kwargs))] for compared in (call, twin)]
            if not _are_equal(*pairs):
                return f"'{call.name}' is called with other constants in the next step"
        return "" if self.leaves.keys() == other.leaves.keys() else "it reads other tensors in the next step"

    def is_sized(self, number: int) -> bool:
        """Return True if constants may count so many samples, or the calls take them one by one."""
        constants = [
            item
            for call in self.calls
            if not call.is_whole
            for item in iter_items((call.args, call.kwargs))
            if type(item) in (int, float) and item
        ]
        sizes = [c if abs(c) >= 1 else 1 / c for c in constants]
        is_counted = any(abs(size) > 1 and abs(size / number - round(size / number)) < _TOLERANCE for size in sizes)
        return number < 2 or is_counted or any(map(_takes_rows, self.calls))


def _leave_out_parts(calls: Sequence[FunctionCall], input_ids: Iterable[int]) -> list[FunctionCall]:
    """Leave out calls that take parts of each row of a tensor which is not given, nor made of such."""
    made, remaining = {*input_ids}, list[FunctionCall]()
    for call in calls:
        read = [item for item in iter_items((call.args, call.kwargs)) if isinstance(item, Tensor)]
        is_single = len(read) == 1 and id(read[0]) not in made and not (call.written or call.is_whole)
        is_single = is_single and call.name in _PARTS
        is_single = is_single and isinstance(call.result, Tensor) and not call.result.requires_grad
        if is_single and call.result.ndim <= read[0].ndim and call.result.shape[:1] == read[0].shape[:1] != ():
            continue
        remaining.append(call)
        made |= {id(item) for item in iter_items(call.result) if isinstance(item, Tensor)}
    return remaining


def _takes_rows(call: FunctionCall) -> bool:
    if call.is_whole or call.name not in _BY_ROWS:
        return False
    index = call.args[1] if len(call.args) > 1 else None
    first = index[0] if isinstance(index, tuple) and index else index
    is_whole = first is None or first is Ellipsis or isinstance(first, Slot) or first == slice(None)
    return call.name != "__getitem__" or not is_whole


def _are_equal(first: Sequence[Any], other: Sequence[Any]) -> bool:
    if len(first) != len(other):
        return False
    plain = (int, float, str, bool, complex, type(None), Slot, torch.dtype, torch.device)
    return all(type(a) is type(b) and (not isinstance(a, plain) or a == b) for a, b in zip(first, other, strict=True))


def _list_makers(calls: Sequence[FunctionCall]) -> dict[int, list[int]]:
    """List the calls that have made a tensor, or read a number, by its identity: those whose result it is."""
    makers: dict[int, list[int]] = {}
    for number, call in enumerate(calls):
        known = {id(item) for item in iter_items((call.args, call.kwargs))}
        for item in iter_items(call.result):
            if isinstance(item, Tensor | float) and id(item) not in known:
                makers.setdefault(id(item), []).append(number)
    return makers


def list_needed(calls: Sequence[FunctionCall], root: Tensor) -> set[int]:
    """List the calls on which a value depends, by their places in the tape."""
    makers = _list_makers(calls)
    for number, call in enumerate(calls):
        for tensor in call.written:
            makers.setdefault(id(tensor), []).append(number)
    needed, waiting = set[int](), [id(root)]
    while waiting:
        for number in makers.pop(waiting.pop(), ()):
            if number not in needed:
                needed.add(number)
                waiting += [id(item) for item in iter_items((calls[number].args, calls[number].kwargs))]
                waiting += [id(item) for item in iter_items(calls[number].result)]
    return needed


def _assert_repeatable(
    calls: Sequence[FunctionCall],
    needed: set[int],
    makers: Mapping[int, Sequence[int]],
    before: Mapping[int, Tensor],
    *,
    graphs: bool,
) -> None:
    for number in needed:
        call = calls[number]
        outside = [t for t in call.written if (id(t) not in makers and id(t) not in before) or t._is_view()]
        if outside:
            raise TapeError(f"'{call.name}' writes to a tensor that it has not made")
        if getattr(call.function, "__module__", None) == "torch.autograd" and not graphs:
            raise GraphError(f"'{call.name}' reads a graph")
    read = {id(item) for number in needed for item in iter_items((calls[number].args, calls[number].kwargs))}
    memory = {
        t.untyped_storage()._cdata
        for number in needed
        for t in iter_items((calls[number].args, calls[number].kwargs))
        if isinstance(t, Tensor) and t.layout is torch.strided and id(t) in read
    }
    for number, call in enumerate(calls):
        if call.name in _LEAVES_TORCH and any(id(item) in makers or id(item) in read for item in iter_items(call.args)):
            raise TapeError(f"'{call.name}' reads numbers from outside of torch")
        for tensor in call.written if number not in needed else ():
            if tensor.layout is torch.strided and tensor.untyped_storage()._cdata in memory:
                raise TapeError(f"'{call.name}' writes to a tensor that the loss reads")
