"""Observation of a loop's first steps: how it calls its model and its loss, which an examination then repeats."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract.pytree import dense_leaves, is_dense, is_float, tree_leaves, tree_map
from sightline.doctor.attempts import MissingError, NotApplicableError, observe
from sightline.doctor.check import assert_copied, examine_subject
from sightline.doctor.examine import Examination
from sightline.doctor.finding import Finding
from sightline.doctor.form import Batch, Form, get_forward, get_signature, standing_in
from sightline.doctor.objects import find_generators, preserve_generators
from sightline.doctor.processes import is_one_of_several
from sightline.doctor.subject import Subject
from sightline.doctor.watch.loop import ForwardCall, Hook, Loop, Monitor, OptimizerTrack
from sightline.instrument import hang, look_away, replace_function
from sightline.instrument.functions import FunctionTape, FunctionTemplate, TapeError, iter_items
from sightline.instrument.random_state import preserve_random_state

_TOLERANCE, _TOLERANCE_OF_AUTOCAST = 1e-5, 0.02
"""Shares by which a repeated loss may differ from that of the loop."""
_WHAT = "the first step"
_NUM_NAMES = 4
"""Functions that the words of a form name, the last ones."""
_MAX_NUMBERS = 100_000_000
"""Parameters of a model of which copies are made while its loop runs, unasked."""


@dataclass
class ObservedCall:
    """Call of the model in a step: copies of its arguments, and its outputs."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: Any = None


@dataclass
class ObservedStep:
    """Step of the loop, from its first call of the model to its backward pass."""

    model: nn.Module
    tape: FunctionTape = field(default_factory=FunctionTape)
    calls: list[ObservedCall] = field(default_factory=list)
    root: Tensor | None = None
    autocast: torch.autocast | None = None
    failure: str = ""
    is_started: bool = False
    is_running: bool = False


class ObservedForm(Form):
    """Form of a program as one of its steps showed it: the calls of the model, and the functions that lead to its loss.

    `inputs` of a batch are the arguments of the model: one alone by itself, several by position or by name; of several
    calls, a tuple of these. The target is what the loss reads beside the outputs: one tensor by itself, or a tuple.
    Raises TapeError for a step that cannot be repeated.
    """

    loss = None
    is_divided = True
    takes_samples = False

    def __init__(self, step: ObservedStep, template: FunctionTemplate) -> None:
        self._template = template
        self._forms = [_get_form(call) for call in step.calls]
        self._tolerance = _TOLERANCE if step.autocast is None else _TOLERANCE_OF_AUTOCAST
        self._num_samples = _count_rows(*((call.args, call.kwargs) for call in step.calls))
        self._is_sized = template.is_sized(self._num_samples)
        self._sources = {slot: _find_source(tensor, step) for slot, tensor in template.leaves.items()}
        if not any(source.kind == "output" for source in self._sources.values()):
            raise TapeError("the loss does not read what the model returned")
        open_leaves = {s: t for s, t in template.leaves.items() if self._sources[s].kind == "other"}
        rows = [slot for slot, t in open_leaves.items() if t.ndim and len(t) == self._num_samples]
        self._targets = rows or [slot for slot, t in open_leaves.items() if t.ndim]
        self._constants = {s: t.detach().clone() for s, t in open_leaves.items() if s not in self._targets}
        self.loss = [*(call.function for call in template.calls if call.is_whole), *self._constants.values()]
        self._shapes = _list_shapes(self.join_outputs(step))
        names = [call.name for call in template.calls][-_NUM_NAMES:] or ["its own loss"]
        self.words = f"model({', '.join(_name_arguments(step))}), then {', '.join(names)}"
        self._model = step.model

    def join_outputs(self, step: ObservedStep) -> Any:
        """Return the outputs of a step: those of its only call, or a tuple."""
        return step.calls[0].outputs if len(step.calls) == 1 else tuple(call.outputs for call in step.calls)

    def read(self, step: ObservedStep, template: FunctionTemplate) -> Batch:
        """Read inputs and target of a step of this form."""
        joined = [_join(call) for call in step.calls]
        target = [template.leaves[slot].detach().clone() for slot in self._targets]
        return Batch(joined[0] if len(joined) == 1 else tuple(joined), target[0] if len(target) == 1 else tuple(target))

    def split(self, batch: Any) -> Batch:
        """Refuse to divide what a loader yields: it is not known how its parts become inputs and target."""
        raise NotApplicableError("how the loader's batches become inputs is not known")

    def call(self, model: nn.Module, inputs: Any) -> Any:
        """Call a copy of the model as the loop does."""
        if len(self._forms) == 1:
            return _call(model, self._forms[0], inputs)
        return tuple(_call(model, form, each) for form, each in zip(self._forms, inputs, strict=True))

    def evaluate(self, model: nn.Module, outputs: Any, target: Any) -> Tensor:
        """Compute the loss of other outputs and another target; of numbers that it reads of the model, those of a copy.

        Raises NotApplicableError for sizes or formats that the step of the loop did not have, where they fail.
        """
        leaves, shapes = dict(tree_leaves(outputs)), _list_shapes(outputs)
        is_known = shapes == self._shapes
        if self._is_sized and not is_known:
            raise NotApplicableError("the loss counts the samples of its batch")
        values: dict[int, Any] = dict(self._constants)
        values |= {slot: source.read(model, leaves) for slot, source in self._sources.items() if source.kind != "other"}
        values |= dict(zip(self._targets, [target] if len(self._targets) == 1 else target, strict=True))
        is_double = any(t.dtype == torch.float64 for t in leaves.values())
        if is_double:
            values = {s: v.double() if is_float(v) and s not in self._targets else v for s, v in values.items()}
        try:
            with standing_in(self._model, model):
                return self._template.replay(values, partial(_prepare_part, is_double=is_double)).reshape(())
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            if is_known and not is_double:
                raise
            raise NotApplicableError("the loss, as it was seen, does not take other sizes or formats") from error

    def find_difference(self, step: ObservedStep, template: FunctionTemplate) -> str:
        """Say in what a step of the loop differs from the form; "" where the form has the same loss."""
        if [_get_form(call) for call in step.calls] != self._forms:
            return "the model is called in another way in the next step"
        if difference := self._template.find_difference(template):
            return difference
        assert step.root is not None
        with torch.no_grad(), step.autocast or nullcontext():
            again = float(self.evaluate(step.model, self.join_outputs(step), self.read(step, template).target))
        value = float(step.root.detach())
        is_same = abs(again - value) <= self._tolerance * max(abs(value), 1e-3) or (again != again and value != value)
        return "" if is_same else f"its loss, repeated, is {again:.5g}, and {value:.5g} in the loop"


