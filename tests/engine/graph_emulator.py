"""CUDA graphs on a CPU: operators are recorded while a step is captured, and run again on the same tensors.

What the host decides while they are recorded stays as it was, as in a graph: numbers, branches, copies of its values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sightline.contract.pytree import tree_leaves
from sightline.contract.types import Batch
from sightline.engine import loop, step_graph
from sightline.engine.queued_step import Gate, QueuedStep
from sightline.engine.step_graph import StepGraphs, StepState
from sightline.ops import waits
from tests.waits import device_form

CPU = torch.device("cpu")


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function.namespace != "profiler":
            self.calls.append((function, args, kwargs or {}, result))
        return result


class EmulatedGraph:
    """Stand-in for `_Captured`: `state` has the tensors that the recorded step changes, which are put back."""

    state: StepState

    def __init__(self, work: Any, batches: list[Batch]) -> None:
        self._inputs = batches
        tensors = self.state.list_all()
        before, random_state = [tensor.detach().clone() for tensor in tensors], torch.get_rng_state()
        with _Recorder() as recorder:
            self._result: QueuedStep = work(self._inputs)
        self._result.release()
        self._calls = recorder.calls
        with torch.no_grad():
            torch._foreach_copy_(tensors, before)
        torch.set_rng_state(random_state)

    @torch.no_grad()
    def replay(self, batches: list[Batch]) -> QueuedStep:
        for (_, own), (_, given) in zip(tree_leaves(self._inputs), tree_leaves(batches), strict=True):
            own.copy_(given)
        for function, args, kwargs, result in self._calls:
            self._write(function, result, function(*args, **kwargs))
        return dataclasses.replace(self._result, values=self._result.values.clone())

    def _write(self, function: Any, old: Any, new: Any) -> None:
        """Write new results where the recorded ones lie, but for views of them and for what was changed in place."""
        if any(each.alias_info is not None for each in function._schema.returns):
            return
        for (_, target), (_, source) in zip(tree_leaves(old), tree_leaves(new), strict=True):
            target.detach().copy_(source)


@contextlib.contextmanager
def emulated_graphs(monkeypatch: pytest.MonkeyPatch, *, is_strict: bool = False) -> Iterator[StepGraphs]:
    """Train in the form of a GPU, whose steps are replayed."""
    graphs = StepGraphs(CPU, is_strict=is_strict)
    run, make = graphs.run, Gate.__init__

    def run_with_state(key: Any, batches: Sequence[Batch], work: Any, state: StepState) -> QueuedStep:
        EmulatedGraph.state = state
        return run(key, batches, work, state)

    def make_sent(gate: Gate, device: torch.device, num_rates: int) -> None:
        make(gate, device, num_rates)
        gate._sent = torch.zeros(num_rates + 1)

    with monkeypatch.context() as patch, device_form(monkeypatch):
        patch.setattr(graphs, "run", run_with_state)
        patch.setattr(loop, "_make_graphs", lambda job, world: graphs)
        patch.setattr(step_graph, "_Captured", EmulatedGraph)
        patch.setattr(step_graph, "_noted_waits", lambda: contextlib.nullcontext([]))
        patch.setattr(step_graph, "_host_states", random.getstate)  # torch's generator stands for that of the device
        patch.setattr(Gate, "__init__", make_sent)
        patch.setattr(Tensor, "pin_memory", lambda self: self)
        patch.setattr(waits, "_is_of_host", lambda values: False)  # but for numbers in lists, that nobody can tell
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        yield graphs
