"""Recording of module calls, and interception of torch's operators and functions.

All hooks on modules and tensors, and all modes of torch, are hung here. A tape lists the calls of modules in the order
of their start. If gradients are kept, a module reads and returns tensors through views of their own (taps), so that
the recorded gradient is that of this call alone, even if other modules read the same tensor.
"""

from __future__ import annotations

import copy
import functools
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from sightline.contract.pytree import tree_map
from sightline.instrument.formats import FORMATS, Format

PARTS = frozenset(("inputs", "outputs", "gradients"))
"""Parts of a call that `record` keeps if they are named."""


@dataclass
class ModuleCall:
    """One call of a module: `call_index` counts the calls of this path from 0, `parent` is the enclosing call.

    `inputs` are `(args, kwargs)`; the gradients are those of the tensors of inputs and outputs by path, from this call
    alone. `began` and `ended` are ticks of one clock over all calls. To replay the call: `buffers` are the changed
    buffers, before and after, `random_state` is that before the call, of the host and of the GPU if one is in use,
    `format` is the coarsest number format inside.
    `shown` is the name to print if `path` belongs to another network's module.
    """

    path: str
    call_index: int
    class_name: str
    parent: int | None
    inputs: Any = None
    outputs: Any = None
    input_gradients: dict[str, Tensor] = field(default_factory=dict)
    output_gradients: dict[str, Tensor] = field(default_factory=dict)
    began: int = 0
    ended: int = 0
    format: Format = FORMATS[torch.float64]
    buffers: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    random_state: tuple[Tensor, ...] | None = None
    shown: str = ""

    @property
    def name(self) -> str:
        """The path, with the number of the call if it is not the first."""
        if self.shown:
            return self.shown
        path = self.path or "(model)"
        return f"{path} (call {self.call_index + 1})" if self.call_index else path


Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Enter = Callable[[ModuleCall, nn.Module, Inputs], Any]
Leave = Callable[[ModuleCall, nn.Module, Inputs, Any], Any]
Observe = Callable[[ModuleCall | None, Any, tuple[Any, ...], Mapping[str, Any], Any], None]
"""Observer of a torch function or operator: the innermost module call, the function, its arguments and its result."""
Run = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


@dataclass
class Tape:
    """Recorded calls in the order of their start; `running` are those that have not returned, the innermost last."""

    calls: list[ModuleCall] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    num_calls: dict[str, int] = field(default_factory=dict)
    num_ticks: int = 0

    @property
    def innermost(self) -> ModuleCall | None:
        """The innermost call that is running, or that failed; None outside of the modules."""
        return self.calls[self.running[-1]] if self.running else None

    @property
    def outputs(self) -> list[Any]:
        """Outputs of each call."""
        return [call.outputs for call in self.calls]

    def begin_call(self, path: str, module: nn.Module) -> ModuleCall:
        """Make the next call of a module; it is not running yet."""
        index = self.num_calls.get(path, 0)
        self.num_calls[path] = index + 1
        parent = self.running[-1] if self.running else None
        return ModuleCall(path, index, type(module).__name__, parent, began=self.tick())

    def tick(self) -> int:
        """Advance the clock, and return its time."""
        self.num_ticks += 1
        return self.num_ticks


