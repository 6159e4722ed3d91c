"""Profiling of a few real training steps by torch's profiler, in the engine's own unchanged loop.

Comparison of training steps under several settings, interleaved so that slow minutes affect all of them.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerAction, ProfilerActivity, profile, record_function, schedule

from sightline.config.overrides import split_values
from sightline.contract.errors import RunError, UserError, summarise_error
from sightline.contract.pytree import tree_leaves
from sightline.contract.schema import suggest
from sightline.engine.build import TrainingSetup
from sightline.engine.device import seed_everything, set_backends
from sightline.engine.distributed import World
from sightline.engine.loop import train
from sightline.engine.records import StepRecord
from sightline.engine.train import TrainState
from sightline.instrument import ModuleCall, record
from sightline.runs.run_directory import write_file

NUM_WARM = 2
"""Number of warm-up steps: they compile kernels, fill memory pools, make the optimiser's state."""
_MODULE, _BACKWARD, _STEP = "module: ", "autograd::engine::evaluate_function: ", "ProfilerStep*"
"""Beginnings of the names of spans: a module's call, with its path; a node of autograd; a step."""
_END_OF_TRACE = b"}"


def profile_steps(job: TrainState, world: World, *, num_steps: int, trace: Path | None = None) -> dict[str, Any]:
    """Train `NUM_WARM` and `num_steps` further steps and profile the latter; write the trace to `trace` (gzip).

    The computed numbers do not change. A model compiled by `train.compile` is traced as one piece. Returns the seconds
    of a step, the peak bytes of tensors, and the costs of modules and operators.
    """
    on_gpu = world.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    profiler_schedule = schedule(wait=NUM_WARM - 1, warmup=1, active=num_steps, repeat=1)
    profiler = profile(activities=activities, schedule=profiler_schedule, profile_memory=True)
    resident: list[int] = []

    def after(record: StepRecord) -> None:
        resident.append(_persistent_bytes(job))
        profiler.step()

    profiler.start()
    try:
        with nullcontext() if job.compile else _record_spans(job.model):
            run_steps(job, world, NUM_WARM + num_steps, after)
    finally:
        if profiler.current_action is not ProfilerAction.WARMUP:  # to stop there would record first: a GPU's crashes
            profiler.stop()
    if trace is not None:
        world.rank_zero_only(_write_trace)(profiler, trace)
    rise = _peak_rise(profiler.profiler.kineto_results.events(), world.device)  # type: ignore[union-attr]
    costs = compute_costs(profiler.events() or (), num_steps=num_steps, on_gpu=on_gpu)
    classes = {path: type(module).__name__ for path, module in job.model.named_modules()}
    for row in costs["modules"]:
        row["class"] = classes[row["path"]]
    return {"num_steps": num_steps, "peak_bytes": resident[NUM_WARM - 1] + rise, **costs}


def compute_costs(events: Iterable[Any], *, num_steps: int, on_gpu: bool) -> dict[str, Any]:
    """Compute mean seconds a step of all modules and operators, from the profiler's events with their nesting.

    Rows of modules are the time of the module itself, its backward pass too; `seconds_with_inner` adds inner modules.
    On a GPU, seconds are those of its kernels, else those of the training thread. Raises RunError without a step.
    """
    events = [event for event in events if event.device_type.name == "CPU"]
    events.sort(key=lambda event: (event.time_range.start, -event.time_range.end))  # outer ones before inner ones
    steps = [event for event in events if event.name.startswith(_STEP)]
    if not steps:
        raise RunError("the profiler recorded no complete step")
    place_of: dict[int, tuple[str | None, bool]] = {}
    maker_of: dict[int, str | None] = {}
    latest: str | None = None
    forward, backward, operators, calls = (Counter[Any]() for _ in range(4))
    for event in events:
        module, is_backward = place_of.get(id(event.cpu_parent), (None, False))
        if event.name.startswith(_MODULE):
            module = event.name.removeprefix(_MODULE)
            calls[module] += 0 if is_backward else 1
        elif event.name.startswith(_BACKWARD):
            is_backward = True
            # Gradient accumulation runs right after the node that computed the gradient, and has no number.
            module = latest = latest if event.sequence_nr < 0 else maker_of.get(event.sequence_nr, module)
        elif event.sequence_nr >= 0:
            maker_of[event.sequence_nr] = module  # the last operator with this number made the node
        place_of[id(event)] = module, is_backward
        if not on_gpu and event.thread != steps[0].thread:
            continue
        seconds = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6 / num_steps
        (backward if is_backward else forward)[module] += seconds
        if not event.name.startswith((_MODULE, _BACKWARD, _STEP)):
            operators[event.name] += seconds
    total = forward + backward
    return {
        "step_s": sum(step.time_range.elapsed_us() for step in steps) / 1e6 / num_steps,
        "modules": [
            {
                "path": path,
                "calls": count / num_steps,
                "seconds": total[path],
                "seconds_backward": backward[path],
                "seconds_with_inner": sum(total[name] for name in calls if _is_inside(name, path)),
            }
            for path, count in calls.items()
        ],
        "operators": [{"operator": name, "seconds": seconds} for name, seconds in operators.most_common()],
    }


