"""CUDA graphs of training steps: what a step queues is captured once and replayed, without Python between kernels.

Source: PyTorch, "CUDA graphs" (whole-network capture); the conditions are those of its documentation.
"""

from __future__ import annotations

import logging
import random
import traceback
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sightline.contract.errors import RunError
from sightline.contract.pytree import ReadTrackingDict, tree_children, tree_leaves, tree_map
from sightline.contract.types import Batch
from sightline.engine.queued_step import QueuedStep, RandomStates
from sightline.ops.waits import SentValues, clone_known, get_known_list, host_traffic

logger = logging.getLogger(__name__)

NUM_WARM = 2
"""Steps before the first that is watched: they make what stays on the device, and choose kernels."""
_MAX_GRAPHS = 2
_MAX_DIFFERENCE = 1e-3
"""Of numbers of a replayed step from those of the step itself, relative; a device may add in another order."""

_MAX_UPDATE_DIFFERENCE = 0.1
"""Of the update of a replayed step, in norm: where a gradient is nearly 0, its sign may be the rounding's."""
_SENDS_EVERY = 1000
"""Steps of a form of which one is computed, if the host sends numbers in it."""
_MAX_FORMS = 12
"""Forms of batches of a run, most of them too rare for a graph."""

Work = Callable[[Sequence[Batch]], QueuedStep]


class StepState(Protocol):
    """Interface of the tensors that a step changes, which a graph of it restores or keeps still."""

    def list_all(self) -> list[Tensor]:
        """List all tensors that a step changes."""

    def list_moved(self) -> list[Tensor]:
        """List the tensors that stay as they are while rates are 0: weights and their averages."""

    def stilled(self) -> AbstractContextManager[None]:
        """Return a context in which rates are 0."""


class _Captured:
    """Graph of the work on batches of one form, its own; others are copied into those."""

    def __init__(self, work: Work, batches: list[Batch]) -> None:
        self._inputs = [tensor for _, tensor in tree_leaves(batches)]
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = work(batches)
        self._result.release()

    def replay(self, batches: list[Batch]) -> QueuedStep:
        """Replay the work on other batches; the step is forgotten: its checks have no words."""
        torch._foreach_copy_(self._inputs, [tensor for _, tensor in tree_leaves(batches)])
        self._graph.replay()
        return replace(self._result, values=self._result.values.clone())


@dataclass
class _Form:
    """Form of batches: how often it was met, its graph, and whether that was compared; `is_refused` if it has none.

    `sent` are the values that the host sends in each of its steps.
    """

    num_seen: int = 0
    sent: Sequence[SentValues] = ()
    graph: _Captured | None = None
    is_compared: bool = False
    is_refused: bool = False


@dataclass
class _Kind:
    """Batches with the same keys: what their first steps read, and the paths of values that the host knew and read."""

    num_tracked: int = 0
    read: dict[str, None] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)


