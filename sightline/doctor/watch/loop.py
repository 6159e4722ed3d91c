"""State of a watched loop: its models, its optimisers with the marks of their gradients, and the current step."""

from __future__ import annotations

import dataclasses
import logging
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract.pytree import is_dense
from sightline.doctor.attempts import OWN_WORK, MissingError, observe
from sightline.doctor.finding import Finding, FindingLocation
from sightline.doctor.objects import read_rate
from sightline.doctor.program_code import find_program_line
from sightline.doctor.trace import RowDigest, RowDigests
from sightline.instrument import Inputs
from sightline.instrument.unseen import is_recorded, run_unseen

logger = logging.getLogger(__name__)

Found = Finding
"""Finding of an event; where nothing else is said, it is at the step and the line of the loop that run."""
Judge = Callable[[Any], Iterable[Found]]
Mark = tuple[int, int] | None
"""Identity and version of a parameter's gradient: equal marks mean that nothing has written to it."""
CallSite = tuple[tuple[int, int], ...]
"""Calls that lead to a line, by their code and the place in it: one line of a loop is reached by the same calls."""

_NUM_PROBES, _NUM_COUNTED, _MAX_SMALL = 16, 4, 16_384
_NUM_FIRST, _EARLY = 5, 8
"""Updates that are measured at first, and times as many steps in which those of each optimiser are."""
_MAX_ASKED = 4
"""Steps that are measured because the one before looked odd."""
_NUM_DIGESTED, _DIGEST_EVERY, _NUM_IN_ROW = 128, 256, 8
"""Training passes whose samples are digested at first, and then so many in a row of as many."""


@dataclass
class OptimizerTrack:
    """Optimiser seen in the loop: `parameters` by name, `probes` a few of them, whose gradients are marked.

    `small` are a few small parameters, of early layers: what is not finite in a backward pass arrives there. `weight`
    is the largest matrix. `is_kept` is True for a probe whose gradient nothing has cleared or replaced since the last
    update, `is_added_to` for one that a backward pass has then added to; `is_restarted` if the loop has begun anew
    before the current update, `num_writes` those to a few weights between updates, `state_size` the number of
    parameters that have a state. `lr` is the largest learning rate of its groups at this update.
    """

    optimizer: torch.optim.Optimizer
    parameters: dict[str, nn.Parameter]
    foreign: int = 0
    num_updates: int = 0
    num_backward: int = 0
    lr: float = 0.0
    after_update: list[Mark] = field(default_factory=list)
    after_backward: list[Mark] = field(default_factory=list)
    before_backward: list[Mark] = field(default_factory=list)
    is_kept: list[bool] = field(default_factory=list)
    is_added_to: list[bool] = field(default_factory=list)
    kept_values: Tensor | None = None
    norm: Tensor | None = None
    norm_after_backward: Tensor | None = None
    is_restarted: bool = False
    num_writes: int = 0
    state_size: int = 0
    version: int = 0

    def __post_init__(self) -> None:
        names = list(self.parameters)
        self.names = sorted(
            {names[round(i * (len(names) - 1) / (_NUM_PROBES - 1))] for i in range(_NUM_PROBES)} if names else ()
        )
        self.probes = [self.parameters[name] for name in self.names]
        by_size = sorted(self.parameters.values(), key=lambda p: p.numel() > _MAX_SMALL)  # stable: early layers first
        self.small = by_size[:_NUM_PROBES]
        weights = [p for p in self.parameters.values() if p.ndim > 1 and p.requires_grad and has_slices(p)]
        self.weight = max(weights, key=Tensor.numel, default=None)
        self.name = type(self.optimizer).__name__
        self.after_update = self.after_backward = self.before_backward = self.marks()
        self.is_kept = self.is_added_to = [False] * len(self.probes)
        self.read_rate()
        self.end_update()

    def end_update(self) -> None:
        """Keep the version of a weight, and how many parameters have a state, until the next update."""
        state = self.optimizer.state
        self.version, self.state_size = self._sum_versions(), len(state) if any(map(bool, state.values())) else 0

    def count_writes(self) -> int:
        """Count the writes to a few weights since the last update."""
        return self._sum_versions() - self.version

    def _sum_versions(self) -> int:
        return sum([probe._version for probe in self.probes[:_NUM_COUNTED]])

    def read_rate(self) -> None:
        """Read the learning rate of the next update."""
        self.lr = max(map(read_rate, self.optimizer.param_groups), default=0.0)

    def marks(self) -> list[Mark]:
        """Mark the gradients of the probes."""
        return [None if (g := p.grad) is None else (id(g), g._version) for p in self.probes]

    @property
    def gradients(self) -> dict[str, Tensor]:
        """Gradients of all parameters that have one, by name; the parts of this process."""
        return {name: take_local(g) for name, p in self.parameters.items() if (g := p.grad) is not None}

    def measure_small(self) -> Tensor | None:
        """Compute the largest norm of the gradients of small parameters; None without one in the common form."""
        gradients = [take_local(g) for p in self.small if (g := p.grad) is not None and g.layout is torch.strided]
        return stack_numbers([n.float() for n in torch._foreach_norm(gradients)]).max() if gradients else None


