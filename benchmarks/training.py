"""Benchmarks of training by the engine: its overhead, recipes in bfloat16, Adam, a detector's targets and photos.

A step of a recipe or of a detector is the engine's: preparation, forward, losses, backward, optimiser.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.case import BenchmarkCase, Implementation, Run, allclose
from sightline.areas.clouds.models.dgcnn import DGCNNEncoder
from sightline.areas.contrast.crosspoint import CrossPoint
from sightline.areas.detect.sets.formats import YoloTxt
from sightline.config import RunConfig, read_config
from sightline.config.shipped import copy_shipped
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.engine.loop import train
from sightline.engine.optimizers import Adam
from sightline.engine.records import Observers, StepRecord
from sightline.engine.step import prepare_step, weighted_sum
from sightline.engine.train import TrainState, train_step
from sightline.instrument import record
from sightline.parts.models.resnet import ResNet18Encoder
from sightline.runs.run_directory import RunDirectory
from sightline.training.session import TrainingSession
from sightline.training.stop_request import StopRequest


def cases() -> list[BenchmarkCase]:
    """Make the cases of the suite `train`; with a detector's baselines a step has no targets, or reads no photos."""
    targets = Implementation("sightline", _make_opener(_plain), allclose(1e-5))
    photos = Implementation("sightline", _make_opener(_from_photos, "loader.workers=2"), allclose(1e-5))
    return [
        *(_make_overhead_case(points) for points in (1024, 256)),
        _make_adam_case(),
        _make_detector_case("detection_targets", _network, targets),
        _make_detector_case("detection_photos", _ready_batches, photos),
    ]


def recipe_cases() -> list[BenchmarkCase]:
    """Make the cases of the suite `models`: steps in bfloat16 and channels-last, against float32 as shipped."""
    return [_make_recipe_case(name, recipe) for name, recipe in RECIPES.items()]


# --- steps -----------------------------------------------------------------------------------------------------------


class _NoClock:
    def end_phase(self, name: str) -> None:
        pass


def _read_batch(job: TrainState, step: int) -> dict[str, Any]:
    return job.stream.reader(job.stream.plan.step_keys(step)[0][0])


def _train_on(job: TrainState, batch: dict[str, Any]) -> Tensor:
    """Take one step of the engine; return its losses and gradient norm."""
    totals = train_step(job, job.model, [batch], World(), _NoClock())
    return torch.tensor([*(totals.losses[name] for name in job.loss_weights), totals.grad_norm])


# --- overhead of the engine ------------------------------------------------------------------------------------------


ENGINE_STEPS = 6
ENGINE_CONFIG = """\
name: bench
task: {{name: classify}}
data: {{name: synthetic_shapes, num_points: {points}}}
model: {{name: pointnet, dropout: 0.0}}
losses: [{{name: cross_entropy}}, {{name: feature_transform_penalty, weight: 1e-3}}]
metrics: [{{name: accuracy}}]
optimizer: {{name: adam, lr: 1e-3}}
train: {{epochs: 1000, batch_size: {batch}}}
evaluate: {{every: 1000, metric: overall_accuracy}}
checkpoint: {{every: 1000}}
log: {{tensorboard: false}}
"""
"""Config of the shipped PointNet recipes without augmentation (measured by the suite `data`) and extras."""


def _make_overhead_case(points: int) -> BenchmarkCase:
    """Make a case of six steps of the engine; a ratio of 0.98 means an overhead of two percent."""
    return BenchmarkCase(
        suite="train",
        label="engine_{batch}x{points}",
        size={"batch": 32, "points": points},
        quick={"batch": 4, "points": 64},
        make=_make_config,
        baseline=Implementation("bare_steps", _open_bare_loop, allclose(1e-4)),
        variants=(Implementation("sightline", _open_engine, allclose(1e-4)),),
    )


def _make_config(*, batch: int, points: int) -> RunConfig:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.yaml"
        path.write_text(ENGINE_CONFIG.format(batch=batch, points=points))
        return read_config(path, [])


