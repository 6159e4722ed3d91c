"""Jobs of the GPU's queue, in its order: dearest first within each kind."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import json
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_operators import SHAPES, OperatorShape
from benchmarks.gpu_steps import RECIPE_STEPS, ROOT, RecipeStep, read_launches
from benchmarks.image_networks import (
    Step,
    TextbookSalsaNext,
    make_crowds,
    make_scans,
    retinanet_step,
    salsanext_step,
    textbook_retinanet_step,
)
from benchmarks.networks import make_inputs, make_parts, step_form
from benchmarks.pack_modelnet import unpack
from benchmarks.textbook import TextbookDGCNN, TextbookPCT, TextbookPointNet2, TextbookPointTransformer
from sightline import ops
from sightline.areas.clouds.models.dgcnn import DGCNN
from sightline.areas.clouds.models.pct import PCT
from sightline.areas.clouds.models.pointnet2 import PointNet2
from sightline.config import read_config
from sightline.contract.errors import RunError
from sightline.contract.pytree import tree_leaves
from sightline.engine.build import TrainingSetup, build
from sightline.engine.device.numerics import seed_everything, set_backends
from sightline.engine.device.transfer import to_device
from sightline.engine.distributed import World
from sightline.engine.records import StepRecord
from sightline.ops import numba_kernels
from sightline.ops.operator import OPERATORS
from sightline.ops.waits import deferred_checks
from sightline.workbench.describe.profiling import run_steps

Figures = Mapping[str, float | int | bool | str | None]
_LAUNCH = re.compile(r"cu(da)?(LaunchKernel|LaunchCooperativeKernel|GraphLaunch)")
_TINY = ("train.batch_size=2", "data.train_size=40", "data.test_size=4")
_NUM_WARM = 8
_NUM_BATCHES = 4
"""Steps before those that are timed: a graph of a step is captured and compared in them."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """The device, whether sizes are tiny, the folder of the results, and when the queue's minutes are over."""

    device: torch.device
    is_tiny: bool
    out: Path
    ends_at: float

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def require_gpu(self) -> None:
        if not self.is_gpu:
            raise RunError("needs a GPU: give --device cuda")

    def ms(self, run: Callable[[], Any], repeats: int = 20) -> float:
        """Return the median milliseconds of a call: on a GPU by events of its queue, after three calls to warm up."""
        num_warm, times = 1 if self.is_tiny else _NUM_WARM, []
        with checked_later():
            for _ in range(num_warm + (2 if self.is_tiny else repeats)):
                if self.is_gpu:
                    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                    begin.record()
                    run()
                    end.record()
                    end.synchronize()
                    times.append(begin.elapsed_time(end))
                else:
                    start = time.perf_counter()
                    run()
                    times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times[num_warm:])

    def launches(self, run: Callable[[], Any]) -> int | None:
        """Count the kernels that a call launches, by torch's profiler; None on a CPU."""
        if not self.is_gpu:
            return None
        with checked_later(), profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            run()
            self.wait()
        return count_launches(profiler)


@contextlib.contextmanager
def checked_later() -> Iterator[None]:
    """Defer checks of values as a training step does, so that no call waits for the device; all must hold."""
    with deferred_checks() as checks:
        yield
    if not all(bool(check.holds) for check in checks):
        raise RunError("a check of values failed, or a case that a step computes again occurred")


def count_launches(profiler: profile) -> int:
    return sum(bool(_LAUNCH.match(event.name)) for event in profiler.events())


@dataclasses.dataclass(frozen=True)
class Job:
    """Job of the queue: `seconds` is what it takes on an H100 at most; `unit` that of its times."""

    name: str
    seconds: float
    run: Callable[[Bench], Figures]
    unit: str = "ms"


def list_jobs(is_tiny: bool) -> list[Job]:
    """List the jobs in their order."""
    return [
        Job("host", 15, _measure_host, "us"),
        *(Job(f"step {step.name}", 60, _recipe_job(step)) for step in _sized(RECIPE_STEPS, is_tiny)),
        *(
            Job(f"tf32 {step.name}", 60, _recipe_job(step, "tf32"))
            for step in RECIPE_STEPS
            if step.max_ms and not is_tiny
        ),
        *(Job(f"operator {row.name}", 15, _operator_job(row)) for row in SHAPES if row.has_kernel),
        *(
            Job(f"textbook {name}", 30, _textbook_job(*NETWORKS[name]))
            for name in [*NETWORKS][: 1 if is_tiny else None]
        ),
        *(Job(f"waits {recipe}", 20, _waits_job(recipe)) for recipe in _sized(_list_synthetic(), is_tiny)),
        *(Job(f"strict {step.name}", 40, _strict_job(step)) for step in _sized(RECIPE_STEPS[2:7], is_tiny)),
        Job("boxes3d on both", 30, _compare_boxes3d),
        *(Job(f"training {name}", 120, _training_job(name), "s") for name in TRAININGS),
    ]