@contextmanager
def record(
    modules: nn.Module | Mapping[str, nn.Module],
    *,
    keep: Collection[str] = (),
    convert: Callable[[Tensor], Any] | None = Tensor.detach,
    enter: Enter | None = None,
    leave: Leave | None = None,
    functions: Observe | None = None,
    operators: Observe | None = None,
) -> Iterator[Tape]:
    """Record the calls of a model's modules, or of these modules by path; gradients also in a backward pass after it.

    `keep` names the parts of the calls to keep, of `PARTS`; `convert` is applied to each tensor of inputs and outputs
    (None: they are kept as they are). `enter` is called before and `leave` after each call of a module; a value other
    than None that they return replaces inputs or outputs. `functions` and `operators` observe each of torch's calls, in
    and outside of the modules.
    """
    assert PARTS.issuperset(keep), keep
    tape = Tape()

    def convert_tree(value: Any) -> Any:
        return value if convert is None else tree_map(value, lambda _, tensor: convert(tensor))

    def begin(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = tape.begin_call(path, module)
        inputs = args, kwargs
        if "inputs" in keep:
            call.inputs = convert_tree(inputs)
        replaced = None if enter is None else enter(call, module, inputs)
        tape.running.append(len(tape.calls))
        tape.calls.append(call)
        if "gradients" in keep:
            return tree_map(inputs if replaced is None else replaced, _make_tap(call.input_gradients))
        return replaced

    def end(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> Any:
        call = tape.calls[tape.running.pop()]
        if "outputs" in keep:
            call.outputs = convert_tree(outputs)
        call.ended = tape.tick()
        replaced = None if leave is None else leave(call, module, (args, kwargs), outputs)
        if "gradients" in keep:
            return tree_map(outputs if replaced is None else replaced, _make_tap(call.output_gradients))
        return replaced

    def observe(observer: Observe, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = function(*args, **kwargs)
        observer(tape.innermost, function, args, kwargs, result)
        return result

    with ExitStack() as stack:
        for path, module in (dict(modules.named_modules()) if isinstance(modules, nn.Module) else modules).items():
            for handle in hang(module, partial(begin, path), partial(end, path)):
                stack.callback(handle.remove)
        if functions is not None:
            stack.enter_context(InterceptedFunctions(partial(observe, functions)))
        if operators is not None:
            stack.enter_context(InterceptedOperators(partial(observe, operators)))
        yield tape


def is_scripted(module: nn.Module) -> bool:
    """Return True for a module that torch runs without Python: it takes no hooks, and no code sees its parts."""
    return isinstance(module, torch.jit.RecursiveScriptModule)


def hang(
    module: nn.Module, before: Callable[..., Any] | None = None, after: Callable[..., Any] | None = None
) -> list[RemovableHandle]:
    """Hang `before(module, args, kwargs)` and `after(module, args, kwargs, outputs)` on a module and its later copies.

    A value other than None that either returns replaces the arguments, or the outputs. Scripted modules take no hooks.
    """
    handles: list[RemovableHandle] = []
    if is_scripted(module):
        return handles
    if before is not None:
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
    if after is not None:
        handles.append(module.register_forward_hook(after, with_kwargs=True))
    return handles


def watch_gradient(node: Any, receive: Callable[..., Any]) -> None:
    """Call `receive` with the gradients that a tensor, or a node of the autograd graph, gets in a backward pass."""
    node.register_hook(receive)


@contextmanager
def receive_gradients(parameters: Iterable[nn.Parameter], receive: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `receive` with each parameter to whose gradient a backward pass has added, whenever it has."""
    handles = [parameter.register_post_accumulate_grad_hook(receive) for parameter in parameters]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


Closure = Callable[..., Any]


@contextmanager
def observe_updates(
    before: Callable[[torch.optim.Optimizer], None], after: Callable[[torch.optim.Optimizer], None]
) -> Iterator[None]:
    """Call `before` and `after` around the update of every optimiser of the process, by torch's global hooks.

    The closure of a step, which computes its gradients, runs earlier than `before`. A step inside of another step, of
    an optimiser that wraps one, is a part of it. Other threads may update at the same time. Compiled steps, in which
    torch would trace both, are left alone.
    """

    def with_closure(optimizer: torch.optim.Optimizer, closure: Closure) -> Closure:
        def run() -> Any:
            loss = closure()
            before(optimizer)
            return loss

        return run

    def begin(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_compiling() or _AWAY.number or _is_inside(sys._getframe(1)):
            return None
        positional = len(args) > 1 and callable(args[1])
        if positional:
            return (args[0], with_closure(optimizer, args[1]), *args[2:]), kwargs
        if callable(kwargs.get("closure")):
            return args, {**kwargs, "closure": with_closure(optimizer, kwargs["closure"])}
        before(optimizer)
        return None

    def end(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not (torch.compiler.is_compiling() or _AWAY.number or _is_inside(sys._getframe(1))):
            after(optimizer)

    handles = [register_optimizer_step_pre_hook(begin), register_optimizer_step_post_hook(end)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_inside(frame: FrameType) -> bool:
    """Return True for a step that runs inside of another one, as the thread has it: one that raised runs no more."""
    outer = frame.f_back
    while outer is not None and outer.f_code is not frame.f_code:
        outer = outer.f_back
    return outer is not None


class _Depth(threading.local):
    """Number of calls inside of one another, of each thread."""

    number = 0


_AWAY = _Depth()


@contextmanager
def look_away() -> Iterator[None]:
    """Context in which the updates of this thread are not observed: those of copies, which may fail half-way."""
    _AWAY.number += 1
    try:
        yield
    finally:
        _AWAY.number -= 1


class _ObservedFunction:
    """Function that torch has no hook for, in whose place another one stands as long as it has observers.

    Each observer is called with the next one, at last with the function itself, as first argument.
    """

    def __init__(self, owner: Any, name: str) -> None:
        self._owner, self._name, self._is_own = owner, name, name in vars(owner)
        self._attribute = vars(owner).get(name)  # of a class it may be a descriptor, which binds the function
        original = getattr(owner, name)
        self.observers: tuple[Callable[..., Any], ...] = ()

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():  # else torch would trace the observers
                return original(*args, **kwargs)
            run = original
            for observer in self.observers:
                run = partial(observer, run)
            return run(*args, **kwargs)

        self._call = call
        setattr(owner, name, call)

    def restore(self) -> None:
        """Put the function back, unless another library has replaced `call` since: it goes on calling it."""
        if getattr(self._owner, self._name) is not self._call:
            return
        if self._is_own:
            setattr(self._owner, self._name, self._attribute)
        else:  # of a base class
            delattr(self._owner, self._name)


_OBSERVED: dict[tuple[int, str], _ObservedFunction] = {}
_OBSERVED_LOCK = threading.Lock()
"""Functions with observers, by the owner's identity and name: they are the process's, as what they replace is."""


@contextmanager
def replace_function(owner: Any, name: str, run: Callable[..., Any]) -> Iterator[None]:
    """Replace a function that torch has no hook for by `run(original, *args, **kwargs)`, in a context.

    Contexts of one function may end in any order, and in any thread: with the last the function itself is back.
    """
    observer, key = partial(run), (id(owner), name)  # a partial function equals itself alone
    with _OBSERVED_LOCK:
        if key not in _OBSERVED:
            _OBSERVED[key] = _ObservedFunction(owner, name)
        observed = _OBSERVED[key]
        observed.observers += (observer,)
    try:
        yield
    finally:
        with _OBSERVED_LOCK:
            observed.observers = tuple(other for other in observed.observers if other is not observer)
            if not observed.observers:
                _OBSERVED.pop(key).restore()


@contextmanager
def observe_backward(before: Callable[[list[Tensor]], None], after: Callable[[], None]) -> Iterator[None]:
    """Call `before` with the roots of every backward pass, and `after` when it ends, in the thread that begins it.

    A pass inside of another, of a checkpoint, is a part of it. Other threads may train at the same time.
    """
    depth = _Depth()

    def run(original: Any, tensors: Any, *args: Any, **kwargs: Any) -> None:
        depth.number += 1
        try:
            if depth.number == 1:
                roots = [tensors] if isinstance(tensors, Tensor) else tensors
                before([root for root in roots if isinstance(root, Tensor)])
            original(tensors, *args, **kwargs)
            if depth.number == 1:
                after()
        finally:
            depth.number -= 1

    with replace_function(torch.autograd, "backward", run):
        yield


@contextmanager
def observe_unscaling(before: Callable[[torch.optim.Optimizer], None]) -> Iterator[None]:
    """Call `before` with the optimiser whose gradients a `GradScaler` is about to divide by its scale."""

    def run(original: Any, scaler: Any, optimizer: torch.optim.Optimizer) -> None:
        before(optimizer)
        original(scaler, optimizer)

    with replace_function(torch.amp.GradScaler, "unscale_", run):
        yield


@contextmanager
def observe_saves(receive: Callable[[Any], None]) -> Iterator[None]:
    """Call `receive` with the file of every `torch.save` of the process."""

    def run(original: Any, obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        receive(f)
        original(obj, f, *args, **kwargs)

    with replace_function(torch, "save", run):
        yield


@contextmanager
def observe_loads(before: Callable[[nn.Module, Mapping[str, Any]], None]) -> Iterator[None]:
    """Call `before` with every module of the process that loads a state dict, and with that."""

    def run(original: Any, module: nn.Module, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        before(module, state_dict)
        return original(module, state_dict, *args, **kwargs)

    with replace_function(nn.Module, "load_state_dict", run):
        yield


@contextmanager
def leave_out_checkpoints() -> Iterator[None]:
    """Compute what reentrant checkpoints of activations hold at once, as part of the graph around them.

    Without, no rule sees into them, and torch gives no gradients by `torch.autograd.grad`.
    """

    def run(original: Any, function: Any, preserves_state: bool, *args: Any) -> Any:
        return function(*args)

    with replace_function(torch.utils.checkpoint.CheckpointFunction, "apply", run):
        yield


@contextmanager
def preserve_buffers(module: nn.Module) -> Iterator[None]:
    """Context that restores a module's buffers, also those that it replaces by other tensors; new ones stay."""
    saved = [
        (owner, name, buffer, buffer.detach().clone())
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for owner, name, buffer, values in saved:
                buffer.copy_(values)
                owner._buffers[name] = buffer


_CONTAINERS = (dict, OrderedDict, set)


def copy_module(model: nn.Module) -> nn.Module:
    """Deep-copy a model, and as numbers the results of earlier passes that it keeps: torch refuses to copy these.

    The copy shares what nobody can copy, such as a lock or an open file.
    """
    members = [member for module in model.modules() for member in vars(module).values()]
    inside = [item for member in members if isinstance(member, list | tuple) for item in member]
    inside += [item for member in members if isinstance(member, dict) for item in member.values()]
    results = [t for t in (*members, *inside) if isinstance(t, Tensor) and t.grad_fn is not None]
    memo = {id(t): t.detach().clone() for t in results}
    try:
        return copy.deepcopy(model, {**_copy_empty_members(model), **memo})
    except TypeError:
        modules = {id(module): module for module in model.modules()}
        memo |= _share_uncopyable([*inside, *members], {**memo, **modules})
        return copy.deepcopy(model, {**_copy_empty_members(model), **memo})


def copy_metric(metric: Any) -> Any:
    """Deep-copy a metric; the copy shares what nobody can copy, such as a lock."""
    try:
        return copy.deepcopy(metric)
    except TypeError:
        return copy.deepcopy(metric, _share_uncopyable([*vars(metric).values()], {id(metric): metric}))


def _share_uncopyable(members: Sequence[Any], memo: Mapping[int, Any]) -> dict[int, Any]:
    """Return the members that cannot be copied, for the memory of a deep copy."""
    shared: dict[int, Any] = {}
    for member in members:
        try:
            copy.deepcopy(member, {**memo, **shared})
        except TypeError:
            shared[id(member)] = member
    return shared


def _copy_empty_members(model: nn.Module) -> dict[int, Any]:
    """Copy the empty containers of all modules, for the memory of a deep copy: half of its time is theirs."""
    members = [member for module in model.modules() for member in vars(module).values()]
    return {id(member): type(member)() for member in members if type(member) in _CONTAINERS and not member}


def _make_tap(gradients: dict[str, Tensor]) -> Callable[[str, Tensor], Tensor]:
    """Return a function that replaces a tensor by a view and stores the view's gradient in `gradients`, by path."""

    def tap(path: str, tensor: Tensor) -> Tensor:
        if not tensor.requires_grad or not torch.is_grad_enabled():
            return tensor
        view = tensor.view_as(tensor)
        watch_gradient(view, lambda gradient: gradients.__setitem__(path, gradient.detach()))
        return view

    return tap


class InterceptedOperators(TorchDispatchMode):
    """Mode in which `run(operator, args, kwargs)` takes the place of every ATen operator, forward and backward."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._run(func, args, kwargs or {})


class InterceptedFunctions(TorchFunctionMode):
    """Mode in which `run(function, args, kwargs)` takes the place of every function of torch called from Python."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._run(func, args, kwargs or {})
