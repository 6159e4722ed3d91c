"""Profiling of a few real training steps by torch's profiler, in the engine's own unchanged loop.

Document of a profile: tables by part of the step, kind of work and module, each summing to the step.

Comparison of training steps under several settings, interleaved so that slow minutes affect all of them.
"""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
import os
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.profiler import ProfilerAction, ProfilerActivity, profile, record_function, schedule

from sightline.config import RunConfig
from sightline.config.overrides import split_values
from sightline.contract.errors import RunError, UserError, summarise_error
from sightline.contract.schema import suggest
from sightline.engine.build import TrainingSetup
from sightline.engine.device import seed_everything, set_backends
from sightline.engine.distributed import World
from sightline.engine.loop import train
from sightline.engine.records import StepRecord
from sightline.engine.train import TrainState
from sightline.instrument import ModuleCall, record
from sightline.runs.run_directory import write_file
from sightline.workbench.describe.memory import persistent_bytes, storage_bytes
from sightline.workbench.describe.profiler_trace import MODULE, Cost, Key, StepCosts, compute_step_costs
from sightline.workbench.describe.trace import source_location

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
    profiler = profile(activities=activities, schedule=profiler_schedule, profile_memory=True)
    resident: list[int] = []

    def after(record: StepRecord) -> None:
        resident.append(storage_bytes(chain(*persistent_bytes(job).values())))
        with _without_native_lines():
            profiler.step()

    with _without_native_lines():
        profiler.start()
    try:
        with nullcontext() if job.compile else _record_spans(job.model):
            records = run_steps(job, world, NUM_WARM + num_steps, after)
    finally:
        if profiler.current_action is not ProfilerAction.WARMUP:  # to stop there would record first: a GPU's crashes
            with _without_native_lines():
                profiler.stop()
    text, events = _read_trace(profiler)
    world.rank_zero_only(write_file)(trace, gzip.compress(text, mtime=0))
    costs = compute_step_costs(events, resident_bytes=resident[NUM_WARM - 1])
    kinds = {path: type(module) for path, module in job.model.named_modules()}
    locations = {kind: format_source_location(kind) for kind in set(kinds.values())}
    return Profile(costs, tuple(records), {path: (kind.__name__, locations[kind]) for path, kind in kinds.items()})


def run_steps(
    job: TrainState,
    world: World,
    count: int,
    after: Callable[[StepRecord], None],
    is_read_after: Callable[[int], bool] = lambda step: True,
) -> list[StepRecord]:
    """Run the loop from `job.step` for `count` steps, call `after` after each, and return the loop's records.

    The numbers of a GPU are read after the steps for which `is_read_after` is True, as `engine.train.train` has it.
    Raises RunError if a step fails.
    """
    records: list[StepRecord] = []

    def at_step(record: StepRecord, stop_asked: bool) -> bool:
        records.append(record)
        after(record)
        return stop_asked or len(records) == count

    try:
        train(job, world, at_step, is_read_after=is_read_after)
    except (UserError, RunError):
        raise
    except Exception as error:
        raise RunError(
            f"a training step failed: {summarise_error(error)}; `sightline check` names the cause"
        ) from error
    return records


def mean_num_samples(records: Sequence[StepRecord]) -> float:
    """Return the mean number of samples of a step: that of the batch size, and less if the end of an epoch is read."""
    return statistics.fmean(record.num_samples for record in records)


def format_source_location(kind: type) -> str:
    """Format the file and line of a class: relative to its package if it has one, else the full path."""
    file, line = source_location(kind)
    if not file:
        return ""
    module_file = "/".join(kind.__module__.split(".")) + ".py"
    return f"{module_file if file.endswith('/' + module_file) else file}:{line}"


def _record_spans(model: nn.Module) -> AbstractContextManager[Any]:
    """Context in which calls of modules are recorded as spans with their paths."""
    spans: list[record_function] = []

    def enter(call: ModuleCall, *_: Any) -> None:
        spans.append(record_function(MODULE + call.path))
        spans[-1].__enter__()

    def leave(*_: Any) -> None:
        spans.pop().__exit__(None, None, None)

    return record(model, enter=enter, leave=leave)