def _sized(entries: Sequence[Any], is_tiny: bool) -> Sequence[Any]:
    """Of recipes, the one that takes the least, if all is tiny."""
    small = "classify/synthetic_shapes_pointnet"
    return [entry for entry in entries if getattr(entry, "recipe", entry) == small] if is_tiny else entries


def _measure_host(bench: Bench) -> Figures:
    """Microseconds that the host needs to queue an operator of torch, and one of ours with its check."""
    values, points = torch.zeros(8, device=bench.device), torch.rand(1, 64, 3, device=bench.device)
    figures = {}
    count = 20 if bench.is_tiny else 2000
    calls = {"add_": lambda: values.add_(1), "farthest_points": lambda: ops.farthest_points(points, 2)}
    for name, call in calls.items():
        for _ in range(count // 10):
            call()
        bench.wait()
        start = time.perf_counter()
        with checked_later():
            for _ in range(count):
                call()
            bench.wait()
        figures[name] = 1e6 * (time.perf_counter() - start) / count
    return figures


# --- operators -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def plain_forms() -> Iterator[None]:
    """Compute by the plain forms of all operators: no GPU kernel takes any arguments."""
    with _replaced("_takes", lambda *arguments: False):
        yield


@contextlib.contextmanager
def _replaced(name: str, function: Callable[..., Any]) -> Iterator[None]:
    before = {operator: getattr(operator, name) for operator in OPERATORS.values()}
    try:
        for operator in before:
            setattr(operator, name, function)
        yield
    finally:
        for operator, value in before.items():
            setattr(operator, name, value)


def _operator_job(row: OperatorShape) -> Callable[[Bench], Figures]:
    def run(bench: Bench) -> Figures:
        call = row.make(bench.device, 32 if bench.is_tiny else 1)
        ours, ms = call(), bench.ms(call)
        with _replaced("_check", lambda *arguments: None):
            launches = bench.launches(call)
        with plain_forms():
            plain, plain_ms = call(), bench.ms(call, repeats=5)
        declared = OPERATORS[row.operator].launches
        times: Figures = {"ms": ms, "plain_ms": plain_ms, "launches": launches, "declared": declared}
        return {**times, **compare(ours, plain)}

    return run


def compare(ours: Any, theirs: Any) -> Figures:
    """Compare results: whether all bits are equal, and the largest difference as a share of the largest number."""
    largest, has_equal_bits = 0.0, True
    for (_, actual), (_, expected) in zip(tree_leaves(ours), tree_leaves(theirs), strict=True):
        actual, expected = actual.detach(), expected.detach()
        has_equal_bits &= torch.equal(actual, expected)
        if expected.numel():
            scale = max(float(expected.abs().max()), torch.finfo(torch.float32).tiny)
            off = float((actual.double() - expected.double()).abs().max()) / scale
            largest = largest if off <= largest else off  # NaN, too
    return {"equal_bits": has_equal_bits, "difference": largest}


# --- steps -----------------------------------------------------------------------------------------------------------


def _build(step: RecipeStep, bench: Bench, *overrides: str, precision: str = "float32") -> tuple[TrainingSetup, World]:
    sizes = _TINY if bench.is_tiny else step.overrides
    words = (*sizes, f"train.precision={precision}", "train.epochs=50", *overrides)
    config, world = read_config(step.config, words), World(device=bench.device)
    set_backends(config.train)
    seed_everything(config.seed, 1)
    return build(config, world), world


def _recipe_job(step: RecipeStep, precision: str = "float32") -> Callable[[Bench], Figures]:
    """Time steps of the recipe's own loop, its share of waiting for data, and count the launches of a step.

    A few batches are read again and again: a synthetic set makes its samples when they are read first, before the
    steps that are measured.
    """

    def run(bench: Bench) -> Figures:
        words = ("log.every=50", "train.tail=drop", f"loader.workers={step.workers if bench.is_gpu else 0}")
        built, world = _build(step, bench, *words, precision=precision)
        plan = built.job.stream.plan
        few = dataclasses.replace(plan, indices=plan.indices[: _NUM_BATCHES * plan.batch_size])
        built.job.stream = dataclasses.replace(built.job.stream, plan=few)
        count = 2 if bench.is_tiny else 20
        times: dict[int, float] = {}

        def after(record: StepRecord) -> None:
            if len(times) in (_NUM_WARM - 1, _NUM_WARM + count - 1):
                bench.wait()
            times[len(times)] = time.perf_counter()

        ends = (_NUM_WARM, _NUM_WARM + count)
        records = run_steps(built.job, world, ends[1], after, is_read_after=ends.__contains__)[_NUM_WARM:]
        graphs = built.job.graphs
        seconds = times[_NUM_WARM + count - 1] - times[_NUM_WARM - 1]
        return {
            "ms": 1e3 * seconds / count,
            "data_share": sum(record.seconds.get("data", 0.0) for record in records) / seconds,
            "launches": _count_step_launches(built, world, bench),
            "declared": read_launches().get(step.name),
            "loss": records[-1].losses["total"],
            "replayed": 0 if graphs is None else graphs.num_replayed,
            "not_replayed": None if graphs is None else graphs.reason,
        }

    return run


def _count_step_launches(built: TrainingSetup, world: World, bench: Bench, count: int = 4) -> float | None:
    """Count the launches of a step as the mean of a few, traced from the end of one step to that of another."""
    if not bench.is_gpu:
        return None
    profiler, done = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]), itertools.count(1)

    def after(record: StepRecord) -> None:
        number = next(done)
        if number == _NUM_BATCHES:
            bench.wait()
            profiler.start()
        elif number == _NUM_BATCHES + count:
            bench.wait()
            profiler.stop()

    built.job.step, built.job.graph = 0, "off"
    run_steps(built.job, world, _NUM_BATCHES + count, after)
    return count_launches(profiler) / count