@dataclass(frozen=True)
class _Source:
    """Where a leaf of a loss is from: an `output` by its path, an `attribute` of a module by its name, or `other`."""

    kind: str
    path: str = ""
    name: str = ""

    def read(self, model: nn.Module, outputs: Mapping[str, Tensor]) -> Tensor:
        if self.kind == "output":
            return outputs[self.path]
        value: Tensor = getattr(model.get_submodule(self.path), self.name)
        return value


def _find_source(tensor: Tensor, step: ObservedStep) -> _Source:
    """Find where a leaf of a loss is from. Raises TapeError for one with a history that was not seen."""
    joined = step.calls[0].outputs if len(step.calls) == 1 else tuple(call.outputs for call in step.calls)
    for path, output in tree_leaves(joined):
        if output is tensor:
            return _Source("output", path)
    for path, module in step.model.named_modules():
        for name, member in (*module._parameters.items(), *vars(module).items()):
            if member is tensor:
                return _Source("attribute", path, name)
    if tensor.grad_fn is not None:
        raise TapeError("the loss reads what was computed elsewhere, and has a gradient")
    return _Source("other")


def _list_shapes(outputs: Any) -> dict[str, torch.Size]:
    return {path: tensor.shape for path, tensor in dense_leaves(outputs)}


def _prepare_part(part: Any, *, is_double: bool) -> Any:
    """Return a copy of a loss with a state of its own, which a call may change."""
    if not isinstance(part, nn.Module):
        return part
    return copy.deepcopy(part).double() if is_double else copy.deepcopy(part)


@dataclass(frozen=True)
class _CallForm:
    """Arguments of a call: how many by position, and the names of others; one alone is `is_single`."""

    num_args: int
    names: tuple[str, ...]

    @property
    def is_single(self) -> bool:
        return self.num_args + len(self.names) == 1


def _get_form(call: ObservedCall) -> _CallForm:
    return _CallForm(len(call.args), tuple(call.kwargs))


def _name_arguments(step: ObservedStep) -> list[str]:
    call = step.calls[0]
    known = list(get_signature(get_forward(step.model)).parameters)
    return [*(known[: len(call.args)] or ["..."]), *call.kwargs]


def _join(call: ObservedCall) -> Any:
    form, values = _get_form(call), (*call.args, *call.kwargs.values())
    if form.is_single:
        return values[0]
    return dict(call.kwargs) if not form.num_args else values


