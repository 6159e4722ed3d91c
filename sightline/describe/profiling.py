"""A few real training steps under torch's profiler: the engine's own loop, nothing in it replaced."""

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
from sightline.describe.profiler_trace import MODULE, StepCosts, costs_of
from sightline.describe.trace import source_location
from sightline.engine.distributed import World
from sightline.engine.records import StepRecord
from sightline.engine.train import TrainState, train
from sightline.errors import RunError, UserError, summarise_error
from sightline.module_hooks import module_hooks
from sightline.runs.output_files import write_file

__all__ = ["NUM_WARM", "Profile", "format_source_location", "profile_steps", "run_steps"]

NUM_WARM = 2
"""Steps before those that are measured: they compile kernels, fill pools, make the optimiser's state."""


@dataclass(frozen=True)
class Profile:
    """What steps showed: their costs, and the loop's records of them, those of the `NUM_WARM` steps before first."""

    costs: StepCosts
    records: tuple[StepRecord, ...]
    places: dict[str, tuple[str, str]]
    """By the path of each module its class, and the file and line of that."""


def profile_steps(job: TrainState, world: World, *, num_steps: int, trace: Path | None = None) -> Profile:
    """Train `NUM_WARM` and `num_steps` further steps and trace the latter, for viewers into the file `trace` (gzip).

    The run computes the same numbers as without. A model that `train.compile` compiles is traced as one piece.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if world.device.type == "cuda" else [])]
    when = schedule(wait=NUM_WARM - 1, warmup=1, active=num_steps, repeat=1)
    paths = {} if job.compile else {module: path for path, module in job.model.named_modules()}
    profiler = profile(activities=activities, schedule=when, profile_memory=True)
    resident: list[int] = []

    def after(record: StepRecord) -> None:
        resident.append(storage_bytes(chain(*persistent_bytes(job).values())))
        with _without_native_lines():
            profiler.step()

    with _without_native_lines():
        profiler.start()
    try:
        with _calls_named(paths):
            records = run_steps(job, world, NUM_WARM + num_steps, after)
    finally:
        with _without_native_lines():
            profiler.stop()
    costs = costs_of(_exported(profiler, trace), resident_bytes=resident[NUM_WARM - 1])
    kinds = {path: type(module) for path, module in job.model.named_modules()}
    places = {kind: format_source_location(kind) for kind in set(kinds.values())}
    return Profile(costs, tuple(records), {path: (kind.__name__, places[kind]) for path, kind in kinds.items()})


def run_steps(job: TrainState, world: World, count: int, after: Callable[[StepRecord], None]) -> list[StepRecord]:
    """Run the loop from `job.step` for so many steps; `after` is called behind each. Returns the loop's records.

    Raises RunError where a step fails.
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
    """The file and line that define a class: below its package where it has one, else the whole path."""
    file, line = source_location(kind)
    if not file:
        return ""
    own = "/".join(kind.__module__.split(".")) + ".py"
    return f"{own if file.endswith('/' + own) else file}:{line}"


@contextmanager
def _calls_named(paths: Mapping[nn.Module, str]) -> Iterator[None]:
    """Calls of these modules are spans in a trace, under their paths."""
    spans: list[record_function] = []

    def enter(module: nn.Module, *_: Any) -> None:
        spans.append(record_function(MODULE + paths[module]))
        spans[-1].__enter__()

    def leave(*_: Any) -> None:
        spans.pop().__exit__(None, None, None)

    with module_hooks(paths, enter, leave):
        yield


def _exported(profiler: profile, path: Path | None) -> list[dict[str, Any]]:
    """The events of a trace, from the file in which it is kept, or from one that is not."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        try:
            text = file.read_bytes()
            events: list[dict[str, Any]] = json.loads(text)["traceEvents"]
        except (OSError, ValueError) as error:  # torch reports no fault of the disk
            raise RunError(
                f"{file}: torch's profiler could not write its trace; free some space there, or set TMPDIR to a folder "
                "with room"
            ) from error
    write_file(path, gzip.compress(text, mtime=0))
    return events


@contextmanager
def _without_native_lines() -> Iterator[None]:
    """What libraries write to standard error by themselves is dropped: the profiler reports its start there."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