def take_local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds: all of it, unless it is spread over several."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


def has_slices(parameter: Tensor) -> bool:
    """Return True for a parameter of which a part can be read: not a sparse one, nor that of a lazy module.

    Nor one that FSDP has gathered for a pass, and whose memory it has freed since.
    """
    local = take_local(parameter)
    is_read = parameter.layout is torch.strided and is_dense(local)
    return is_read and (local.untyped_storage().nbytes() > 0 or not local.numel())


def stack_numbers(values: Sequence[Tensor]) -> Tensor:
    """Stack numbers (0-d) on one device, on a GPU if one of them is there; nothing is waited for.

    A model may be spread over GPUs, and lengths of sequences stay on the host.
    """
    device = next((value.device for value in values if value.device.type != "cpu"), torch.device("cpu"))
    return torch.stack([send(value, device) for value in values])


def send(value: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; one of the host without waiting for what is queued there."""
    if value.device == device:
        return value
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()  # from pageable memory the copy would wait for the device
    return value.to(device, non_blocking=value.device.type == "cpu")


@dataclass(slots=True)
class ForwardCall:
    """Forward pass of a watched model; `outputs` are detached, by path, those whose numbers can be read.

    `has_gradient` is True for a pass that is recorded for backward; `computed` are, at a measured step, the paths of
    outputs with a history: weights have part in them. `digests` are those of the samples, where they are computed.
    """

    model: nn.Module
    inputs: Inputs
    outputs: Mapping[str, Tensor]
    has_gradient: bool
    computed: frozenset[str] = frozenset()
    digests: RowDigests | None = None


class Reader:
    """Reader of numbers on a device: at once on a CPU; on a GPU as soon as they have arrived, without waiting."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: deque[tuple[Tensor, Any, Judge, int]] = deque()

    def is_late(self, value: Tensor) -> bool:
        """Return True if a number arrives after this step: that of a GPU."""
        return value.device.type != "cpu"

    def read(self, value: Tensor, judge: Judge) -> Iterable[Found]:
        """Judge a number (0-d), or a list of a few (n,), now, or let `poll` do it later."""
        value = value.detach()
        if not self.is_late(value):
            return judge(value.tolist())
        copied = value.to("cpu", non_blocking=True)
        self._waiting.append((copied, record_event(value.device), judge, self._loop.step + 1))
        return ()

    def read_if(self, value: Tensor, found: Found, *, expected: bool = True) -> Iterable[Found]:
        """Find something if a number is not zero, or with `expected` False if it is."""
        return self.read(value, lambda number: [found] if bool(number) == expected else [])

    def poll(self, *, waits: bool = False) -> Iterable[Found]:
        """Judge the numbers that have arrived, or all."""
        found: list[Found] = []
        while self._waiting and (waits or self._waiting[0][1].query()):
            copied, event, judge, step = self._waiting.popleft()
            event.synchronize()
            found += (set_step(finding, finding.where.step or step) for finding in judge(copied.tolist()))
        return found


def set_step(finding: Finding, step: int | None) -> Finding:
    """Return the finding at another step."""
    return dataclasses.replace(finding, where=dataclasses.replace(finding.where, step=step))


def record_event(device: torch.device) -> torch.Event:
    """Return an event that has come when a device has done what is queued; torch's default is the current device."""
    event = torch.Event(device)
    event.record(torch.accelerator.current_stream(device))
    return event


class Loop:
    """Facts of the loop: `step` counts updates, `forwards` training passes, `loss` is the last root's value.

    `loss_value` is its number, if it is on the host. `failures` are the reasons why some of the loop is not judged.
    `model_inputs` are the tensors that the last recorded training pass began with, `executed` the names of modules that
    ran in a training pass while calls were recorded, `call_site` the calls that lead to the last backward pass.
    `thread` is that of the loop, which `is_broken` where an event could not be followed. `first_of_epoch` is the
    training pass before which `loader`, a weak reference, began anew, for the `num_epochs`-th time.
    """

    def __init__(self, models: Mapping[str, nn.Module], *, every: int, first_step: int = 0) -> None:
        self.models = dict(models)
        self.every = every
        self.reader = Reader(self)
        self.tracks: dict[int, OptimizerTrack] = {}
        self.step = self.first_step = first_step
        self.thread = threading.get_ident()
        self.is_over = self.is_broken = self.is_in_backward = self.is_suspended = False
        self.opened: tuple[str, int] | None = None
        self.num_forwards = self.first_of_epoch = self.num_epochs = 0
        self.loader: weakref.ref[Any] | None = None
        self.call: ForwardCall | None = None
        self.call_site: CallSite = ()
        self.model_inputs: list[Tensor] = []
        self.loss: Tensor | None = None
        self.loss_value: float | None = None
        self.executed: set[str] = set()
        self.is_measured = True
        self.num_asked, self.is_asked = 0, False
        self.digest = RowDigest()
        self.failures: dict[str, None] = {}
        self.num_passed = 0

    def fail(self, missing: MissingError, what: str) -> None:
        """Keep and log a failure of what observes, and say what is not seen: the loop is the user's, and goes on.

        After a failed kernel every use of the GPU fails, that of the loop, too, which ends by the error itself.
        """
        self.failures[str(missing)] = None
        level = logging.DEBUG if "device-side assert" in missing.reason else logging.WARNING
        words = level, "watch-failed: %s: %s", what, missing
        observe("log", partial(logger.log, extra={"code": "watch-failed"}), *words)

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Iterate over all modules of the models, by name."""
        for prefix, model in self.models.items():
            for name, module in model.named_modules():
                yield f"{prefix}{name}".rstrip("."), module

    def parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of the models by name, each once."""
        return {f"{prefix}{name}": p for prefix, model in self.models.items() for name, p in model.named_parameters()}

    def track(self, optimizer: torch.optim.Optimizer, *, is_named: bool = False) -> OptimizerTrack | None:
        """Return the track of an optimiser, begun now if it is new.

        None if it holds no parameter of the models, unless the user has named it.
        """
        if id(optimizer) not in self.tracks:
            names = {id(parameter): name for name, parameter in self.parameters().items()}
            held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            own = {names[id(parameter)]: parameter for parameter in held if id(parameter) in names}
            if not own and not is_named:
                return None
            self.tracks[id(optimizer)] = OptimizerTrack(optimizer, own, foreign=len(held) - len(own))
        return self.tracks[id(optimizer)]

    @property
    def runs_here(self) -> bool:
        """True in the thread of the loop, as others may train, or evaluate, at the same time; False while suspended."""
        return threading.get_ident() == self.thread and not self.is_suspended

    @property
    def is_digested(self) -> bool:
        """True for a training pass whose samples are read: the first ones, and then some in a row, ever rarer."""
        number = self.num_forwards
        in_row = min(number % _DIGEST_EVERY, number - self.first_of_epoch) < _NUM_IN_ROW
        return self.is_measured or number <= _NUM_DIGESTED or in_row

    def choose_step(self) -> None:
        """Decide whether the next step is measured: the first ones of each optimiser, and then each `every`-th."""
        numbers = [track.num_updates for track in self.tracks.values()]
        most, is_early = max(numbers), self.step - self.first_step < _EARLY * _NUM_FIRST
        is_new = (min(numbers) if is_early else most) < _NUM_FIRST
        self.is_measured = is_new or most % self.every == 0 or self.is_asked
        self.is_asked = False

    def ask(self) -> None:
        """Have the next step measured, too, as something looks odd; a few times in a loop."""
        self.num_asked += 1
        self.is_asked = self.num_asked <= _MAX_ASKED

    def keep_loss(self, roots: Sequence[Tensor]) -> None:
        """Keep the loss of a backward pass."""
        self.loss = roots[0].detach() if roots and roots[0].is_floating_point() else None
        is_near = self.loss is not None and self.loss.numel() == 1 and self.loss.device.type == "cpu"
        self.loss_value = self.loss.item() if self.loss is not None and is_near else None

    def place(self) -> FindingLocation:
        """Return the current step, and the line of the user's loop that runs now; after it, that which began it."""
        found = self.opened if self.is_over else find_program_line(sys._current_frames().get(self.thread))
        file, line = found or (None, None)
        return FindingLocation(file=file, line=line, step=None if self.is_over else self.step + 1)


class Monitor:
    """Family of invariants: each method is an event of the loop, and returns what has become true by it.

    A method whose name ends in `measured` sees the steps alone that are measured. Events and what they are about:
    `on_forward` a pass of a whole model, `on_outputs` its outputs with their history, of which none may be kept,
    `before_backward` the loss, whose graph still exists, `after_backward`, `before_update` and `after_update` the track
    of the optimiser, `before_unscaling` that whose gradients a GradScaler is about to divide, `on_average` a moving
    average of the weights that has computed outputs, and if these are recorded, `on_module` what a part is called with
    in the first training passes, `on_load` weights that a model is about to load, `on_end` the whole loop.
    """


EVENTS = (
    *("on_forward", "on_outputs", "before_backward", "after_backward", "before_update", "after_update"),
    *("before_unscaling", "on_average", "on_module", "on_load", "on_end"),
)
"""Events, each with a form for measured steps alone, whose name ends in `_measured`."""


class PollMonitor(Monitor):
    """Numbers of earlier steps that have arrived from a device."""

    def before_update(self, loop: Loop, track: OptimizerTrack) -> Iterable[Found]:
        return loop.reader.poll()

    def on_end(self, loop: Loop) -> Iterable[Found]:
        return loop.reader.poll(waits=True)


class LastPollMonitor(Monitor):
    """Numbers that other monitors ask a device for at the end, after the last step."""

    def on_end(self, loop: Loop) -> Iterable[Found]:
        return (set_step(finding, None) for finding in loop.reader.poll(waits=True))


class Hook:
    """Entry of a watched loop's event; what fails inside is kept as the reason why the event is not watched any more.

    It neither runs nor leaves an operation where torch records the program for a graph, nor after the loop, nor in what
    the doctor itself runs. `what` it watches is named where it fails; with `ends_watch` nothing is watched from there
    on, as what follows would compare with what was not seen. Copies of it do nothing.
    """

    can_be_suspended = True
    """`Watch.pass_over` does it: a step with hooks of others alone is not replayed."""

    def __init__(
        self,
        loop: Loop | None,
        run: Callable[..., object] | None,
        *,
        what: str = "forward passes",
        ends_watch: bool = False,
    ) -> None:
        self._loop, self._run, self._what, self._ends_watch = loop, run, what, ends_watch

    def __call__(self, *arguments: Any) -> None:
        loop, run = self._loop, self._run
        if run is None or loop is None or loop.is_over or loop.is_broken or OWN_WORK.is_on or is_recorded():
            return
        OWN_WORK.is_on = True
        try:
            failure = observe(self._what, run_unseen, run, *arguments)
        finally:
            OWN_WORK.is_on = False
        if isinstance(failure, MissingError):
            loop.is_broken = loop.is_broken or self._ends_watch
            self._run = None
            loop.fail(failure, f"{'the loop is' if self._ends_watch else f'{self._what} are'} not watched from here on")

    def __reduce__(self) -> Any:
        return Hook, (None, None)
