"""Watch: a context in which any PyTorch loop is judged at each step, by hooks that change nothing."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from sightline.contract.errors import UserError
from sightline.contract.pytree import dense_leaves, is_dense
from sightline.doctor.attempts import OWN_WORK, MissingError, observe
from sightline.doctor.budget import BUDGET_S
from sightline.doctor.causes import merge_findings
from sightline.doctor.check import (
    assert_batches,
    assert_step,
    examine_models,
    list_findings,
    list_gaps,
    list_values,
    measure_levels,
    name_prefixes,
)
from sightline.doctor.evidence.levels import Levels
from sightline.doctor.examine import Examination, assert_codes
from sightline.doctor.finding import Finding
from sightline.doctor.forms.form import UnknownForm
from sightline.doctor.loaders import find_obstacle
from sightline.doctor.processes import is_one_of_several, refuse_collectives
from sightline.doctor.program_code import find_program_line
from sightline.doctor.record import Chance
from sightline.doctor.report import Report
from sightline.doctor.rules import find_by
from sightline.doctor.rules.non_finite import non_finite
from sightline.doctor.subject import Subject
from sightline.doctor.trace import RowDigests
from sightline.doctor.verdict import write_verdict
from sightline.doctor.watch.bisection import Search, prepare_search
from sightline.doctor.watch.gradients import LeakMonitor, OrderMonitor, ReachMonitor
from sightline.doctor.watch.kept_weights import CopyMonitor, PruneMonitor
from sightline.doctor.watch.loop import (
    EVENTS,
    ForwardCall,
    Found,
    Hook,
    LastPollMonitor,
    Loop,
    Monitor,
    OptimizerTrack,
    PollMonitor,
)
from sightline.doctor.watch.loss_graph import LossMonitor
from sightline.doctor.watch.lost_gradients import LostMonitor, trace_calls
from sightline.doctor.watch.modes import ModeMonitor
from sightline.doctor.watch.numbers import (
    FiniteMonitor,
    ScalerMonitor,
    UpdateMonitor,
    UpdateNumbers,
    locate_non_finite,
)
from sightline.doctor.watch.observed import OBSERVED, Observation, examine_step
from sightline.doctor.watch.overlaps import OverlapMonitor
from sightline.doctor.watch.passes import OutputMonitor, PartMonitor
from sightline.doctor.watch.ranks import start_monitor
from sightline.doctor.watch.record_monitor import RecordMonitor
from sightline.doctor.watch.restarts import RestartMonitor
from sightline.doctor.watch.resumes import ResumeMonitor
from sightline.doctor.watch.schedules import AverageMonitor, LoadMonitor, ScheduleMonitor
from sightline.doctor.watch.scores import ScoreMonitor
from sightline.doctor.watch.sets import SetMonitor
from sightline.doctor.watch.trace_monitor import TraceMonitor
from sightline.doctor.watch.units import UnitMonitor
from sightline.instrument import (
    hang,
    observe_backward,
    observe_loads,
    observe_unscaling,
    observe_updates,
)
from sightline.instrument.unseen import hide_hooks

logger = logging.getLogger(__name__)

EVERY = 50
"""Steps between statistics of gradients, updates and outputs."""
BEFORE_FIRST_STEP = "the model before its first step"
"""What `step` or `loss`, and `loader`, are for."""
_MAX_INPUTS = 4
_FORMS = ((), ("_measured",))
"""Forms of events that are judged at each step, and beside them at those that are measured."""
_LEVELS = {"error": logging.ERROR, "warning": logging.WARNING, "note": logging.INFO}


class Watch:
    """Watched loop: `findings` so far, in the order in which they became true, and the `report` of all.

        with sightline.watch(model, optimizer=optimizer) as watch:
            train(model, optimizer)
        print(watch.report)

    Each finding is logged in one line at the step at which it is true; the report has it in full. Weights, random
    states and results of the loop are unchanged to the bit. Gradients, updates, outputs and graphs are measured in the
    first steps and in each `every`-th; between these the loss, one gradient, modes and learning rates are looked at,
    and one hook hangs on the model. On a GPU nothing is waited for. The loop is that of one thread: the one in which a
    model trains first. `declared` names codes that are intended. With `compares_ranks`, a loop in several processes is
    compared with theirs. With `finds`, schedulers and averages of weights that are not named are looked for, and so is
    what the weights were loaded from.
    Made by `watch`.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        *,
        optimizers: Sequence[torch.optim.Optimizer] = (),
        schedulers: Sequence[Any] = (),
        averages: Sequence[nn.Module] = (),
        every: int = EVERY,
        declared: frozenset[str] = frozenset(),
        bisects: bool = False,
        watches_passes: bool = True,
        takes_losses: bool = True,
        keeps_record_alone: bool = False,
        name_sample: Callable[[int, int, int], int | None] | None = None,
        first_step: int = 0,
        finds: bool = False,
        receive: Callable[[Finding], None] | None = None,
    ) -> None:
        self._loop = Loop(models, every=every, first_step=first_step)
        self._declared = declared
        self.optimizers = optimizers
        self._averages = averages
        self._bisects = bisects
        self._watches_passes = watches_passes
        self._receive = receive
        self._findings: list[Finding] = []
        self.recording = RecordMonitor(takes_losses=takes_losses, name_sample=name_sample)
        self._keeps_record_alone = keeps_record_alone
        self._tracing = TraceMonitor(averages, self._findings, self.recording.record)
        self._monitors: list[Monitor] = [
            PollMonitor(),
            RestartMonitor(),
            OrderMonitor(),
            LostMonitor(),
            LeakMonitor(),
            FiniteMonitor(self._explain_non_finite),
            ReachMonitor(knows_optimizers=bool(optimizers)),
            LossMonitor(),
            OverlapMonitor(),
            ModeMonitor(),
            PartMonitor(),
            OutputMonitor(),
            ScalerMonitor(),
            UpdateMonitor(),
            UnitMonitor(),
            ScheduleMonitor(schedulers, finds=finds),
            LoadMonitor(),
            AverageMonitor(averages, self._follow_average if finds else None),
            CopyMonitor(),
            PruneMonitor(),
            *([ResumeMonitor(), SetMonitor(), ScoreMonitor()] if finds else []),
            self.recording,
            self._tracing,
            LastPollMonitor(),
        ]
        if keeps_record_alone:
            self._monitors = [PollMonitor(), self.recording, LastPollMonitor()]
        self._always, self._measured = ({event: self._list_judges(event, *more) for event in EVENTS} for more in _FORMS)
        self._stack, self._calls = ExitStack(), ExitStack()
        self._recorded: set[nn.Module] = set()
        self._seen: set[object] = set()
        self._search: Search | None = None
        self._lock = threading.RLock()
        self.compares_ranks = False
        self.check: Callable[[], Mapping[str, tuple[Subject, Examination]]] | None = None
        self._checked = Examination()
        self.observation: Observation | None = None
        self._unsure, self.is_told = list[Finding](), False  # told how the loop calls model and loss
        self._lacks = {"check"} if len(models) == 1 else set[str]()
        self.level_source: Callable[[], Levels] | None = None
        self.chance_source: Callable[[], list[Chance]] | None = None

    def observe(self, loss: Callable[..., Any] | None, *, budget_s: float) -> None:
        """Have the first step examined in the form that it shows, within a budget of processor time."""
        examine = partial(examine_step, loop=self._loop, declared=self._declared, budget_s=budget_s)
        self.observation = Observation(self._loop, loss, examine, self._findings)

    def _list_judges(self, event: str, *forms: str) -> list[Any]:
        names = [f"{event}{form}" for form in ("", *forms)]
        return [getattr(monitor, name) for monitor in self._monitors for name in names if hasattr(monitor, name)]

    @property
    def findings(self) -> list[Finding]:
        """Findings so far; those that an error explains are in its evidence."""
        return merge_findings(self._findings)

    @property
    def report(self) -> Report:
        """Report of the loop so far."""
        loop = self._loop
        first = self._checked if self.observation is None else self._checked.join(self.observation.published)
        gaps = [*loop.failures, *first.gaps]
        gaps += [f"{loop.num_passed} steps, which a GPU replayed, were not looked at"] * bool(loop.num_passed)
        verdict = observe("verdict", self._tracing.write_verdict, gaps, self._lacks, first)
        if isinstance(verdict, MissingError):
            verdict = write_verdict(Examination(), gaps=[str(verdict), *gaps])
        return Report("watch", self.findings, verdict, {"updates": loop.step})

    @property
    def is_asked(self) -> bool:
        """True if the next step is to be measured."""
        return self._loop.is_measured and not self._keeps_record_alone

    def compare_modes(self, model: nn.Module) -> None:
        """Compare both modes of a network that is evaluated now, such as an average of the weights."""
        self.take(self.recording.compare(self._loop, model, is_asked=True))

    def ask(self, step: int) -> None:
        """Have the step that follows `step` finished ones measured: one that failed unseen is computed again."""
        self._loop.step, self._loop.is_measured = step, True

    @contextmanager
    def pass_over(self) -> Iterator[None]:
        """Context of one step that nobody looks at, such as one that a GPU replays; it is counted."""
        loop = self._loop
        loop.is_suspended = True
        try:
            yield
        finally:
            loop.is_suspended = False
        for track in loop.tracks.values():
            track.read_rate()
            track.end_update()
            track.num_updates += 1
        loop.num_passed += 1
        loop.step += 1
        loop.choose_step()

    def __enter__(self) -> Self:
        loop = self._loop
        if self.check is not None:
            check, self.check = self.check, None
            self._lacks.clear()
            self._observe(BEFORE_FIRST_STEP, self._check, check)
        opened = observe("the place", find_program_line, sys._getframe(1))
        loop.opened = None if isinstance(opened, MissingError) else opened
        loop.is_over = False
        loop.is_broken = not self._observe("the loop", self._begin)
        if loop.is_broken:
            self._observe("hooks", self._stack.close)
        elif self.compares_ranks:
            self._observe("the processes", self._compare_ranks)
        return self

    def __exit__(self, *error: Any) -> None:
        loop = self._loop
        for close in (self._stop_recording, self._stack.close):
            self._observe("hooks", close)
        loop.is_over = True
        self._tracing.level_source, self._tracing.chance_source = self.level_source, self.chance_source
        if not loop.is_broken:
            self._judge("on_end")
            self._observe("the layer", self._finish_search)
        if self.observation is None or self.observation.examined is None:
            self._publish_all(self._unsure)
        elif "check" in self._lacks:
            self._lacks = set() if self._checked.judgements else {"reads"}
        self._unsure = []
        loop.call, loop.model_inputs = None, []

    def can_read(self, loader: Any, what: str) -> bool:
        """Return True for a loader whose reading can be undone; else keep why `what` is not judged."""
        reason = observe(what, find_obstacle, loader)
        reason = str(reason.reason) if isinstance(reason, MissingError) else reason
        if reason:
            self._loop.failures[f"{what}: {reason}"] = None
        return not reason

    def _observe(self, what: str, run: Callable[..., object], *arguments: Any) -> bool:
        """Run what the user's loop must not end by; return True unless it failed, which is kept and logged."""
        failure = observe(what, run, *arguments)
        if isinstance(failure, MissingError):
            self._loop.fail(failure, "not judged")
        return not isinstance(failure, MissingError)

    def _check(self, check: Callable[[], Mapping[str, tuple[Subject, Examination]]]) -> None:
        """Check the models before their first step, which is examined as well where no call of a model is known."""
        try:
            examined = check()
        except UserError as error:  # what cannot be judged is no failure
            self._loop.failures[f"{BEFORE_FIRST_STEP}: {str(error).removeprefix('check: ')}"] = None
            return
        findings = [finding for finding in list_findings(examined) if finding.code not in self._declared]
        is_known = not any(isinstance(subject.form, UnknownForm) for subject, _ in examined.values())
        if self.observation is not None and not self.is_told and any(f.code == "first-step" for f in findings):
            self._unsure = findings  # the loop may call model and loss in another way
            return
        self._publish_all(findings)
        judged = [each for _, examination in examined.values() for each in examination.judgements]
        self._checked = Examination(findings, judged, list_gaps(examined))
        self.observation, self._lacks = (None, set()) if is_known else (self.observation, {"check"})

    def _publish_all(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self._publish(finding)

    def _begin(self) -> None:
        """Track the named optimisers, and hang all hooks."""
        loop, stack = self._loop, self._stack
        if is_one_of_several():
            stack.enter_context(refuse_collectives(lambda: OWN_WORK.is_on))
        for optimizer in self.optimizers:
            loop.track(optimizer, is_named=True)
        self._hang(loop.models.values())
        if (observation := self.observation) is not None and not observation.is_begun:
            for event, judges in itertools.product(OBSERVED, (self._always, self._measured)):
                judges[event].insert(0, getattr(observation, event))
            stack.enter_context(observation.follow())
        stack.enter_context(hide_hooks(lambda hook: isinstance(hook, Hook)))
        entry = partial(Hook, loop)
        fact = partial(Hook, loop, ends_watch=True)  # without it, the other events would say what is not so
        stack.enter_context(observe_loads(entry(self._before_load, what="loads of weights")))
        passes = (fact(run, what="backward passes") for run in (self._before_backward, self._after_backward))
        stack.enter_context(observe_backward(*passes))
        stack.enter_context(observe_unscaling(fact(self._before_unscaling, what="scales of gradients")))
        stack.enter_context(self._tracing.follow(loop))
        for average in self._averages:
            self._follow_average(average)
        updates = (fact(run, what="updates") for run in (self._before_update, self._after_update))
        stack.enter_context(observe_updates(*updates))

    def _follow_average(self, average: nn.Module) -> None:
        run = lambda average, *_: self._judge("on_average", average, torch.is_grad_enabled())  # noqa: E731
        judge = Hook(self._loop, run, what="averages")
        for handle in hang(average, None, judge):
            self._stack.callback(handle.remove)

    def _compare_ranks(self) -> None:
        place = self._loop.place()
        monitor = start_monitor(self._loop, f"watch/{place.file}:{place.line}", self.take)
        if monitor is not None:
            for judges in (self._always, self._measured):
                judges["on_forward"].append(monitor.on_forward)
            self._stack.enter_context(monitor.follow())

    def _hang(self, models: Collection[nn.Module]) -> None:
        for model in models if self._watches_passes else ():
            if model._compiled_call_impl is not None:  # `model.compile()`: torch would trace the hooks
                continue
            for handle in hang(model, Hook(self._loop, self._begin_forward), Hook(self._loop, self._end_forward)):
                self._stack.callback(handle.remove)

    # --- events ------------------------------------------------------------------------------------------------------

    def _begin_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        loop, has_gradient = self._loop, torch.is_grad_enabled()
        if loop.num_forwards == 0 and has_gradient and model.training:
            loop.thread = threading.get_ident()
        if not loop.runs_here or model in self._recorded:  # torch is calling the hooks of a part of a pass
            return
        self._stop_recording()
        if not has_gradient:
            return
        loop.call = None  # releases the inputs and outputs of the last pass
        loop.num_forwards += 1
        if loop.num_forwards <= 2 and "_orig_mod" not in model._modules:
            modules = {name: module for name, module in loop.modules() if name and module is not model}
            loop.model_inputs = [tensor for _, tensor in dense_leaves((args, kwargs))]
            self._recorded = set(modules.values())
            for path, module in modules.items():
                for handle in hang(module, Hook(loop, partial(self._begin_part, path))):
                    self._calls.callback(handle.remove)

    def _stop_recording(self) -> None:
        if self._recorded:
            self._calls.close()
            self._recorded.clear()

    def _begin_part(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._loop.runs_here:
            self._loop.executed.add(path)
            self._judge("on_module", path, module, (args, kwargs))

    def _end_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        loop, has_gradient = self._loop, torch.is_grad_enabled()
        if not loop.runs_here or model in self._recorded:
            return
        self._stop_recording()
        found = {"": outputs} if type(outputs) is Tensor and is_dense(outputs) else dict(dense_leaves(outputs))
        leaves = {path: tensor.detach() for path, tensor in found.items()}
        computed = frozenset([path for path in found if loop.is_measured and found[path].requires_grad])
        is_read = loop.is_digested if has_gradient else self._tracing.reads_evaluation
        digests = self._digest((args, kwargs)) if is_read else None
        call = ForwardCall(model, (args, kwargs), leaves, has_gradient, computed, digests)
        if has_gradient:
            loop.call = call
        self._judge("on_forward", call)
        if has_gradient and loop.is_measured:
            self._judge("on_outputs", outputs)

    def _digest(self, inputs: Any) -> RowDigests | None:
        """Compute the digests of the samples of a pass; those of a GPU at measured steps alone."""
        tensors = [tensor for _, tensor in dense_leaves(inputs) if tensor.numel() > 1][:_MAX_INPUTS]
        devices = {tensor.device.type for tensor in tensors}
        if len({tensor.device for tensor in tensors}) != 1:  # none, or a copy between devices, which waits
            return None
        with torch.no_grad():
            return self._loop.digest(tensors) if devices == {"cpu"} or self._loop.is_measured else None

    def _before_load(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        if any(module is model for _, module in self._loop.modules()):
            self._judge("on_load", model, state)

    def _before_backward(self, roots: list[Tensor]) -> None:
        if self._loop.runs_here:
            self._loop.is_in_backward = True
            self._loop.keep_loss(roots)
            self._loop.call_site = trace_calls()
            for root in roots[:1]:
                self._judge("before_backward", root)

    def _after_backward(self) -> None:
        if self._loop.runs_here:
            self._loop.is_in_backward = False
            self._judge("after_backward")

    def _get_track(self, optimizer: torch.optim.Optimizer) -> OptimizerTrack | None:
        """Return the track of an optimiser; None if it is not of the loop, or another thread uses it.

        Hooks of a backward pass, in which optimisers may step, run in threads of torch.
        """
        return self._loop.track(optimizer) if self._loop.runs_here or self._loop.is_in_backward else None

    def _before_unscaling(self, optimizer: torch.optim.Optimizer) -> None:
        if (track := self._get_track(optimizer)) is not None:
            self._judge("before_unscaling", track)

    def _before_update(self, optimizer: torch.optim.Optimizer) -> None:
        track = self._get_track(optimizer)
        if track is not None:
            track.read_rate()
            if self._loop.num_forwards == 0 and self._loop.step == self._loop.first_step:
                # Lightning's `training_step` need not call the module itself, but parts of it.
                models = [m for m in self._loop.models.values() if m._compiled_call_impl is None]
                self._hang([child for model in models for child in model.children()])
            self._judge("before_update", track)

    def _after_update(self, optimizer: torch.optim.Optimizer) -> None:
        track = self._get_track(optimizer)
        if track is not None:
            self._judge("after_update", track)
            track.end_update()
            track.num_updates += 1
            self._loop.step += 1
            self._loop.choose_step()

    def _judge(self, event: str, *subject: Any) -> None:
        if self._loop.is_measured or event == "on_end":
            with torch.no_grad():
                self._ask(self._measured[event], subject)
        elif judges := self._always[event]:
            self._ask(judges, subject)

    def _ask(self, judges: Sequence[Any], subject: tuple[Any, ...]) -> None:
        """Ask the judges of an event, and go on without a monitor that fails."""
        waiting = iter([*judges])
        while (missing := observe("events of the loop", self._ask_all, waiting, subject)) is not None:
            monitor = self._asked.__self__
            self._loop.fail(missing, f"{type(monitor).__name__} is switched off")
            for each in (*self._always.values(), *self._measured.values()):
                each[:] = [judge for judge in each if judge.__self__ is not monitor]

    def _ask_all(self, judges: Iterator[Any], subject: tuple[Any, ...]) -> None:
        for self._asked in judges:
            if found := self._asked(self._loop, *subject):
                self.take(found)

    def take(self, found: Iterable[Found]) -> None:
        """Keep and log each finding that is new and not declared."""
        for finding in found:
            where = finding.where
            key = (finding.code, where.layer, where.param, finding.evidence.get("mode"))
            with self._lock:  # those of several processes come from a thread
                if finding.code in self._declared or key in self._seen:
                    continue
                self._seen.add(key)
                stated = {name: value for name, value in vars(where).items() if value is not None}
                place = dataclasses.replace(self._loop.place(), **stated)
                self._publish(dataclasses.replace(finding, where=place, phase="runtime"))

    def _publish(self, finding: Finding) -> None:
        self._findings.append(finding)
        place, line = str(finding.where), str(finding).partition("\n")[0]
        line += f" ({place})" if place else ""
        logger.log(_LEVELS[finding.severity], "%s", line, extra={"code": finding.code, "finding": finding})
        if self._receive is not None:
            self._receive(finding)

    def _explain_non_finite(self, track: OptimizerTrack, numbers: UpdateNumbers) -> Finding | None:
        """Locate a number that is not finite; of a forward pass, search its layer now, or at the end.

        A number that arrived late may have spoilt the weights: they no longer lead to the layer.
        """
        found = next(iter(find_by(non_finite, origin=locate_non_finite(track, numbers))), None)
        if found is None or (numbers.is_late and not all(bool(p.isfinite().all()) for p in track.parameters.values())):
            return found
        if found.evidence["stage"] == "forward" and numbers.call is not None:
            self._search = prepare_search(numbers.call)
            if self._bisects:
                return self._finish_search() or found
        return found

    def _finish_search(self) -> Finding | None:
        """Return the layer of a forward pass that is not finite, and add it to an earlier finding."""
        found = None if self._search is None else self._search()
        self._search = None
        if isinstance(found, MissingError):
            self._loop.fail(found, "the layer is not searched")
            return None
        for place, known in enumerate(self._findings):
            if found is not None and known.code == found.code:
                where = dataclasses.replace(known.where, layer=found.where.layer, sample=found.where.sample)
                self._findings[place] = dataclasses.replace(found, where=where, phase="runtime")
                logger.info("%s: %s", found.code, found.summary)
        return found


def watch(
    model: nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module],
    *,
    optimizer: Any = None,
    scheduler: Any = None,
    ema: nn.Module | Sequence[nn.Module] | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    loader: Any = None,
    step: Callable[[Any], Any] | None = None,
    evaluation: Any = None,
    every: int = EVERY,
    declared: Sequence[str] = (),
    bisect: bool = False,
    check: bool = True,
) -> Watch:
    """Watch the training of a model, or of several, in the user's own loop; a context, see `Watch`.

    `optimizer` and `scheduler` are one, or a list; those that are not named are found as the loop uses them, and so is
    `ema`, a moving average of the weights that the loop updates. With a `loader`, models are checked before the first
    step, as `sightline.check` does: by `step(batch)`, which returns the loss, or the losses by the names of several
    models, or one model by its `loss`, of outputs and targets. Without both, what the loader reads is judged, and the
    model by its first step. `evaluation` is another loader. `every` is the distance in steps between statistics of
    gradients, updates and outputs. `declared` names codes of findings that are intended, such as "same-batch". With
    `bisect`, a step that is not finite is run again at once, on a copy in float64, layer by layer. Without these, the
    first step shows how the loop calls its model and its loss, and copies are examined so, by its batch alone: that
    takes up to 2 s of processor time, up to 4 s where `loss` or `loader` is given. What is found is said at the second
    step, if that calls them alike. With `check` False no copies are examined. Raises UserError for a wrong argument.
    """
    assert_codes(declared, name="watch: declared")
    assert_step(step, loader, name="watch")
    optimizers = [getattr(one, "optimizer", one) for one in list_values(optimizer)]  # of Accelerate and Lightning
    if others := [type(one).__name__ for one in optimizers if not hasattr(one, "param_groups")]:
        raise UserError(f"watch: an optimizer has groups of parameters; found {others[0]}")
    watched = Watch(
        name_prefixes(model),
        optimizers=optimizers,
        schedulers=[getattr(one, "scheduler", one) for one in list_values(scheduler)],
        averages=list_values(ema),
        every=every,
        declared=frozenset(declared),
        bisects=bisect,
        finds=True,
    )
    watched.compares_ranks = True
    if check:
        watched.observe(loss, budget_s=BUDGET_S if loss is not None or loader is not None else BUDGET_S / 2)
    for name, value in (("loader", loader), ("evaluation", evaluation)):
        if value is not None:
            assert_batches(value, name=f"watch: {name}")
    if check and loader is not None:
        if loss is not None and not isinstance(model, nn.Module):
            raise UserError("watch: `loss` is of one model; the losses of several are what `step` returns")
        models = {name.rstrip("."): each for name, each in name_prefixes(model).items()}
        if watched.can_read(loader, BEFORE_FIRST_STEP):
            if evaluation is not None and not watched.can_read(evaluation, "the batches of `evaluation`"):
                evaluation = None
            judge = partial(examine_models, models, loss, loader, step=step, evaluation=evaluation, declared=declared)
            watched.check, watched.is_told = partial(judge, optimizer=watched.optimizers or None), step is not None
            if isinstance(model, nn.Module) and loss is not None and step is None:
                watched.level_source = partial(measure_levels, model, loss, loader)
    elif check and evaluation is not None:
        watched._loop.failures["the batches of `evaluation`: `loader` is not given"] = None
    return watched
