"""Backward passes whose gradients no update uses."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from sightline.contract.pytree import tree_leaves
from sightline.workbench.check.runtime_rules import report
from sightline.workbench.watch.gradients import NUM_LOST, is_cleared
from sightline.workbench.watch.loop import Found, Loop, Monitor, OptimizerTrack


class LostMonitor(Monitor):
    """Backward passes, each of a batch of its own, whose gradients are cleared before any update uses them.

    Not those of inputs (adversarial examples), nor between which weights change (SAM).
    """

    def __init__(self) -> None:
        self._last: tuple[int, int, list[int]] | None = None
        self._needs_inputs = False
        self._num_lost = self._num_passes = 0
        self._history: list[tuple[int, int]] = []

    def before_backward(self, loop: Loop, root: Tensor) -> Iterator[Found]:
        tracks = [track for track in loop.tracks.values() if track.num_backward]
        is_new = self._last is not None and self._last[1] != loop.num_forwards
        is_same = self._last is not None and self._last[::2] == (loop.step, _list_versions(loop))
        if tracks and is_new and is_same and not self._needs_inputs and all(map(is_cleared, tracks)):
            self._num_lost += 1
        yield from ()

    def after_backward(self, loop: Loop) -> Iterator[Found]:
        tracks = loop.tracks.values()
        if tracks and all(track.marks() == track.before_backward for track in tracks):
            return  # such as the pass of a generator through a frozen critic
        self._num_passes += 1
        self._last = loop.step, loop.num_forwards, _list_versions(loop)
        inputs = () if loop.call is None else loop.call.inputs
        self._needs_inputs = any(tensor.requires_grad for _, tensor in tree_leaves(inputs))
        yield from ()

    def after_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        lost, total = self._num_lost, self._num_passes
        self._history = [*self._history[1 - NUM_LOST :], (lost, total)]
        self._num_lost = self._num_passes = 0
        if len(self._history) == NUM_LOST and lost and set(self._history) == {(lost, total)}:
            yield report(
                "gradients-cleared",
                f"the gradients of {lost} of {total} backward passes are cleared before {track.name}.step() uses them",
                causes=("optim.grad_accumulation", "optim.step_order"),
                measured=f"the same at {NUM_LOST} updates in a row; each pass had a batch of its own",
                action="for accumulation call zero_grad() once per update: after step(), not before each backward()",
            )


def _list_versions(loop: Loop) -> list[int]:
    return [probe._version for track in loop.tracks.values() for probe in track.probes]