def _read_trace(profiler: profile) -> tuple[bytes, list[dict[str, Any]]]:
    """Return the trace as JSON, and its events. Raises RunError if the disk has no room for it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        try:
            text = file.read_bytes()
            return text, json.loads(text)["traceEvents"]
        except (OSError, ValueError) as error:  # torch does not report disk errors
            raise RunError(
                f"{file}: torch's profiler could not write its trace; free some space there, or set TMPDIR to a folder "
                "with room"
            ) from error


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


def measure_processes(records: Sequence[StepRecord], world: World) -> dict[str, Any]:
    """Measure on each of several processes the mean seconds of a step, and those in which it waited for gradients."""
    if world.size == 1:
        return {}
    means = {
        "step_s": statistics.fmean(sum(record.seconds.values()) for record in records),
        "reduce_s": statistics.fmean(record.seconds["reduce"] for record in records),
    }
    texts = world.gather_text(json.dumps(means), operation="times of steps")
    return {"processes": [{"rank": rank, **json.loads(text)} for rank, text in enumerate(texts)]}


Costs = list[tuple[Key, Cost]]


def profile_document(profile: Profile) -> dict[str, Any]:
    """Build the document: seconds and peak bytes; `parts`, `kinds`, and `modules` with `outside` each sum to the step.

    Rows of `modules` are the costs of the module itself; `seconds_with_inner` adds those of inner modules.
    """
    costs = profile.costs
    parts, kinds, modules = (_group_costs(costs.costs, key_index) for key_index in (0, 2, 1))
    outside = modules.pop(None, [])
    inner = {
        path: sum(cost.seconds for name, rows in modules.items() if _is_inside(name, path) for _, cost in rows)
        for path in costs.calls
    }
    return {
        "num_steps": costs.num_steps,
        "step_s": costs.step_s,
        "resident_bytes": costs.resident_bytes,
        "peak_bytes": costs.peak_bytes,
        "parts": [
            {"part": part, **_row(rows), "seconds_in_modules": sum(c.seconds for key, c in rows if key[1] is not None)}
            for part, rows in parts.items()
        ],
        "kinds": [
            {"kind": kind, **_row(rows), "peak_bytes": costs.kind_peaks.get(kind)} for kind, rows in kinds.items()
        ],
        "modules": [
            {"path": path, "class": profile.places[path][0], "place": profile.places[path][1], "calls": calls}
            | _row(modules.get(path, []))
            | {"seconds_with_inner": inner[path], "peak_bytes": costs.peaks.get(path)}
            for path, calls in costs.calls.items()
        ],
        "outside": _row(outside),
    }


def sum_rows(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum the additive columns of several rows."""
    rows = list(rows)
    return {name: sum(row[name] for row in rows) for name in ("seconds", "seconds_backward", "bytes_at_peak")}


def _group_costs(costs: Mapping[Key, Cost], key_index: int) -> dict[Any, Costs]:
    groups: dict[Any, Costs] = {}
    for key, cost in costs.items():
        groups.setdefault(key[key_index], []).append((key, cost))
    return groups


def _row(rows: Costs) -> dict[str, Any]:
    return sum_rows(
        {
            "seconds": cost.seconds,
            "seconds_backward": cost.seconds if key[0] == "backward" else 0.0,
            "bytes_at_peak": cost.bytes_at_peak,
        }
        for key, cost in rows
    )


def _is_inside(name: str, path: str) -> bool:
    return not path or name == path or name.startswith(f"{path}.")


_NAMED_SETTINGS = {
    **{name: f"train.precision={name}" for name in ("bf16", "fp16", "tf32", "float32", "float64")},
    "channels_last": "model.channels_last=true",
    "compile": "train.compile=true",
}
_KEYS = frozenset(field.name for field in dataclasses.fields(RunConfig))
_MAX_THREADS = 1024
_COUNT_SETTINGS = {"workers": "loader.workers", "prefetch": "loader.prefetch", "micro_batches": "train.micro_batches"}


@dataclass(frozen=True)
class Setting:
    """Setting to try: overrides of the config, and the number of threads if it differs from the process's."""

    name: str
    overrides: tuple[str, ...] = ()
    threads: int | None = None


class SettingTrial(NamedTuple):
    """Setting with the run built under it."""

    setting: Setting
    built: TrainingSetup


def parse_settings(texts: Sequence[str]) -> list[Setting]:
    """Parse the settings of `--try bf16,workers=0+threads=2`: commas between settings, plus signs within one.

    Raises UserError for unknown settings.
    """
    names = [name for text in texts for name in split_values(text)]
    settings = [_parse_setting(name) for name in names]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UserError(f"--try: a setting is given twice: {', '.join(twice)}")
    return settings


def name_setting(overrides: Sequence[str]) -> Setting:
    """Return the setting of overrides that all have a short name, by which `--try` takes it: `bf16+channels_last`."""
    names = {override: name for name, override in _NAMED_SETTINGS.items()}
    return Setting("+".join(names[override] for override in overrides), tuple(overrides))