@contextmanager
def _open_bare_loop(config: RunConfig) -> Iterator[Run]:
    """Run a user's own loop: batches in memory, losses as means, no schedule, no records.

    Returns the loss of each step, equal to the engine's up to rounding (1e-4).
    """
    job = build(config, World()).job
    batches = [_read_batch(job, step) for step in range(ENGINE_STEPS)]

    def run() -> Tensor:
        losses = []
        for batch in batches:
            job.optimizer.zero_grad(set_to_none=True)
            out = job.model(points=batch["points"])
            transform = out["feature_transform"]
            excess = transform @ transform.mT - torch.eye(transform.shape[-1])
            loss = F.cross_entropy(out["logits"], batch["label"]) + 1e-3 * excess.flatten(1).norm(dim=1).mean()
            loss.backward()
            job.optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    yield run


@contextmanager
def _open_engine(config: RunConfig) -> Iterator[Run]:
    """Run the whole engine with its default observers, in a temporary folder."""
    world = World()
    with tempfile.TemporaryDirectory() as folder:
        built = build(config, world)
        for step in range(built.job.stream.plan.steps_per_epoch):
            _read_batch(built.job, step)  # procedural clouds are made once, which is not measured here
        session = TrainingSession(
            built, world, RunDirectory(Path(folder), is_writer=True), stop=StopRequest(), record={}
        )
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar keeps the stream that it finds here
            observers = Observers(session._default_observers())

        def run() -> Tensor:
            losses: list[float] = []

            def after_step(record: StepRecord, stop_requested: bool) -> bool:
                observers.on_step(record)
                losses.append(record.losses["total"])
                return stop_requested

            built.job.num_steps = built.job.step + ENGINE_STEPS
            train(built.job, world, after_step)
            return torch.tensor(losses)

        try:
            yield run
        finally:
            observers.on_end("done")


# --- recipes ---------------------------------------------------------------------------------------------------------


_HALF_TOLERANCE = 0.05
"""Tolerance as a share of the largest loss; the tests of each network bound the errors of single outputs."""


@dataclass(frozen=True)
class Recipe:
    """Shipped recipe with its batch size and overrides; `quick` is the batch size of a smoke test."""

    config: str
    batch: int
    overrides: tuple[str, ...] = ()
    has_channels_last: bool = False
    quick: int = 2


_PUBLISHED_WIDTH = ("model.width=32", "model.dropout=0")
_POINTS = ("data.num_points=1024",)
_CLOUDS = (*_POINTS, "model.dropout=0")  # 16 bits draw other numbers for dropout
RECIPES: Mapping[str, Recipe] = {
    "pointnet": Recipe("classify/synthetic_shapes_pointnet", 32, _CLOUDS, quick=16),
    "dgcnn": Recipe("classify/synthetic_shapes_dgcnn", 32, _CLOUDS, quick=16),
    "pct": Recipe("classify/synthetic_shapes_pct", 32, _CLOUDS, quick=16),
    "pointnet2": Recipe("classify/synthetic_shapes_pointnet2", 32, _CLOUDS, quick=16),
    "point_transformer": Recipe("segment/synthetic_shapes_point_transformer", 16, _POINTS, quick=16),
    "salsanext": Recipe("segment/synthetic_lidar_salsanext", 1, _PUBLISHED_WIDTH, has_channels_last=True),
    "retinanet": Recipe("detect/synthetic_crowds_retinanet", 8, has_channels_last=True),
    "fcos": Recipe("detect/synthetic_crowds_fcos", 8, has_channels_last=True),
    "v2v": Recipe("pose/synthetic_hands_v2v", 1, has_channels_last=True, quick=1),
}


def _make_recipe_case(name: str, recipe: Recipe) -> BenchmarkCase:
    channels_first, channels_last = (
        [f"model.channels_last={value}"] * recipe.has_channels_last for value in ("false", "true")
    )
    rule = allclose(_HALF_TOLERANCE)
    plain = Implementation("float32", _make_recipe_step(recipe, "float32", *channels_first), rule)
    together = Implementation("channels_last", _make_recipe_step(recipe, "float32", *channels_last), allclose(1e-3))
    half = Implementation("sightline_bf16", _make_recipe_step(recipe, "bf16", *channels_last), rule)
    variants = (together, half) if recipe.has_channels_last else (half,)
    sizes = {"batch": recipe.batch}, {"batch": recipe.quick}
    return BenchmarkCase("models", f"recipe_{name}_step_{{batch}}", *sizes, dict, plain, variants)


