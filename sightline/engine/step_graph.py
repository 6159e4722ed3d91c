"""CUDA graphs of training steps: what a step queues is captured once and replayed, without Python between kernels.

Source: PyTorch, "CUDA graphs" (whole-network capture); the conditions are those of its documentation.
"""

from __future__ import annotations

import logging
import random
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.contract.pytree import ReadTrackingDict, tree_leaves, tree_map
from sightline.contract.types import Batch
from sightline.engine.queued_step import RandomStates
from sightline.ops.waits import noted_sends

logger = logging.getLogger(__name__)

NUM_WARM = 2
"""Steps before the first that is watched: they make what stays on the device, and choose kernels."""
_MAX_GRAPHS = 2
_MAX_DIFFERENCE = 1e-3
"""Of numbers of a replayed step from those of the step itself, relative; a device may add in another order."""

Work = Callable[[Sequence[Batch]], "StepValues"]


class StepValues(NamedTuple):
    """What the work of a step returns: names and values (n,) on the device, numbers of the host, and its checks."""

    names: tuple[str, ...]
    values: Tensor
    known: dict[str, float]
    checks: Sequence[Any]


class _Captured:
    """Graph of the work on batches of one form, with what it reads of them; other batches are copied into those."""

    def __init__(self, work: Work, batches: list[Batch]) -> None:
        self._batches = tree_map(batches, lambda path, tensor: tensor.clone())
        self._inputs = [tensor for _, tensor in tree_leaves(self._batches)]
        self._graph = torch.cuda.CUDAGraph()
        self.is_compared = False
        with torch.cuda.graph(self._graph):
            self._result = work(self._batches)._replace(checks=())

    def replay(self, batches: list[Batch]) -> StepValues:
        """Replay the work on other batches; its checks have no words."""
        torch._foreach_copy_(self._inputs, [tensor for _, tensor in tree_leaves(batches)])
        self._graph.replay()
        return self._result._replace(values=self._result.values.clone())


class StepGraphs:
    """Graphs of a run's steps, one for each form of batches, up to two; `reason` says why there are none.

    After `NUM_WARM` steps, the first of a form is watched: where the host waits in it, sends or draws numbers, no step
    is captured. The next one is; and the one after is replayed and computed, from one state: the graph is kept if both
    have the same numbers. What the first steps do not read of their batches has no part in the form.
    """

    def __init__(self, device: torch.device, *, reason: str = "", is_strict: bool = False) -> None:
        self._device = device
        self.reason = reason
        self.num_replayed = 0
        self._is_strict = is_strict
        self._num_tracked = 0
        self._read: dict[str, None] = {}
        self._seen: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, _Captured] = {}

    def run(
        self, key: Hashable, batches: Sequence[Batch], work: Work, state: Callable[[], list[Tensor]]
    ) -> tuple[StepValues, bool]:
        """Do the work of a step; return its values, and whether a graph was replayed.

        `state` lists the tensors that the work changes; `key` holds the numbers of the host that it depends on.
        """
        if self.reason:
            return work(batches), False
        if self._num_tracked < NUM_WARM:
            return self._track(work, batches), False
        batches = [{name: batch[name] for name in self._read if name in batch} for batch in batches]
        form = (key, tuple((path, tensor.shape, tensor.dtype) for path, tensor in tree_leaves(batches)))
        graph = self._graphs.get(form)
        if graph is not None and graph.is_compared:
            self.num_replayed += 1
            return graph.replay(batches), True
        if graph is not None:
            return self._compare(graph, batches, work, state), False
        self._seen[form] += 1
        if self._seen[form] == 1:
            return self._watch(work, batches), False
        if len(self._graphs) < _MAX_GRAPHS:
            self._capture(form, work, batches)
        return work(batches), False

    def _track(self, work: Work, batches: Sequence[Batch]) -> StepValues:
        """Note what the work reads of its batches: the rest, such as names of files, is no part of their form."""
        tracked = [ReadTrackingDict(batch) for batch in batches]
        values = work(tracked)
        self._num_tracked += 1
        self._read = dict.fromkeys([*self._read, *(name for batch in tracked for name in batch.read)])
        return values

    def _watch(self, work: Work, batches: Sequence[Batch]) -> StepValues:
        before = _host_states()
        with noted_sends() as sends, _noted_waits() as waits:
            values = work(batches)
        if waits or sends:
            self._give_up(f"the host {'waits' if waits else 'sends numbers'} in a step, at {[*waits, *sends][0]}")
        elif before != _host_states():
            self._give_up("the host draws numbers in a step: a graph would repeat the first ones")
        return values

    def _capture(self, form: Hashable, work: Work, batches: list[Batch]) -> None:
        states = RandomStates.read(self._device)
        try:
            self._graphs[form] = _Captured(work, batches)
        except RuntimeError as error:  # an operation that no graph can hold
            torch.cuda.synchronize(self._device)
            states.restore(self._device)
            self._give_up(f"a step cannot be captured: {' '.join(str(error).split())[:200]}")

    def _compare(
        self, graph: _Captured, batches: list[Batch], work: Work, state: Callable[[], list[Tensor]]
    ) -> StepValues:
        """Replay a step, take it back, and compute it: numbers that a graph froze would show now."""
        tensors, states = state(), RandomStates.read(self._device)
        before = [tensor.detach().clone() for tensor in tensors]
        found = graph.replay(batches).values
        after = [tensor.detach().clone() for tensor in tensors]
        with torch.no_grad():
            torch._foreach_copy_(tensors, before)
        states.restore(self._device)
        values = work(batches)
        share = 0.0 if self._is_strict else _MAX_DIFFERENCE
        is_equal = torch.allclose(found, values.values, rtol=share, atol=share, equal_nan=True)
        if self._is_strict:
            is_equal = is_equal and all(map(torch.equal, after, tensors))
        graph.is_compared = True
        if not is_equal:
            self._graphs.clear()
            self._give_up(
                f"a replayed step has other numbers than the step itself: {found.tolist()}, not "
                f"{values.values.tolist()}; something in it is decided on the host"
            )
        else:
            logger.info("steps are replayed as a CUDA graph (train.graph)")
        return values

    def _give_up(self, reason: str) -> None:
        self.reason = reason
        logger.info("steps are not replayed as a CUDA graph: %s", reason)


def _host_states() -> tuple[Any, ...]:
    """States of the generators of the host, to compare them."""
    return random.getstate(), str(np.random.get_state()), bytes(torch.get_rng_state().numpy())


@contextmanager
def _noted_waits() -> Iterator[list[str]]:
    """Context that notes the places where the host waits for the device, as torch reports them."""
    places: list[str] = []

    def note(message: Any, *arguments: Any, **named: Any) -> None:
        if "called a synchronizing" in str(message):
            places.append(find_place())

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")


def find_place() -> str:
    """Return file and line of the innermost frame of the package outside of the engine and of `waits`."""
    outer = ("/engine/", "/ops/waits.py")
    frames = [f for f in traceback.extract_stack() if "/sightline/" in f.filename]
    inner = [f for f in frames if not any(part in f.filename for part in outer)] or frames
    return f"{inner[-1].filename.rpartition('/sightline/')[2]}:{inner[-1].lineno}" if inner else "an unknown place"