def try_settings(
    trials: Sequence[SettingTrial], world: World, *, num_steps: int, num_rounds: int, note: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Run the same steps under every setting, in rounds A B C, C B A; return a row each, compared with the first.

    `seconds` of a row are the medians of its rounds, `step_s` their median, `ratio` the speed-up over the first setting
    in the same round (`low` to `high`), `data_share` the share of time waiting for data, `num_samples` the mean of a
    step, `loss` that of the last step.
    The first step of a round, in which workers start, is not counted. `peak_bytes` is that of a traced step. Raises
    RunError naming the setting if a step fails.
    """
    rows: dict[str, dict[str, Any]] = {}
    for trial in trials:
        with _apply_setting(trial):
            peak = profile_steps(trial.built.job, world, num_steps=1).costs.peak_bytes
        constant_entries = {
            "name": trial.setting.name,
            "batch_size": trial.built.config.train.batch_size,
            "peak_bytes": peak,
        }
        rows[trial.setting.name] = {**constant_entries, "seconds": [], "shares": []}
    for number in range(num_rounds):
        note(f"round {number + 1} of {num_rounds}")
        for trial in trials if number % 2 == 0 else reversed(trials):
            with _apply_setting(trial):
                records = run_steps(trial.built.job, world, 1 + num_steps, lambda record: None)
            times = [later.wall_s - earlier.wall_s for earlier, later in itertools.pairwise(records)]
            row = rows[trial.setting.name]
            row["seconds"].append(statistics.median(times))
            row["shares"].append(sum(record.seconds.get("data", 0.0) for record in records[1:]) / sum(times))
            row["num_samples"] = mean_num_samples(records[1:])
            row["loss"] = records[-1].losses["total"]
    first = rows[trials[0].setting.name]
    return [row | _compare_rounds(first, row, row.pop("shares")) for row in rows.values()]


def _compare_rounds(first: Mapping[str, Any], row: Mapping[str, Any], shares: Sequence[float]) -> dict[str, Any]:
    """Compare the rounds of a setting with those of the first; a verdict needs at least three rounds that all agree.

    If the number of samples of a step differs, the time per sample is compared.
    """
    seconds, samples = row["seconds"], row["num_samples"] / first["num_samples"]
    ratios = sorted(
        samples * baseline_s / setting_s for baseline_s, setting_s in zip(first["seconds"], seconds, strict=True)
    )
    verdict = "faster" if ratios[0] > 1.0 else "slower" if ratios[-1] < 1.0 else ""
    return {
        "step_s": statistics.median(seconds),
        "data_share": statistics.median(shares),
        "ratio": statistics.median(ratios),
        "low": ratios[0],
        "high": ratios[-1],
        "verdict": verdict if verdict and len(ratios) >= 3 else "no clear difference",
    }


@contextmanager
def _apply_setting(trial: SettingTrial) -> Iterator[None]:
    """Context in which a trial's settings are applied and its job is at step 0; restores the number of threads."""
    threads, config = torch.get_num_threads(), trial.built.config
    set_backends(config.train)
    seed_everything(config.seed, 1)  # all settings draw the same numbers
    trial.built.job.step = 0
    try:
        torch.set_num_threads(trial.setting.threads or threads)
        with name_setting_in_errors(trial.setting):
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def name_setting_in_errors(setting: Setting) -> Iterator[None]:
    """Context that adds the setting's name to errors."""
    try:
        yield
    except (UserError, RunError) as error:
        error.args = (f"--try {setting.name}: {error}",)
        raise


def _parse_setting(name: str) -> Setting:
    overrides: list[str] = []
    threads = None
    for part in re.split(r"\+(?=[A-Za-z])", name):
        key, equals, value = (word.strip() for word in part.partition("="))
        if key == "threads" and equals:
            if not (value.isascii() and value.isdecimal() and len(value) <= 4 and 1 <= int(value) <= _MAX_THREADS):
                raise UserError(f"--try {name}: found {part!r}, allowed is threads=N, N from 1 to {_MAX_THREADS}")
            threads = int(value)
        elif (key in _COUNT_SETTINGS or "." in key or key in _KEYS) and equals:
            overrides.append(f"{_COUNT_SETTINGS.get(key, key)}={value}")
        elif part.strip() in _NAMED_SETTINGS:
            overrides.append(_NAMED_SETTINGS[key])
        else:
            valid_names = [*_NAMED_SETTINGS, *_COUNT_SETTINGS, "threads"]
            allowed = ", ".join(word if word in _NAMED_SETTINGS else f"{word}=N" for word in valid_names)
            hint = suggest(key, valid_names, otherwise="")
            raise UserError(f"--try {name}: found {part!r}, allowed are {allowed} and KEY=VALUE of the config{hint}")
    keys = [override.partition("=")[0] for override in overrides]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(f"--try {name}: {twice} is given twice; put a comma between two settings")
    return Setting(name, tuple(overrides), threads)
