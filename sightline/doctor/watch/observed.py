"""Observation of a loop's first steps: how it calls its model and its loss, which an examination then repeats."""

from __future__ import annotations

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

from sightline.contract.pytree import is_dense, tree_map
from sightline.doctor.attempts import LeftOutError, MissingError, NotApplicableError, observe
from sightline.doctor.budget import Budget
from sightline.doctor.check import assert_copied, examine_subject, holds, name_finding
from sightline.doctor.examine import Examination
from sightline.doctor.finding import Finding
from sightline.doctor.forms.form import Batch
from sightline.doctor.forms.inside_form import InsideForm, look_inside
from sightline.doctor.objects import find_generators, preserve_generators
from sightline.doctor.processes import is_one_of_several
from sightline.doctor.subject import Subject
from sightline.doctor.watch.loop import ForwardCall, Hook, Loop, Monitor, OptimizerTrack
from sightline.doctor.watch.observed_forms import ObservedCall, ObservedForm, ObservedStep, OpaqueForm, make_template
from sightline.instrument import hang, look_away, replace_function
from sightline.instrument.functions import FunctionTape, TapeError
from sightline.instrument.random_state import preserve_random_state

_WHAT = "the first step"
_MAX_STEPS = 8
"""Steps for each model in which it has to be seen twice."""
_MAX_NUMBERS = 100_000_000
"""Parameters of a model of which copies are made while its loop runs, unasked."""


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
    def record_steps(self) -> Iterator[None]:
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
            self.stop_last_tape()  # the event that does it may have failed

    def close(self) -> None:
        """Record no more."""
        self.discard_step()
        self._hooks.close()

    def discard_step(self) -> None:
        """Leave the step that is recorded."""
        if self.step is not None:
            self._last_tape = self.step.tape
            self._last_tape.stop()
        self._stack.close()
        self.step, self._frame, self._scaled = None, None, None

    def stop_last_tape(self) -> None:
        """Take the last tape away: it was ended inside of a call that it has seen."""
        if self._last_tape is not None:
            self._last_tape.stop()
            self._last_tape = None

    def finish_step(self, root: Tensor) -> ObservedStep | None:
        """End the step before its backward pass, and return it; None without a call of the model."""
        step = self.step
        if step is None:
            return None
        step.close(root if self._scaled is None else self._scaled)
        self.discard_step()
        return step

    def _begin_call(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        is_begun = self.step is not None and self.step.is_started
        if not (self._loop.runs_here and model.training and (torch.is_grad_enabled() or is_begun)):
            return
        if self.step is not None and self.step.running not in (None, model):
            return  # a model of which another one is a part
        self.stop_last_tape()
        if self.step is None or self.step.running is model:  # the last call has not returned
            self.discard_step()
            self.step = ObservedStep(model)
        step = self.step
        if step.tape.is_paused:
            step.failure = step.failure or "the loss calls the model"
        step.tape.is_paused, step.running = True, model
        own_args, own_kwargs = tree_map((args, kwargs), _copy_input)
        step.calls.append(ObservedCall(model, own_args, own_kwargs, (args, kwargs), torch.is_grad_enabled()))

    def _end_call(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        step = self.step
        if step is None or model is not step.running or not self._loop.runs_here:
            return
        step.calls[-1].outputs, step.calls[-1].place = outputs, len(step.tape.calls)
        step.tape.is_paused, step.running = False, None
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

    form: ObservedForm | OpaqueForm
    model: nn.Module
    batch: Batch
    examination: Examination = field(default_factory=Examination)


class Observation(Monitor):
    """Examination of a loop's first step in the form that it showed; published once a second step has the same form.

    Of several models, it is the first step of each. `examine` judges what it has shown, before its update; a code that
    is among the `known` ones of the loop is not said again. `examined` is the last one, `published` what was found once
    that is said.
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
        self._num_steps = 0
        self._open: dict[int, Examined] = {}
        self._left: set[int] = set()
        """By a model's identity: what its first step has shown, and those that are not observed any more."""
        self._learning: set[int] = set()
        """Parameters that an update was for, by identity, while a finding waits that says otherwise."""
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
            with self._recorder.record_steps():
                yield

    def before_backward(self, loop: Loop, root: Tensor) -> Iterable[Finding]:
        """Read the form of the first step, or compare the second with it."""
        if self.is_over or (step := self._recorder.finish_step(root)) is None:
            return ()
        self._num_steps += 1
        if self._num_steps > _MAX_STEPS * len(loop.models):
            for model in [model for model in loop.models.values() if id(model) not in self._left]:
                self._leave(model, "no step of its own was seen twice")
        elif id(step.model) not in self._left and not (step.is_of_another and len(loop.models) > 1):
            return self._take(step)
        return ()

    def _take(self, step: ObservedStep) -> Iterable[Finding]:
        known = self._open.get(id(step.model))
        seen = observe(_WHAT, self._read, step, known)
        if isinstance(seen, MissingError):
            self._leave(step.model, seen.reason)
        elif known is not None:
            return self._finish(known)
        else:
            self._waiting = seen
        return ()

    def _read(self, step: ObservedStep, known: Examined | None) -> Examined | None:
        if step.failure or step.root is None or step.root.numel() != 1:
            raise NotApplicableError(step.failure or "the backward pass does not begin at one number")
        try:
            template = make_template(step)
            kind = OpaqueForm if step.is_whole else ObservedForm
            form = kind(step, template) if known is None else known.form
        except TapeError as error:
            raise NotApplicableError(str(error)) from error
        if difference := form.find_difference(step, template):
            raise NotApplicableError(difference)
        return Examined(form, step.model, form.read(step, template)) if known is None else None

    def after_backward(self, loop: Loop) -> None:
        """Examine the first step, whose graph is gone, and whose update has not been made."""
        if self._waiting is None:
            return
        examined, self._waiting = self._waiting, None
        loop.is_suspended = True
        try:
            found = observe(_WHAT, self._examine, examined)
        finally:
            loop.is_suspended = False
        if isinstance(found, MissingError):
            self._leave(examined.model, found.reason)
        else:
            examined.examination = found
            self.examined = self._open[id(examined.model)] = examined

    def on_forward(self, loop: Loop, call: ForwardCall) -> None:
        """Take the last tape away."""
        self._recorder.stop_last_tape()

    def before_update(self, loop: Loop, track: OptimizerTrack) -> None:
        """Take the last tape away, and see which parameters an update is for: by one loss or another."""
        self._recorder.stop_last_tape()
        for examined in self._open.values():
            if any(map(_is_unreached, examined.examination.findings)):
                parameters = examined.model.parameters()
                self._learning |= {id(p) for p in parameters if p.grad is not None and bool(p.grad.any())}

    def on_end(self, loop: Loop) -> Iterable[Finding]:
        """Publish what one step has shown, if there was no other."""
        self._recorder.stop_last_tape()
        return [] if self.is_over else [found for known in [*self._open.values()] for found in self._finish(known)]

    def _finish(self, examined: Examined) -> Sequence[Finding]:
        """Publish what the first step of a model has shown."""
        name, parameters = self._get_name(examined.model), dict(examined.model.named_parameters())
        learning = {key for key, parameter in parameters.items() if id(parameter) in self._learning}
        findings = [f for f in examined.examination.findings if not (_is_unreached(f) and f.where.param in learning)]
        findings = [name_finding(each, name) if name else each for each in findings]
        self.published.judgements += examined.examination.judgements
        self.published.findings += findings
        self._leave(examined.model, "")
        known = {finding.code for finding in self._known}
        return [finding for finding in findings if finding.code not in known]

    def _leave(self, model: nn.Module, reason: str) -> None:
        """Observe a model no more, and nothing where it was the last."""
        self._left.add(id(model))
        self._open.pop(id(model), None)
        if reason:
            name = self._get_name(model)
            what = f"{_WHAT} of '{name}'" if name else _WHAT
            self._loop.failures[f"{what}: {reason.removeprefix(f'{_WHAT}: ')}"] = None
        if len(self._left) >= len(self._loop.models):
            self._end("")

    def _get_name(self, model: nn.Module) -> str:
        """Return the name of one of several models; "" where there is one."""
        return next((name for name, known in self._loop.models.items() if known is model), "").rstrip(".")

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
    optimizers = [track.optimizer for track in loop.tracks.values() if holds(track.optimizer, examined.model)]
    budget = Budget(budget_s / len(loop.models), is_patient=False)
    model = examined.model
    assert_copied(model)
    kind = next((parameter.device.type for parameter in model.parameters()), "cpu")
    with (
        look_away(),
        preserve_random_state(),
        preserve_generators(find_generators(model, examined.form)),
        torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext(),
    ):
        form = look_inside(examined.form, model, examined.batch)
        batch = form.convert(examined.batch) if isinstance(form, InsideForm) else examined.batch
        subject = Subject(model, form, [batch], [], optimizers)
        examination = examine_subject(subject, declared={*declared, *_OF_LOOPS}, budget=budget)
    failures = [finding.measured for finding in examination.findings if finding.code == "first-step"]
    if failures:  # the loop's own step has not failed
        raise LeftOutError(f"a copy does not repeat it: {failures[0]}")
    return examination


def find_obstacle(models: Mapping[str, nn.Module]) -> str:
    """Say why copies of models are not run while a loop trains; "" where they are."""
    if is_one_of_several():
        return "the loop has several processes"
    number = sum(parameter.numel() for model in models.values() for parameter in model.parameters())
    if number > _MAX_NUMBERS:
        return f"a copy of {number / 1e6:.0f} million numbers would be needed: sightline.check makes it"
    return next(filter(None, map(_find_obstacle, models.values())), "")


def _find_obstacle(model: nn.Module) -> str:
    if "_orig_mod" in model._modules or model._compiled_call_impl is not None:
        return "the model is compiled"
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        return "a part is traced or scripted, which is compiled anew after some passes"
    for path, module in model.named_modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if any(not getattr(hook, "__module__", "").startswith(("torch.", "sightline.")) for hook in hooks):
            return f"hooks of the loop hang on '{path or type(model).__name__}'"
    return ""