def _compared(make: Any, textbook: Any, **size: int) -> tuple[Any, Step, Step, dict[str, int]]:
    """Return how inputs are made, steps of ours and of a textbook form that is built from ours, and the sizes."""
    return make, step_form(copy.deepcopy), step_form(lambda model: textbook(model).to(_get_device(model))), size


def _get_device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


NETWORKS: dict[str, tuple[Callable[..., dict[str, Any]], Step, Step, dict[str, int]]] = {
    "dgcnn 32 x 1,024": _compared(make_inputs(DGCNN), TextbookDGCNN, batch=32, points=1024),
    "pointnet2 24 x 1,024": _compared(make_inputs(PointNet2), TextbookPointNet2, batch=24, points=1024),
    "pct 32 x 1,024": _compared(make_inputs(PCT), TextbookPCT, batch=32, points=1024),
    "point_transformer 4 x 4,096": _compared(make_parts, TextbookPointTransformer, batch=4, points=4096),
    "salsanext 8 x 64 x 1,024": (
        make_scans,
        salsanext_step(copy.deepcopy),
        salsanext_step(TextbookSalsaNext),
        {"batch": 8, "columns": 1024},
    ),
    "retinanet 8 x 512": (make_crowds, retinanet_step, textbook_retinanet_step, {"batch": 8, "side": 512}),
}


def _textbook_job(
    make: Callable[..., dict[str, Any]], ours: Step, textbook: Step, size: dict[str, int]
) -> Callable[[Bench], Figures]:
    """Time a step of a network and of its textbook form, in turn, with the same weights: no data, plain SGD."""

    def run(bench: Bench) -> Figures:
        made = make(**({"batch": 2, "points": 64} if bench.is_tiny else size))
        inputs = {name: value.to(bench.device) for name, value in made.items()}
        figures: dict[str, float | int | None] = {}
        for name, form in {"ours": ours, "textbook": textbook}.items():
            with form(inputs) as step:
                figures |= {f"{name}_ms": bench.ms(step, repeats=10), f"{name}_launches": bench.launches(step)}
        return figures

    return run


def _list_synthetic() -> list[str]:
    """The recipes that need no file; some twenty."""
    files = sorted((ROOT / "configs").glob("*/synthetic_*.yaml"))
    return [f"{file.parent.name}/{file.stem}" for file in files if "_from_" not in file.stem]