class StepGraphs:
    """Graphs of a run's steps, one for each form of batches, up to two; `reason` says why there are none.

    After `NUM_WARM` steps, the second of a form is watched: where the host waits in it, or draws numbers, the form is
    computed. The third is captured; and the fourth is replayed and computed, from one state: the graph is kept if both
    have the same numbers, and if it moves nothing while the rates on the device are 0. What the first steps do not read
    of their batches has no part in the form.

    Values of a batch that the host knows and reads, such as offsets of clouds, are a part of the form. What the host
    sends in a step, then, is sent once for all steps of a form; the fourth step must send the same, and one of a
    thousand later ones, which are computed for it.
    """

    def __init__(self, device: torch.device, *, reason: str = "", is_strict: bool = False) -> None:
        self._device = device
        self.reason = reason
        self.num_replayed = 0
        self._is_strict = is_strict
        self._kinds: dict[Hashable, _Kind] = {}
        self._key: Hashable = None
        self._forms: dict[Hashable, _Form] = {}

    def run(self, key: Hashable, batches: Sequence[Batch], work: Work, state: StepState) -> QueuedStep:
        """Do the work of a step, or replay a graph of it.

        `key` holds the numbers of the host that the work depends on; those of another key are over.
        """
        if self.reason:
            return work(batches)
        kind = self._kinds.setdefault(tuple(map(frozenset, batches)), _Kind())
        if kind.num_tracked < NUM_WARM:
            return self._track(kind, work, batches)
        if key != self._key:
            self._key = key
            self._forms.clear()
        read = [{name: batch[name] for name in kind.read if name in batch} for batch in batches]
        known = [(path, tensor) for path, tensor in tree_leaves(read) if path in kind.known]
        form = self._find_form((_describe(read), tuple((path, repr(get_known_list(leaf))) for path, leaf in known)))
        if form is None or form.is_refused:
            return work(batches)
        if form.graph is not None and form.is_compared:
            form.num_seen += 1
            if form.sent and form.num_seen % _SENDS_EVERY == 0:
                return self._check_sends(form, batches, work)
            self.num_replayed += 1
            return form.graph.replay(read)
        form.num_seen += 1
        if form.graph is not None:
            return self._compare(form, form.graph, read, batches, work, state)
        if form.num_seen == 2:
            return self._watch(form, [leaf for _, leaf in known], batches, work)
        if form.num_seen > 2:
            self._capture(form, work, read)
        return work(batches)

    def _find_form(self, described: Hashable) -> _Form | None:
        """Return the form of this description, made now if it is new; None if there are too many."""
        form = self._forms.get(described)
        if form is None and len(self._forms) < _MAX_FORMS:
            form = self._forms[described] = _Form()
        elif form is None and not any(other.graph for other in self._forms.values()):
            self._give_up("batches have ever other forms")
        return form

    def _track(self, kind: _Kind, work: Work, batches: Sequence[Batch]) -> QueuedStep:
        """Note what the work reads of batches with these keys: the rest, as names of files, is no part of a form."""
        tracked = [ReadTrackingDict(batch) for batch in batches]
        with host_traffic() as traffic:
            queued = work(tracked)
        kind.num_tracked += 1
        kind.read = dict.fromkeys([*kind.read, *(name for batch in tracked for name in batch.read)])
        lists = {id(numbers) for _, numbers in traffic.read}
        kind.known |= {path for path, tensor in tree_leaves(batches) if id(get_known_list(tensor)) in lists}
        return queued

    def _watch(self, form: _Form, known: Sequence[Tensor], batches: Sequence[Batch], work: Work) -> QueuedStep:
        before = _host_states()
        with host_traffic() as traffic, _noted_waits() as waits:
            queued = work(batches)
        form.sent = traffic.sent
        if waits:
            self._refuse(form, f"the host waits in a step, at {waits[0]}")
        elif reason := traffic.find_misuse(known):
            self._refuse(form, reason)
        elif before != _host_states():
            self._refuse(form, "the host draws numbers in a step: a graph would repeat the first ones")
        elif not self._has_room():
            self._refuse(form, "a graph keeps the memory of a step, and half of the GPU's is in use")
        elif sum(other.graph is not None for other in self._forms.values()) == _MAX_GRAPHS:
            form.is_refused = True
        return queued

    def _check_sends(self, form: _Form, batches: Sequence[Batch], work: Work) -> QueuedStep:
        """Compute a step. Raises RunError if the host sends other numbers than those that were replayed."""
        with host_traffic() as traffic:
            queued = work(batches)
        if location := traffic.differs_from(form.sent):
            raise RunError(
                f"the host sends other numbers in a step than at first, at {location}: replayed steps have used the "
                "first ones since; start anew with train.graph=off, or send only what follows from a batch"
            )
        return queued

    def _has_room(self) -> bool:
        if self._device.type != "cuda":
            return True
        return 2 * torch.cuda.max_memory_allocated(self._device) < torch.cuda.mem_get_info(self._device)[1]

    def _capture(self, form: _Form, work: Work, batches: list[Batch]) -> None:
        states, stream = RandomStates.read(self._device), _current_stream(self._device)
        try:
            with host_traffic(form.sent):
                form.graph = _Captured(work, tree_map(batches, lambda path, tensor: clone_known(tensor)))
        except RuntimeError as error:  # an operation that no graph can hold
            if stream is not None:
                torch.cuda.set_stream(stream)  # torch leaves that of a capture which it could not end
                torch.cuda.synchronize(self._device)
            states.restore(self._device)
            self._refuse(form, f"a step cannot be captured: {' '.join(str(error).split())[:200]}")

    def _compare(
        self,
        form: _Form,
        graph: _Captured,
        read: list[Batch],
        batches: Sequence[Batch],
        work: Work,
        state: StepState,
    ) -> QueuedStep:
        """Replay a step, take it back, and compute it: numbers that a graph froze would show now."""
        tensors, states = state.list_all(), RandomStates.read(self._device)
        before = [tensor.detach().clone() for tensor in tensors]
        num_moved = len(state.list_moved())

        def replay() -> tuple[Tensor, list[Tensor]]:
            values = graph.replay(read).values
            after = [tensor.detach().clone() for tensor in tensors]
            with torch.no_grad():
                torch._foreach_copy_(tensors, before)
            states.restore(self._device)
            return values, after

        with state.stilled():
            _, still = replay()
        replayed, after = replay()
        with host_traffic() as traffic:
            computed = work(batches)
        form.is_compared = True
        if location := traffic.differs_from(form.sent):
            self._refuse(form, f"the host sends other numbers in each step, at {location}")
        elif not all(map(torch.equal, still[:num_moved], before[:num_moved])):
            self._refuse(form, "a replayed step moves weights while all rates are 0: it has some of the host")
        elif not self._agrees(replayed, computed.values, before, after, tensors, num_moved):
            numbers = f"{replayed.tolist()}, not {computed.values.tolist()}"
            self._refuse(form, f"a replayed step has other numbers than the step: {numbers}")
        else:
            logger.info("steps are replayed as a CUDA graph (train.graph)")
        return computed

    def _agrees(
        self,
        replayed: Tensor,
        values: Tensor,
        before: Sequence[Tensor],
        after: Sequence[Tensor],
        tensors: Sequence[Tensor],
        num_moved: int,
    ) -> bool:
        if self._is_strict:
            return torch.equal(replayed.nan_to_num(), values.nan_to_num()) and all(map(torch.equal, after, tensors))
        update, other = (
            torch.cat(
                [(one.detach() - old).double().flatten() for one, old in zip(updated, before, strict=True)][:num_moved]
            )
            for updated in (tensors, after)
        )
        is_same_update = bool((update - other).norm() <= _MAX_UPDATE_DIFFERENCE * update.norm())
        rounding = {"rtol": _MAX_DIFFERENCE, "atol": _MAX_DIFFERENCE}
        return is_same_update and torch.allclose(replayed, values, equal_nan=True, **rounding)

    def _refuse(self, form: _Form, reason: str) -> None:
        """Compute the steps of a form from now on; all steps, if no other form has a graph."""
        form.graph, form.is_refused = None, True
        if not any(other.graph for other in self._forms.values()):
            self._give_up(reason)

    def _give_up(self, reason: str) -> None:
        self._forms.clear()
        self.reason = reason
        logger.info("steps are not replayed as a CUDA graph: %s", reason)