def _make_recipe_step(
    recipe: Recipe, precision: str, *overrides: str
) -> Callable[[dict[str, Any]], AbstractContextManager[Run]]:
    """Make successive steps of a recipe in a number format; each returns its losses, (num_losses,)."""

    @contextmanager
    def open_step(inputs: dict[str, Any]) -> Iterator[Run]:
        size = inputs["batch"]
        small = [f"train.batch_size={size}", f"data.train_size={max(16, size)}", "data.test_size=16"]
        with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
            copy_shipped(recipe.config, Path(name))
            numbers = [f"train.precision={precision}", "evaluate.select=test"]
            config = read_config(
                Path(name) / "configs" / f"{recipe.config}.yaml", [*recipe.overrides, *overrides, *small, *numbers]
            )
            job = build(config, World()).job
        batch = _read_batch(job, 0)
        yield lambda: _train_on(job, batch)[:-1]

    return open_step


# --- Adam ------------------------------------------------------------------------------------------------------------


_ADAM: dict[str, Any] = {"lr": 1e-3, "weight_decay": 1e-4}


def _make_adam_case() -> BenchmarkCase:
    openers = {
        "torch_default": _make_adam_steps(_build_torch_adam),
        "torch_foreach": _make_adam_steps(partial(_build_torch_adam, foreach=True)),
        "sightline": _make_adam_steps(Adam(**_ADAM).build),
    }
    plain, *variants = [Implementation(name, opener, _compare_parameters) for name, opener in openers.items()]
    return BenchmarkCase(
        suite="train",
        label="adam_step_crosspoint_{embedding}",
        size={"embedding": 1024},
        quick={"embedding": 8},
        make=_make_parameters,
        baseline=plain,
        variants=tuple(variants),
    )


def _make_parameters(*, embedding: int) -> list[Tensor]:
    """Return the parameters of CrossPoint with DGCNN and ResNet-18, all that an optimiser step needs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CrossPoint(points=DGCNNEncoder(in_channels=3, embedding=embedding), images=ResNet18Encoder())
    return [parameter.detach() for parameter in model.parameters()]


def _build_torch_adam(model: nn.Module, **form: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), **_ADAM, **form)


def _make_adam_steps(
    build: Callable[[nn.Module], torch.optim.Optimizer],
) -> Callable[[Sequence[Tensor]], AbstractContextManager[Run]]:
    """Make optimiser steps with constant gradients; each returns the updated tensors."""

    @contextmanager
    def open_steps(inputs: Sequence[Tensor]) -> Iterator[Run]:
        model = nn.ParameterList([nn.Parameter(tensor.clone()) for tensor in inputs])
        generator = torch.Generator().manual_seed(0)
        for parameter in model:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer = build(model)

        def run() -> list[Tensor]:
            optimizer.step()
            return list(model)

        yield run

    return open_steps


def _compare_parameters(inputs: Sequence[Tensor], expected: Sequence[Tensor], actual: Sequence[Tensor]) -> str | None:
    """Compare every number to 1e-5 of the learning rate plus 1e-6 of itself."""
    for index, (expected_tensor, actual_tensor) in enumerate(zip(expected, actual, strict=True)):
        if not torch.allclose(expected_tensor, actual_tensor, rtol=1e-6, atol=1e-5 * _ADAM["lr"]):
            return f"tensor {index} differs by up to {float((expected_tensor - actual_tensor).abs().max()):.3g}"
    return None


# --- detector --------------------------------------------------------------------------------------------------------


DETECTOR_STEPS = 8
NUM_CLASSES = 80
DETECTOR_CONFIG = """\
name: bench
task: {{name: detect, assigner: {{name: max_iou}}}}
data: {{name: yolo_txt, root: {root}}}
model: {{name: detector, backbone: {{name: resnet18}}, neck: {{name: fpn, width: 64}}, head: {{name: retina}}}}
losses: [{{name: sigmoid_focal}}, {{name: box_smooth_l1}}]
metrics: [{{name: box_ap}}]
transforms:
  train: [{{name: fit_image, height: {size}, width: {size}}}, {{name: normalize_image}}]
  evaluate: [{{name: fit_image, height: {size}, width: {size}}}, {{name: normalize_image}}]