def _waits_job(recipe: str) -> Callable[[Bench], Figures]:
    """Run 20 steps, of which the last is read: torch raises an error where the host waits for the GPU before.

    No step is replayed, as a graph has no Python that could wait.
    """

    def run(bench: Bench) -> Figures:
        bench.require_gpu()
        built, world = _build(RecipeStep(recipe), bench, "log.every=1000", "train.graph=off")
        ends, done = (_NUM_WARM, _NUM_WARM + 20), itertools.count(1)

        def after(record: StepRecord) -> None:
            if next(done) == _NUM_WARM:
                torch.cuda.set_sync_debug_mode("error")

        def is_read_after(step: int) -> bool:
            if step == ends[1]:
                torch.cuda.set_sync_debug_mode("default")
            return step in ends

        try:
            run_steps(built.job, world, ends[1], after, is_read_after=is_read_after)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return {"steps": 20, "waits": 0}

    return run


def _strict_job(step: RecipeStep) -> Callable[[Bench], Figures]:
    """Train a few steps under `strict`, once as they are and once replayed, and compare every tensor."""

    def run(bench: Bench) -> Figures:
        bench.require_gpu()
        states = []
        replayed = 0
        for graph in ("off", "auto"):
            words = ("train.determinism=strict", f"train.graph={graph}", "train.ema_decay=0.9")
            built, world = _build(step, bench, *words)
            run_steps(built.job, world, _NUM_WARM + 4, lambda record: None)
            job = built.job
            if job.graphs is not None and not job.graphs.num_replayed:
                raise RunError(f"no step was replayed: {job.graphs.reason}")
            replayed = 0 if job.graphs is None else job.graphs.num_replayed
            assert job.ema is not None
            tensors = [*job.model.state_dict().values(), *job.ema.state_dict().values()]
            tensors += [tensor for state in job.optimizer.state.values() for tensor in state.values()]
            states.append([tensor.clone() for tensor in tensors])
        return {"steps": _NUM_WARM + 4, "replayed": replayed, "tensors": len(states[0]), **compare(*states)}

    return run


# --- 3D boxes --------------------------------------------------------------------------------------------------------

BOXES3D = RecipeStep("boxes3d/synthetic_streets_pointpillars")
MAX_DIFFERENCE = 1e-4
"""Of the numbers of 3D boxes on a GPU, as a share of the largest."""


def _compare_boxes3d(bench: Bench) -> Figures:
    """Compare a forward pass of PointPillars, its pillars, overlaps of boxes and the boxes that are kept with a CPU's.

    Streets are drawn by the config's seed. Without a GPU, the operators without kernels of CPUs take its place.
    """
    on_cpu = dataclasses.replace(bench, device=torch.device("cpu"))
    built, _ = _build(BOXES3D, on_cpu, "loader.workers=0", "data.num_columns=256")
    with contextlib.closing(built.job.stream.iterate(0, 1)) as steps:
        batch = next(steps)[0]
    boxes, scores = _draw_boxes(batch["boxes"].float(), 200 if bench.is_tiny else 4000)
    expected = _measure_boxes3d(built, batch, boxes, scores, on_cpu.device)
    with mock.patch.object(numba_kernels, "_has_numba", return_value=False):
        found = _measure_boxes3d(built, batch, boxes, scores, bench.device)
    return {"boxes": len(boxes), "kept": len(found["kept boxes"]), **agree(found, expected)}