def _is_inside(name: str, path: str) -> bool:
    return not path or name == path or name.startswith(f"{path}.")


def _peak_rise(events: Iterable[Any], device: torch.device) -> int:
    """Sum the changes of a device's memory in the order of time, and return the largest rise, in bytes."""
    kind = device.type.upper()
    changes = [event for event in events if event.name() == "[memory]" and event.device_type().name == kind]
    changes.sort(key=lambda event: event.start_ns())
    return max(0, *itertools.accumulate((event.nbytes() for event in changes), initial=0))


def _persistent_bytes(job: TrainState) -> int:
    """Count the bytes of the tensors that persist between steps: weights, optimiser state, averages, teacher."""
    networks: list[nn.Module | None] = [job.trained_module, job.model, job.ema, job.losses_ema]
    networks.append(getattr(job.task, "teacher", None))
    tensors: list[Tensor] = [tensor for _, tensor in tree_leaves(list(job.optimizer.state.values()))]
    for network in networks:
        tensors += [] if network is None else [*network.parameters(), *network.buffers()]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())  # views share theirs


def _write_trace(profiler: profile, path: Path) -> None:
    """Write the trace for a viewer. Raises RunError if the disk has no room for it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        text = file.read_bytes() if file.exists() else b""
        if not text.rstrip().endswith(_END_OF_TRACE):  # torch does not report disk errors
            raise RunError(
                f"{file}: torch's profiler could not write its trace; free some space there, or set TMPDIR to a folder "
                "with room"
            )
    write_file(path, gzip.compress(text, mtime=0))


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


def _record_spans(model: nn.Module) -> AbstractContextManager[Any]:
    """Context in which calls of modules are recorded as spans with their paths."""
    spans: list[record_function] = []

    def enter(call: ModuleCall, *_: Any) -> None:
        spans.append(record_function(_MODULE + call.path))
        spans[-1].__enter__()

    def leave(*_: Any) -> None:
        spans.pop().__exit__(None, None, None)

    return record(model, enter=enter, leave=leave)


def measure_parts(records: Sequence[StepRecord]) -> list[dict[str, Any]]:
    """Measure the mean seconds of each part of a step by the loop's own clock.

    On a GPU, work that is queued counts for the part that waits for it.
    """
    return [
        {"part": name, "seconds": statistics.fmean(record.seconds.get(name, 0.0) for record in records)}
        for name in records[0].seconds
    ]


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


_PRECISIONS = ("bf16", "fp16", "tf32", "float32", "float64")
_MAX_THREADS = 1024


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
    """Parse the settings of `--try bf16,loader.workers=0+threads=2`: commas between settings, plus signs within one.

    The first is the config as it is, if there are others. Raises UserError for unknown settings.
    """
    names = dict.fromkeys(name for text in texts for name in split_values(text))
    return [Setting("as configured"), *map(_parse_setting, names)] if names else []


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
            peak = profile_steps(trial.built.job, world, num_steps=1)["peak_bytes"]
        row = {"name": trial.setting.name, "batch_size": trial.built.config.train.batch_size, "peak_bytes": peak}
        rows[trial.setting.name] = {**row, "seconds": [], "shares": []}
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
        elif equals:
            overrides.append(f"{key}={value}")
        elif part.strip() in _PRECISIONS:
            overrides.append(f"train.precision={key}")
        else:
            allowed = f"{', '.join(_PRECISIONS)}, threads=N and KEY=VALUE of the config"
            hint = suggest(key, [*_PRECISIONS, "threads"], otherwise="")
            raise UserError(f"--try {name}: found {part!r}, allowed are {allowed}{hint}")
    return Setting(name, tuple(overrides), threads)