optimizer: {{name: sgd, lr: 1e-4}}
train: {{epochs: 1000, batch_size: {images}}}
evaluate: {{metric: ap50}}
"""
"""Config with a narrow head, as in the recipe of coco128: with a wider one, targets and photos cost less."""


def _make_detector_case(name: str, plain: Callable[[TrainState], Run], form: Implementation) -> BenchmarkCase:
    size, quick = {"images": 4, "size": 320}, {"images": 1, "size": 128}
    baseline = Implementation(plain.__name__.lstrip("_"), _make_opener(plain), form.compare)
    return BenchmarkCase("train", f"{name}_{{images}}x{{size}}", size, quick, dict, baseline, (form,))


def _make_opener(make: Callable[[TrainState], Run], *overrides: str) -> Callable[[Any], AbstractContextManager[Run]]:
    """Make an implementation with a new network, and photos in files of a prepared set."""

    @contextmanager
    def open_run(inputs: dict[str, Any]) -> Iterator[Run]:
        with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
            folder = Path(name)
            _write_photos(folder / "photos", 2 * inputs["images"])
            YoloTxt.prepare(source=folder / "photos", target=folder / "set", name="yolo_txt", progress=lambda *_: None)
            path = folder / "bench.yaml"
            path.write_text(DETECTOR_CONFIG.format(root=folder / "set", **inputs))
            yield make(build(read_config(path, list(overrides)), World()).job)

    return open_run


def _write_photos(folder: Path, count: int) -> None:
    """Write JPEG files of 640 x 480 px and about 170 kB, as in COCO: noisy coloured patches with 20 boxes."""
    generator = np.random.default_rng(0)
    for number in range(count + 2):
        split = ("test", "val", "train")[min(number, 2)]
        patches = Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((640, 480))
        pixels = (np.asarray(patches) + generator.normal(0, 8, (480, 640, 3))).clip(0, 255).astype(np.uint8)
        box_columns = generator.uniform(0.2, 0.8, (20, 2)), generator.uniform(0.02, 0.4, (20, 2))
        rows = np.column_stack((generator.integers(0, NUM_CLASSES, 20), *box_columns))
        (folder / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / split / f"{number}.jpg", quality=95)
        np.savetxt(folder / split / f"{number}.txt", rows, fmt="%d %.6f %.6f %.6f %.6f")
    (folder / "classes.txt").write_text("\n".join(map(str, range(NUM_CLASSES))))


def _plain(job: TrainState) -> Run:
    """Make a step of the engine on a batch in memory."""
    return partial(_train_on, job, _read_batch(job, 0))


def _network(job: TrainState) -> Run:
    """Make the same step from given gradients of the outputs: no assignment, no losses."""
    batch = _read_batch(job, 0)
    step = prepare_step(job.task, job.model.train(), [batch], World())
    with record({"": job.model}, keep=("outputs",), convert=None) as tape:
        means = step.loss_means(step.loss_sums(job.model))
    outputs = tape.outputs[-1]
    gradients = torch.autograd.grad(weighted_sum(means, job.loss_weights_at(0)), [outputs["logits"], outputs["codes"]])

    def run() -> Tensor:
        job.optimizer.zero_grad(set_to_none=True)
        result = job.model(image=batch["image"])
        torch.autograd.backward([result["logits"], result["codes"]], gradients)
        norm = nn.utils.clip_grad_norm_(job.model.parameters(), torch.inf)
        job.optimizer.step()
        return torch.stack([*means.values(), norm]).detach()

    return run


def _ready_batches(job: TrainState) -> Run:
    """Make steps on batches in memory; returns the losses of each."""
    batches = [_read_batch(job, step) for step in range(DETECTOR_STEPS)]
    return lambda: torch.stack([_train_on(job, batch) for batch in batches])


def _from_photos(job: TrainState) -> Run:
    """Make the same steps on batches that worker processes, started by the run, read from the files."""
    return lambda: torch.stack([_train_on(job, *batches) for batches in job.stream.iterate(0, DETECTOR_STEPS)])