def _draw_boxes(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Draw boxes (`count`, 7) around those of labels, and their scores."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 7, generator=generator) * torch.tensor([1.0, 1.0, 0.3, 0.3, 0.1, 0.1, 0.5])
    boxes = labels[torch.arange(count) % len(labels)] + noise
    boxes[:, 3:6] = boxes[:, 3:6].abs() + 0.1
    return boxes, torch.rand(count, generator=generator)


def _measure_boxes3d(
    built: TrainingSetup, batch: dict[str, Any], boxes: Tensor, scores: Tensor, device: torch.device
) -> dict[str, Tensor]:
    """Compute on a device what is compared: tables of whole numbers, and other numbers."""
    batch, boxes, scores = to_device((batch, boxes, scores), device)
    model: Any = copy.deepcopy(built.job.model).to(device).train()
    limits = {"max_points": model.max_points, "max_pillars": model.max_pillars}
    points, offsets, grid = batch["points"], batch["offsets"], model.grid
    pillars = ops.hard_pillars(points, offsets, side_m=grid.pillar_m, range_m=grid.extent_m, **limits)
    with torch.no_grad():
        _, (context,) = built.job.task.prepare(model, [batch], World(device=device))
        outputs = model(points=points, features=batch["features"], offsets=offsets)
    measured = {
        "rows of pillars": pillars.point_index,
        "cells of pillars": pillars.cells,
        "targets of anchors": context["target"],
        "kept boxes": ops.box3d_nms(boxes, scores, 0.3),
        "overlaps of volumes": ops.box3d_iou(boxes, batch["boxes"]),
        "overlaps from above": ops.box3d_iou_bev(boxes, batch["boxes"]),
        **outputs,
    }
    return {name: value.cpu() for name, value in measured.items()}


def agree(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Figures:
    """Return the largest difference of numbers, as a share of the largest.

    Raises RunError if whole numbers differ, or others by more than 1e-4.
    """
    difference, faults = 0.0, []
    for name, values in expected.items():
        if not values.is_floating_point():
            faults += [] if torch.equal(found[name], values) else [f"{name} are others"]
            continue
        off = compare(found[name], values)["difference"]
        assert isinstance(off, float)
        faults += [] if off <= MAX_DIFFERENCE else [f"{name} are off by {off:.1e} of the largest"]
        difference = max(difference, off)
    if faults:
        raise RunError(f"the device disagrees with the CPU: {', '.join(faults)}")
    return {"difference": difference}


# --- published trainings ---------------------------------------------------------------------------------------------

TRAININGS = ("modelnet40_pointnet", "modelnet40_dgcnn", "modelnet40_pointnet2", "modelnet40_pct")
TRAINING_WORDS = ("train.precision=tf32", "evaluate.every=4")
"""What differs from the recipes, for the sake of a lent GPU's minutes."""
_ROOM_S = 15
"""Seconds in which a training that is asked to stop writes its checkpoint."""


class StoppedError(RunError):
    """Error for a job that goes on in the next run, with its figures so far."""

    def __init__(self, message: str, figures: Figures) -> None:
        super().__init__(message)
        self.figures = figures


def _training_job(name: str) -> Callable[[Bench], Figures]:
    """Train a published recipe for the minutes left, from where the run in the results' folder stopped."""

    def run(bench: Bench) -> Figures:
        names = ("modelnet40_packed.npz", "modelnet40_1024.npz", "modelnet40", f"train_{name}")
        packed, clouds, data, folder = (bench.out / path for path in names)
        if not any(path.exists() for path in (packed, clouds, data)):
            raise RunError(f"{packed} is absent: python -m benchmarks.pack_modelnet makes it")
        bench.require_gpu()
        sightline = [sys.executable, "-m", "sightline"]
        if not data.is_dir():
            if not clouds.is_file():
                unpack(packed, clouds)
            words = ["data", "prepare", "modelnet40", "--from", str(clouds), "--to", str(data)]
            subprocess.run([*sightline, *words], check=True, cwd=ROOT)
        config = ROOT / "configs" / "classify" / f"{name}.yaml"
        words = ["train", str(config), "--out", str(folder), "--resume", "auto", f"data.root={data}", *TRAINING_WORDS]
        with subprocess.Popen([*sightline, *words], cwd=ROOT) as training:
            try:
                training.wait(max(1.0, bench.ends_at - time.monotonic() - _ROOM_S))
            except subprocess.TimeoutExpired:
                training.send_signal(signal.SIGTERM)
                training.wait()
                reason = f"stopped when the minutes were over; the next run goes on from {folder}"
                raise StoppedError(reason, read_test_figures(folder / "metrics.jsonl")) from None
        if training.returncode:
            raise RunError(f"sightline train ended with code {training.returncode}; its lines are above")
        return read_test_figures(folder / "metrics.jsonl")

    return run


def read_test_figures(lines: Path) -> Figures:
    """Read the accuracies of a run's last evaluation on the test part, and of its best one, with their epochs.

    And the seconds of the run so far, without what came before its first step.
    """
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    tests = [row for row in rows if row["split"].startswith("test")]
    best = max(tests, key=lambda row: row["overall_accuracy"])
    names = ("overall_accuracy", "mean_class_accuracy")
    chosen = {"last": tests[-1], "best": best}
    figures: dict[str, float | int | bool | str | None] = {}
    for which, row in chosen.items():
        figures |= {f"{which}_epoch": row["epoch"] + 1, **{f"{which}_{name}": row[name] for name in names}}
    return {**figures, "seconds": rows[-1]["time_s"], "words": " ".join(TRAINING_WORDS)}
