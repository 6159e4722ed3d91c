"""Figures that an evaluation computes of each batch and keeps: by which functions, of what."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from types import FrameType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.doctor.attempts import MissingError, attempt
from sightline.doctor.evidence.programs.averaged import ScoreCall, compare_scores, find_function, read_call, read_number
from sightline.doctor.objects import read_variables
from sightline.doctor.program_code import is_of_program
from sightline.doctor.rules import find_by
from sightline.doctor.rules.programs.averaged import averaged_over_batches
from sightline.doctor.watch.loop import ForwardCall, Found, Loop, Monitor, OptimizerTrack

_NUM_PASSES, _MIN_CALLS, _MAX_FRAMES, _MAX_MEMBERS, _MAX_NUMBERS = 4, 2, 4, 16, 1_000_000
"""Evaluation passes after which calls are looked at, and what is read of them."""
_TORCH = os.path.dirname(torch.__file__)


class ScoreMonitor(Monitor):
    """Functions of a batch that the loop calls behind a pass without a gradient, in the first passes of an evaluation.

    The calls of the loop's own functions alone are read, by the interpreter's profile, unless another one is on. Those
    that are kept in a list, or added up, are asked again at the end of the loop, of several batches at once.
    """

    def __init__(self) -> None:
        self._num_passes = 0
        self._error: Exception | None = None
        self._frames: dict[int, FrameType] = {}
        self._open: dict[int, tuple[FunctionType, dict[str, Any], int]] = {}
        self._fresh: list[ScoreCall] = []
        self._numbers: dict[str, float] = {}
        self._calls: dict[Any, list[ScoreCall]] = {}
        self._kept: dict[Any, list[bool]] = {}

    def on_forward(self, loop: Loop, call: ForwardCall) -> None:
        """End the record of the last pass, and begin that of this one."""
        self._stop()
        self._raise_error()
        if self._num_passes > _NUM_PASSES:
            return
        frames = [] if call.has_gradient else list_frames(sys._getframe())
        if self._fresh or frames:
            self._take(frames)
        if frames and loop.step:
            self._num_passes += 1
            self._numbers = _read_numbers(frames)
            is_small = all(tensor.numel() <= _MAX_NUMBERS for tensor in call.outputs.values())
            if self._num_passes <= _NUM_PASSES and is_small and sys.getprofile() is None:
                self._frames = {id(frame): frame for frame in frames}
                sys.setprofile(self._profile)

    def _stop(self) -> None:
        if sys.getprofile() == self._profile:
            sys.setprofile(None)
        self._frames.clear()
        self._open.clear()

    def _raise_error(self) -> None:
        """Raise the error of the profile where the watch counts it among its failed checks."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _profile(self, frame: FrameType, event: str, value: Any) -> None:
        try:
            self._record(frame, event, value)
        except Exception as error:  # noqa: BLE001 - here it would be raised in the program that is watched
            self._num_passes, self._error = _NUM_PASSES + 1, error
            self._stop()

    def _record(self, frame: FrameType, event: str, value: Any) -> None:
        if event == "call" and id(frame.f_back) in self._frames:
            code = frame.f_code
            is_read = not code.co_filename.startswith(_TORCH) and not code.co_name.startswith("<")
            read = read_call(code, frame.f_locals) if is_read else None
            if read is not None and (function := find_function(frame)) is not None:
                self._open[id(frame)] = (function, *read)
        elif event == "return" and id(frame) in self._open:
            function, arguments, size = self._open.pop(id(frame))
            if (number := read_number(value)) is not None:
                self._fresh.append(ScoreCall(function, arguments, size, number))
        elif event == "return" and id(frame) in self._frames:
            self._stop()

    def _take(self, frames: list[FrameType]) -> None:
        """Keep the calls since the last pass, and see which of their numbers the loop has kept."""
        fresh, self._fresh = self._fresh, []
        functions = [call.function for call in fresh]
        numbers = _read_numbers(frames)
        moves = [value - self._numbers.get(name, 0.0) for name, value in numbers.items()]
        for call in fresh:
            self._calls.setdefault(call.function, []).append(call)
            wanted = (call.value, call.value * call.size)
            is_kept = any(math.isclose(move, each, rel_tol=1e-5) for move in moves for each in wanted if each)
            is_alone = functions.count(call.function) == 1
            if frames or not is_alone:
                self._kept.setdefault(call.function, []).append(is_kept and is_alone)

    def before_backward(self, loop: Loop, root: Tensor) -> None:
        """End the record."""
        self._stop()

    def before_update(self, loop: Loop, track: OptimizerTrack) -> None:
        """End the record."""
        self._stop()

    def on_end(self, loop: Loop) -> Iterator[Found]:
        """Ask the functions of which several figures were kept."""
        self._stop()
        self._raise_error()
        self._take([])
        for function, calls in self._calls.items():
            if len(calls) >= _MIN_CALLS and all(kept := self._kept.get(function, [])) and kept:
                found = attempt(function.__name__, compare_scores, {"calls": calls})
                if found is not None and not isinstance(found, MissingError):
                    yield from find_by(averaged_over_batches, averaged=found)


def list_frames(frame: FrameType | None) -> list[FrameType]:
    """List the innermost calls of the program, from a frame on."""
    found: list[FrameType] = []
    while frame is not None and len(found) < _MAX_FRAMES:
        if is_of_program(frame.f_code.co_filename):
            found.append(frame)
        frame = frame.f_back
    return found


def _read_numbers(frames: list[FrameType]) -> dict[str, float]:
    """Read the numbers in variables of calls; of a list, or of those in a mapping, the last one under its place."""
    numbers: dict[str, float] = {}
    for depth, frame in enumerate(frames):
        for name, value in read_variables(frame).items():
            is_mapping = isinstance(value, dict) and len(value) <= _MAX_MEMBERS
            for key, each in value.items() if is_mapping else (("", value),):
                is_list = isinstance(each, list) and each
                number = _read_number(each[-1] if is_list else each)
                if number is not None:
                    numbers[f"{depth}.{name}.{key}.{len(each) if is_list else ''}"] = number
    return numbers


def _read_number(value: Any) -> float | None:
    if isinstance(value, Tensor):
        is_near = value.device.type == "cpu" and value.numel() == 1 and not value.is_complex()
        return float(value.detach()) if is_near else None
    is_number = isinstance(value, int | float | np.number) and not isinstance(
        value, bool | complex | np.complexfloating
    )
    return float(value) if is_number else None
