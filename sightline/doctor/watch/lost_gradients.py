"""Backward passes whose gradients no update uses, and code that reads gradients itself."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

import torch
from torch import Tensor

from sightline.doctor.program_code import is_of_library
from sightline.doctor.rules import find_by
from sightline.doctor.rules.gradients import NUM_LOST, lost_passes
from sightline.doctor.watch.gradients import is_cleared, needs_inputs
from sightline.doctor.watch.loop import CallSite, Found, Loop, Monitor, OptimizerTrack, take_local

_NUM_COMPARED, _MAX_CALLS = 256, 16
_IGNORED_CODE = (str(Path(__file__).resolve().parents[2]), str(Path(torch.__file__).parent))
_OBSERVERS = tuple(str(Path(_IGNORED_CODE[0], name)) for name in ("doctor", "instrument")) + _IGNORED_CODE[1:]
_NOT_READING = re.compile(
    r"(zero|no|enable|requires|is|set|clip|unscale|retain)_grad|retain_graph|scaler|accum|checkpoint|(^|_)graph", re.I
)


class LostMonitor(Monitor):
    """Backward passes, each of a batch of its own, whose gradients are cleared before updates use or code reads them.

    Not those of inputs (adversarial examples), nor between which weights change (SAM). Nobody can ask a tensor whether
    it was read. Two facts show it: the update uses other gradients than the last pass has left, apart from a factor and
    bounds, so that the loop computes its own (PCGrad, A-GEM, clipping of each sample); and, of passes from another line
    than those that updates use (a saliency map, the norm of a small batch), code that runs then has names of gradients.
    """

    def __init__(self) -> None:
        self._last: tuple[int, int, list[int]] | None = None
        self._needs_inputs = False
        self._num_passes = 0
        self._site: CallSite = ()
        self._lost_sites: list[CallSite] = []
        self._reads: dict[CallSite, bool] = {}
        self._left: dict[int, Tensor] = {}
        self._is_written: Tensor | None = None
        self._reached: list[OptimizerTrack] = []
        self._histories: dict[int, list[tuple[int, int]]] = {}
        """Lost and all passes before the last updates of each optimiser."""

    def before_backward_measured(self, loop: Loop, root: Tensor) -> None:
        is_new = self._last is not None and self._last[1] != loop.num_forwards
        is_same = self._last is not None and self._last[::2] == (loop.step, _list_versions(loop))
        if self._reached and is_new and is_same and not self._needs_inputs and all(map(is_cleared, self._reached)):
            self._lost_sites.append(self._site)

    def after_backward_measured(self, loop: Loop) -> None:
        tracks = loop.tracks.values()
        reached = [track for track in tracks if track.marks() != track.before_backward]
        if tracks and not reached:
            return  # such as the pass of a generator through a frozen critic
        self._reached = reached
        self._num_passes += 1
        self._last = loop.step, loop.num_forwards, _list_versions(loop)
        self._site = loop.call_site
        if self._site not in self._reads:
            self._reads[self._site] = any(map(_is_of_gradients, list_running_names()))
        self._needs_inputs = needs_inputs(loop)
        self._left = {}
        for track in tracks if self._lost_sites else ():
            self._left |= {id(p): _take_gradient(p).clone() for p in _list_dense(track)}

    def before_update_measured(self, loop: Loop, track: OptimizerTrack) -> None:
        pairs = [(self._left[id(p)], _take_gradient(p)) for p in _list_dense(track) if id(p) in self._left]
        pairs = [(left, now) for left, now in pairs if left.shape == now.shape and left.device == pairs[0][0].device]
        if pairs:
            before, now = (torch.cat([pair[i] for pair in pairs]).sign() for i in range(2))
            is_other = ((before * now < 0) | ((before == 0) & (now != 0))).any()
            self._is_written = is_other if self._is_written is None else self._is_written.to(is_other.device) | is_other

    def after_update_measured(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        lost = sum(site == self._site or not self._reads[site] for site in self._lost_sites)
        total = self._num_passes
        self._lost_sites, self._num_passes = [], 0
        if not total:  # the update of another optimiser has used the same passes
            return
        history = self._histories[id(track)] = [*self._histories.get(id(track), [])[1 - NUM_LOST :], (lost, total)]
        if found := find_by(lost_passes, optimizer=track.name, lost_passes=history):
            is_written = torch.zeros(()) if self._is_written is None else self._is_written.float()
            yield from loop.reader.read_if(is_written, *found, expected=False)


def trace_calls() -> CallSite:
    """Trace the last calls that lead to the caller, without those of torch and of what observes it."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_OBSERVERS):
        frame = frame.f_back
    calls: list[tuple[int, int]] = []
    while frame is not None and len(calls) < _MAX_CALLS:
        calls.append((id(frame.f_code), frame.f_lasti))
        frame = frame.f_back
    return tuple(calls)


def list_running_names() -> set[str]:
    """List the names in the user's functions that run now, and in those of a library that they call."""
    frame, names, is_called = sys._getframe(1), set[str](), True
    while frame is not None:
        path = frame.f_code.co_filename
        is_library = is_of_library(path)
        is_called = is_called and is_library
        if not path.startswith(_IGNORED_CODE) and (is_called or not is_library):
            names |= _list_names(frame.f_code)
        frame = frame.f_back  # type: ignore[assignment]
    return names


def _list_names(code: CodeType) -> set[str]:
    inner = (_list_names(value) for value in code.co_consts if isinstance(value, CodeType))
    return {*code.co_names, *code.co_varnames, *code.co_freevars}.union(*inner)


def _is_of_gradients(name: str) -> bool:
    """Return True for a name by which gradients are read, as `grad`, `store_gradients`, `register_forward_hook`."""
    return "hook" in name or ("grad" in name.lower() and not _NOT_READING.search(name))


def _list_dense(track: OptimizerTrack) -> list[Tensor]:
    """List the probes of an optimiser that have a gradient in the common form."""
    return [p for p in track.probes if p.grad is not None and p.grad.layout == torch.strided]


def _take_gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return take_local(parameter.grad.detach()).flatten()[:_NUM_COMPARED].float()


def _list_versions(loop: Loop) -> list[int]:
    return [probe._version for track in loop.tracks.values() for probe in track.probes]