def _current_stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


def _describe(value: Any) -> Hashable:
    """Describe the form of a tree: shapes and types of its tensors, and all else that it holds."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    children = [(name, _describe(item)) for name, item in tree_children(value)]
    return tuple(children) if children else repr(value)


def _host_states() -> tuple[Any, ...]:
    """States of the generators of the host, to compare them."""
    return random.getstate(), str(np.random.get_state()), bytes(torch.get_rng_state().numpy())


@contextmanager
def _noted_waits() -> Iterator[list[str]]:
    """Context that notes the places where the host waits for the device, as torch reports them."""
    locations: list[str] = []

    def note(message: Any, *arguments: Any, **named: Any) -> None:
        if "called a synchronizing" in str(message):
            locations.append(_locate_frame())

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield locations
        finally:
            torch.cuda.set_sync_debug_mode("default")


def _locate_frame() -> str:
    """Return file and line of the innermost frame of the package outside of the engine and of `waits`."""
    outer = ("/engine/", "/ops/waits.py")
    frames = [f for f in traceback.extract_stack() if "/sightline/" in f.filename]
    inner = [f for f in frames if not any(part in f.filename for part in outer)] or frames
    return f"{inner[-1].filename.rpartition('/sightline/')[2]}:{inner[-1].lineno}" if inner else "an unknown place"
