"""Profiling of a few real training steps by torch's profiler, in the engine's own unchanged loop."""

from __future__ import annotations

import gzip
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from sightline.describe.memory import persistent_bytes, storage_bytes
from sightline.describe.profiler_trace import MODULE, StepCosts, compute_step_costs
from sightline.describe.trace import source_location
from sightline.engine.distributed import World
from sightline.engine.records import StepRecord
from sightline.engine.train import TrainState, train
from sightline.errors import RunError, UserError, summarise_error
from sightline.module_hooks import module_hooks
from sightline.runs.output_files import write_file

__all__ = ["NUM_WARM", "Profile", "format_source_location", "profile_steps", "run_steps"]

NUM_WARM = 2
"""Number of warm-up steps: they compile kernels, fill memory pools, make the optimiser's state."""


@dataclass(frozen=True)
class Profile:
    """Profile of training steps: their costs, and the loop's records including the `NUM_WARM` steps before."""

    costs: StepCosts
    records: tuple[StepRecord, ...]
    places: dict[str, tuple[str, str]]
    """Class, and its file and line, for the path of each module."""


def profile_steps(job: TrainState, world: World, *, num_steps: int, trace: Path | None = None) -> Profile:
    """Train `NUM_WARM` and `num_steps` further steps and profile the latter; write the trace to `trace` (gzip).

    The computed numbers do not change. A model compiled by `train.compile` is traced as one piece.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if world.device.type == "cuda" else [])]
    profiler_schedule = schedule(wait=NUM_WARM - 1, warmup=1, active=num_steps, repeat=1)
    paths = {} if job.compile else {module: path for path, module in job.model.named_modules()}
    profiler = profile(activities=activities, schedule=profiler_schedule, profile_memory=True)
    resident: list[int] = []

    def after(record: StepRecord) -> None:
        resident.append(storage_bytes(chain(*persistent_bytes(job).values())))
        with _without_native_lines():
            profiler.step()

    with _without_native_lines():
        profiler.start()
    try:
        with _record_calls(paths):
            records = run_steps(job, world, NUM_WARM + num_steps, after)
    finally:
        with _without_native_lines():
            profiler.stop()
    costs = compute_step_costs(_export_trace(profiler, trace), resident_bytes=resident[NUM_WARM - 1])
    kinds = {path: type(module) for path, module in job.model.named_modules()}
    locations = {kind: format_source_location(kind) for kind in set(kinds.values())}
    return Profile(costs, tuple(records), {path: (kind.__name__, locations[kind]) for path, kind in kinds.items()})


def run_steps(job: TrainState, world: World, count: int, after: Callable[[StepRecord], None]) -> list[StepRecord]:
    """Run the loop from `job.step` for `count` steps, call `after` after each, and return the loop's records.

    Raises RunError if a step fails.
    """
    records: list[StepRecord] = []

    def at_step(record: StepRecord, stop_asked: bool) -> bool:
        records.append(record)
        after(record)
        return stop_asked or len(records) == count

    try:
        train(job, world, at_step)
    except (UserError, RunError):
        raise
    except Exception as error:
        raise RunError(
            f"a training step failed: {summarise_error(error)}; `sightline check` names the cause"
        ) from error
    return records


def format_source_location(kind: type) -> str:
    """Format the file and line of a class: relative to its package if it has one, else the full path."""
    file, line = source_location(kind)
    if not file:
        return ""
    module_file = "/".join(kind.__module__.split(".")) + ".py"
    return f"{module_file if file.endswith('/' + module_file) else file}:{line}"


@contextmanager
def _record_calls(paths: Mapping[nn.Module, str]) -> Iterator[None]:
    """Context in which calls of these modules are recorded as spans with their paths."""
    spans: list[record_function] = []

    def enter(module: nn.Module, *_: Any) -> None:
        spans.append(record_function(MODULE + paths[module]))
        spans[-1].__enter__()

    def leave(*_: Any) -> None:
        spans.pop().__exit__(None, None, None)

    with module_hooks(paths, enter, leave):
        yield


def _export_trace(profiler: profile, path: Path | None) -> list[dict[str, Any]]:
    """Export the trace to `path` if it is given, and return its events."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        try:
            text = file.read_bytes()
            events: list[dict[str, Any]] = json.loads(text)["traceEvents"]
        except (OSError, ValueError) as error:  # torch does not report disk errors
            raise RunError(
                f"{file}: torch's profiler could not write its trace; free some space there, or set TMPDIR to a folder "
                "with room"
            ) from error
    write_file(path, gzip.compress(text, mtime=0))
    return events


@contextmanager
def _without_native_lines() -> Iterator[None]:
    """Context that drops native libraries' output to standard error, such as the profiler's start message."""
    sys.stderr.flush()
    saved_descriptor, null_descriptor = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null_descriptor, 2)
        yield
    finally:
        os.dup2(saved_descriptor, 2)
        os.close(saved_descriptor)
        os.close(null_descriptor)