def _call(model: nn.Module, form: _CallForm, inputs: Any) -> Any:
    if form.is_single:
        return model(**{form.names[0]: inputs}) if form.names else model(inputs)
    if not form.num_args:
        return model(**inputs)
    return model(*inputs[: form.num_args], **dict(zip(form.names, inputs[form.num_args :], strict=True)))


def _count_rows(*trees: Any) -> int:
    """Count the samples of a call: the length of its first tensor with axes; 0 without one."""
    return next((len(t) for tree in trees for _, t in dense_leaves(tree) if t.ndim), 0)


class StepRecorder:
    """Recorder of one step at a time; `loss` is the user's, if it was named: it is then taken whole."""

    def __init__(self, loop: Loop, loss: Callable[..., Any] | None) -> None:
        self._loop, self._loss = loop, loss
        self._function, self._code, self._skips = _resolve(loss)
        self._hooks, self._stack = ExitStack(), ExitStack()
        self._frame: FrameType | None = None
        self._scaled: Tensor | None = None
        self._last_tape: FunctionTape | None = None
        self.step: ObservedStep | None = None

    @contextmanager
    def follow(self) -> Iterator[None]:
        """Context in which steps are recorded; `close` ends it earlier."""
        loop, hooks = self._loop, self._hooks
        handles = []
        for model in loop.models.values():
            handles += hang(model, *(Hook(loop, run, what=_WHAT) for run in (self._begin_call, self._end_call)))
        if isinstance(self._loss, nn.Module):
            handles += hang(self._loss, *(Hook(loop, run, what=_WHAT) for run in (self._begin_loss, self._end_loss)))
        for handle in handles:
            hooks.callback(handle.remove)
        hooks.enter_context(replace_function(torch.amp.GradScaler, "scale", self._note_scale))
        try:
            yield
        finally:
            self.close()
            self.sweep()  # the event that does it may have failed

    def close(self) -> None:
        """Record no more."""
        self.drop()
        self._hooks.close()

    def drop(self) -> None:
        """Leave the step that is recorded."""
        if self.step is not None:
            self._last_tape = self.step.tape
            self._last_tape.stop()
        self._stack.close()
        self.step, self._frame, self._scaled = None, None, None

    def sweep(self) -> None:
        """Take the last tape away: it was ended inside of a call that it has seen."""
        if self._last_tape is not None:
            self._last_tape.stop()
            self._last_tape = None

    def take(self, root: Tensor) -> ObservedStep | None:
        """End the step before its backward pass, and return it; None without a call of the model."""
        step = self.step
        if step is None:
            return None
        step.root = root if self._scaled is None else self._scaled
        self.drop()
        return step

    def _begin_call(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not (self._loop.runs_here and torch.is_grad_enabled() and model.training):
            return
        if self.step is not None and self.step.is_running and self.step.model is not model:
            return  # a model of which another one is a part
        self.sweep()
        if self.step is None or self.step.is_running:  # the last call has not returned
            self.drop()
            self.step = ObservedStep(model)
        step = self.step
        made = {id(item) for call in step.tape.calls for item in iter_items(call.result) if isinstance(item, Tensor)}
        made |= {id(t) for call in step.calls for _, t in tree_leaves(call.outputs)}
        if any(id(t) in made for _, t in tree_leaves((args, kwargs))):
            step.failure = step.failure or "the model is called with what it has computed in this step"
        if model is not step.model:
            step.failure = step.failure or "several models take part in a step"
        if step.tape.is_paused:
            step.failure = step.failure or "the loss calls the model"
        step.tape.is_paused = step.is_running = True
        args, kwargs = tree_map((args, kwargs), _copy_input)
        step.calls.append(ObservedCall(args, kwargs))

    def _end_call(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        step = self.step
        if step is None or not step.is_running or model is not step.model or not self._loop.runs_here:
            return
        step.calls[-1].outputs = outputs
        step.is_running = step.tape.is_paused = False
        if not step.is_started:
            step.is_started = True
            step.autocast = _get_autocast(model)
            step.tape.start()
            if self._code is not None and sys.getprofile() is None:
                sys.setprofile(self._profile)
                self._stack.callback(self._end_profile)

    def _begin_loss(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.step is not None and self._loop.runs_here:
            self.step.tape.is_paused = True

    def _end_loss(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> None:
        if self.step is not None and self._loop.runs_here:
            self.step.tape.is_paused = False
            self.step.tape.add(module, args, kwargs, value)

    def _note_scale(self, original: Any, scaler: Any, outputs: Any) -> Any:
        if self.step is not None and self._loop.runs_here and isinstance(outputs, Tensor):
            self._scaled = outputs
        return original(scaler, outputs)

    def _profile(self, frame: FrameType, event: str, value: Any) -> None:
        if self.step is None:
            return
        if event == "call" and frame.f_code is self._code and self._frame is None:
            self._frame, self.step.tape.is_paused = frame, True
            self._arguments = _read_arguments(frame, skips=self._skips)
        elif event == "return" and frame is self._frame:
            self._frame, self.step.tape.is_paused = None, False
            self.step.tape.add(self._function, *self._arguments, value)

    def _end_profile(self) -> None:
        if sys.getprofile() == self._profile:
            sys.setprofile(None)


def _get_autocast(model: nn.Module) -> torch.autocast | None:
    kind = next((parameter.device.type for parameter in model.parameters()), "cpu")
    is_on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, torch.get_autocast_dtype(kind)) if is_on else None


def _copy_input(_: str, tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad) if is_dense(tensor) else tensor


def _resolve(loss: Any) -> tuple[Any, CodeType | None, bool]:
    """Return what to call for a named loss that is no module, its code, and if its first argument is bound."""
    if loss is None or isinstance(loss, nn.Module):
        return loss, None, False
    while isinstance(loss, partial):
        loss = loss.func
    is_function = inspect.isfunction(loss) or inspect.ismethod(loss)
    method = loss if is_function else vars(type(loss)).get("__call__")
    code = getattr(inspect.unwrap(getattr(method, "__func__", method)), "__code__", None)
    return loss, code, not inspect.isfunction(loss)


def _read_arguments(frame: FrameType, *, skips: bool) -> tuple[list[Any], dict[str, Any]]:
    """Read the arguments of a call that begins: by position, and by name."""
    code, values = frame.f_code, dict(frame.f_locals)
    names = code.co_varnames[: code.co_argcount]
    keywords = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    rest = code.co_varnames[code.co_argcount + code.co_kwonlyargcount :]
    args, kwargs = [values[name] for name in names[skips:]], {name: values[name] for name in keywords}
    if code.co_flags & inspect.CO_VARARGS:
        args, rest = [*args, *values[rest[0]]], rest[1:]
    if code.co_flags & inspect.CO_VARKEYWORDS:
        kwargs |= values[rest[0]]
    return args, kwargs


@dataclass
class Examined:
    """Form of the first step, with the inputs and the target of its batch, and what an examination of these found."""

    form: ObservedForm
    model: nn.Module
    batch: Batch
    examination: Examination = field(default_factory=Examination)


class Observation(Monitor):
    """Examination of a loop's first step in the form that it showed; published once a second step has the same form.

    `examine` judges what the first step has shown, before its update; a code that is among the `known` ones of the loop
    is not said again. `published` is what it found once that is said.
    """

    def __init__(
        self,
        loop: Loop,
        loss: Any,
        examine: Callable[[Examined], Examination],
        known: Sequence[Finding],
    ) -> None:
        self._loop, self._examine, self._known = loop, examine, known
        self._recorder = StepRecorder(loop, loss)
        self._waiting: Examined | None = None
        self._learning: set[str] = set()
        self.examined: Examined | None = None
        self.published = Examination()
        self.is_begun = self.is_over = False

    @contextmanager
    def follow(self) -> Iterator[None]:
        """Context in which steps are observed."""
        self.is_begun = True
        if obstacle := find_obstacle(self._loop.models):
            self._end(obstacle)
            yield
        else:
            with self._recorder.follow():
                yield

    def before_backward(self, loop: Loop, root: Tensor) -> Iterable[Finding]:
        """Read the form of the first step, or compare the second with it."""
        if self.is_over or (step := self._recorder.take(root)) is None:
            return ()
        seen = observe(_WHAT, self._read, step)
        if isinstance(seen, MissingError):
            self._end(seen.reason)
        elif self.examined is None:
            self._waiting = seen
        else:
            return self._finish()
        return ()

    def _read(self, step: ObservedStep) -> Examined | None:
        if step.failure or step.root is None or step.root.numel() != 1:
            raise NotApplicableError(step.failure or "the backward pass does not begin at one number")
        try:
            outputs = [tensor for call in step.calls for _, tensor in tree_leaves(call.outputs)]
            template = FunctionTemplate(step.tape, step.root, outputs)
            form = ObservedForm(step, template) if self.examined is None else self.examined.form
        except TapeError as error:
            raise NotApplicableError(str(error)) from error
        if difference := form.find_difference(step, template):
            raise NotApplicableError(difference)
        return Examined(form, step.model, form.read(step, template)) if self.examined is None else None

    def after_backward(self, loop: Loop) -> None:
        """Examine the first step, whose graph is gone, and whose update has not been made."""
        if self._waiting is None:
            return
        self.examined, self._waiting = self._waiting, None
        loop.is_suspended = True
        try:
            found = observe(_WHAT, self._examine, self.examined)
        finally:
            loop.is_suspended = False
        if isinstance(found, MissingError):
            self._end(found.reason)
        else:
            self.examined.examination = found

    def on_forward(self, loop: Loop, call: ForwardCall) -> None:
        """Take the last tape away."""
        self._recorder.sweep()

    def before_update(self, loop: Loop, track: OptimizerTrack) -> None:
        """Take the last tape away, and see which parameters an update is for: by one loss or another."""
        self._recorder.sweep()
        if self.examined is not None and any(map(_is_unreached, self.examined.examination.findings)):
            parameters = self.examined.model.named_parameters()
            self._learning |= {name for name, p in parameters if p.grad is not None and bool(p.grad.any())}

    def on_end(self, loop: Loop) -> Iterable[Finding]:
        """Publish what one step has shown, if there was no other."""
        self._recorder.sweep()
        return () if self.is_over or self.examined is None else self._finish()

    def _finish(self) -> Sequence[Finding]:
        assert self.examined is not None
        self._end("")
        known, self.published = {finding.code for finding in self._known}, self.examined.examination
        findings = self.published.findings
        findings[:] = [f for f in findings if not (_is_unreached(f) and f.where.param in self._learning)]
        return [finding for finding in findings if finding.code not in known]

    def _end(self, reason: str) -> None:
        self.is_over, self._waiting = True, None
        self._recorder.close()
        if reason:
            self._loop.failures[f"{_WHAT}: {reason.removeprefix(f'{_WHAT}: ')}"] = None


def _is_unreached(finding: Finding) -> bool:
    """Return True for parameters that the first loss does not train; another loss of the same step may."""
    return finding.code == "no-gradient"


OBSERVED = ("on_forward", "before_backward", "after_backward", "before_update", "on_end")
"""Events that an observation sees, before all monitors do: what they compute is no part of the loss."""


_OF_LOOPS = frozenset(
    ("unused-parameters", "not-optimised", "no-update", "large-update", "shared-weights", "label-input")
)
"""Codes of what a loop shows as it goes on, of its parts, optimisers and rates, or what it may intend: some take their
targets from the inputs."""


def examine_step(examined: Examined, *, loop: Loop, declared: Collection[str], budget_s: float) -> Examination:
    """Judge a step by all rules that apply to one batch; nothing of the loop is changed."""
    optimizers = [track.optimizer for track in loop.tracks.values()]
    form, model = examined.form, examined.model
    assert_copied(model)
    subject = Subject(model, form, [examined.batch], [], optimizers)
    kind = next((parameter.device.type for parameter in model.parameters()), "cpu")
    with (
        look_away(),
        preserve_random_state(),
        preserve_generators(find_generators(model, form)),
        torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext(),
    ):
        examination = examine_subject(subject, declared={*declared, *_OF_LOOPS}, budget_s=budget_s, is_patient=False)
    failures = [finding.measured for finding in examination.findings if finding.code == "first-step"]
    if failures:  # the loop's own step has not failed
        raise NotApplicableError(f"a copy does not repeat it: {failures[0]}")
    return examination


def find_obstacle(models: Mapping[str, nn.Module]) -> str:
    """Say why copies of models are not run while a loop trains; "" where they are."""
    if len(models) != 1:
        return "several models are watched"
    (model,) = models.values()
    if is_one_of_several():
        return "the loop has several processes"
    if "_orig_mod" in model._modules or model._compiled_call_impl is not None:
        return "the model is compiled"
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        return "a part is traced or scripted, which is compiled anew after some passes"
    number = sum(parameter.numel() for parameter in model.parameters())
    if number > _MAX_NUMBERS:
        return f"a copy of {number / 1e6:.0f} million numbers would be needed: sightline.check makes it"
    for path, module in model.named_modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if any(not getattr(hook, "__module__", "").startswith(("torch.", "sightline.")) for hook in hooks):
            return f"hooks of the loop hang on '{path or type(model).__name__}'"
    return ""
