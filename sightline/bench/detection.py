"""Benchmarks of a detector's training step: targets, losses, photos."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sightline.bench.case import BenchmarkCase, Implementation, Run, allclose
from sightline.config import read_config
from sightline.data.boxes.yolo_txt import YoloTxt
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.engine.step import prepare_step, weighted_sum
from sightline.engine.train import TrainState, train_step

NUM_STEPS = 8
NUM_CLASSES = 80
CONFIG = """\
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


def train_cases() -> list[BenchmarkCase]:
    """Make the cases: a step without targets and losses, and steps without reading photos, as baselines."""
    step = Implementation("sightline", _make_opener(_plain), allclose(1e-5))
    photos = Implementation("sightline", _make_opener(_from_photos, "loader.workers=2"), allclose(1e-5))
    return [
        _make_case("train", "detection_targets", _network, step),
        _make_case("train", "detection_photos", _ready_batches, photos),
    ]


def _make_case(suite: str, name: str, plain: Callable[[TrainState], Run], form: Implementation) -> BenchmarkCase:
    size, quick = {"images": 4, "size": 320}, {"images": 1, "size": 128}
    baseline = Implementation(plain.__name__.lstrip("_"), _make_opener(plain), form.compare)
    return BenchmarkCase(suite, f"{name}_{{images}}x{{size}}", size, quick, dict, baseline, (form,))


def _make_opener(make: Callable[[TrainState], Run], *overrides: str) -> Callable[[Any], AbstractContextManager[Run]]:
    """Make an implementation with a new network, and photos in files of a prepared set."""

    @contextmanager
    def open_run(inputs: dict[str, Any]) -> Iterator[Run]:
        with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
            folder = Path(name)
            _write_photos(folder / "photos", 2 * inputs["images"])
            YoloTxt.prepare(source=folder / "photos", target=folder / "set", name="yolo_txt", progress=lambda *_: None)
            path = folder / "bench.yaml"
            path.write_text(CONFIG.format(root=folder / "set", **inputs))
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


class _NoClock:
    def end_phase(self, name: str) -> None:
        pass


def _read_batch(job: TrainState, step: int) -> dict[str, Any]:
    return job.stream.reader(job.stream.plan.step_keys(step)[0][0])


def _train_on(job: TrainState, batch: dict[str, Any]) -> Tensor:
    """Take one step of the engine; return its losses and gradient norm."""
    totals = train_step(job, job.model, [batch], World(), _NoClock())
    return torch.tensor([*(totals.losses[name] for name in job.loss_weights), totals.grad_norm])


def _plain(job: TrainState) -> Run:
    """Make a step of the engine on a batch in memory."""
    return partial(_train_on, job, _read_batch(job, 0))


def _network(job: TrainState) -> Run:
    """Make the same step from given gradients of the outputs: no assignment, no losses."""
    batch = _read_batch(job, 0)
    outputs: dict[str, Tensor] = {}
    step = prepare_step(job.task, job.model.train(), [batch], World())
    with job.model.register_forward_hook(lambda module, args, result: outputs.update(result)):
        means = step.loss_means(step.loss_sums(job.model))
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
    batches = [_read_batch(job, step) for step in range(NUM_STEPS)]
    return lambda: torch.stack([_train_on(job, batch) for batch in batches])


def _from_photos(job: TrainState) -> Run:
    """Make the same steps on batches that worker processes, started by the run, read from the files."""
    return lambda: torch.stack([_train_on(job, *batches) for batches in job.stream.iterate(0, NUM_STEPS)])
