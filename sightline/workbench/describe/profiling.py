"""Profiling of a few real training steps by torch's profiler, in the engine's own unchanged loop."""

from __future__ import annotations

import gzip
import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.profiler import ProfilerAction, ProfilerActivity, profile, record_function, schedule

from sightline.contract.errors import RunError, UserError, summarise_error
from sightline.contract.pytree import tree_leaves
from sightline.engine.distributed import World
from sightline.engine.loop import train
from sightline.engine.records import StepRecord
from sightline.engine.train import TrainState
from sightline.instrument import ModuleCall, record
from sightline.instrument.memory import peak_rise
from sightline.runs.output_files import write_file
from sightline.runs.process_folder import process_folder

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
    rise = peak_rise(profiler.profiler.kineto_results.events(), world.device)  # type: ignore[union-attr]
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
    with process_folder("profile") as folder:
        file = folder / "trace.json"
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

    def at_step(record: StepRecord, stop_requested: bool) -> bool:
        records.append(record)
        after(record)
        return stop_requested or len(records) == count

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


def time_steps(job: TrainState, world: World, num_steps: int) -> dict[str, Any]:
    """Time steps after two to warm up: mean seconds of a step and, by name, of its parts, and its samples."""
    records = run_steps(job, world, NUM_WARM + num_steps, lambda record: None)
    return {
        "num_samples": mean_num_samples(records[NUM_WARM:]),
        "step_s": (records[-1].wall_s - records[NUM_WARM - 1].wall_s) / num_steps,
        "parts": {row["part"]: row["seconds"] for row in measure_parts(records[NUM_WARM:])},
    }


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
