"""A detector's training step, what targets, losses and photos add to it, and the precision of its boxes."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sightline.bench.agreement import allclose
from sightline.bench.case import BenchmarkCase, Implementation, Run, implementation
from sightline.config import read_config
from sightline.data.boxes.yolo_txt import YoloTxt
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.engine.step import prepare_step, weighted_sum
from sightline.engine.train import TrainState, train_step
from sightline.metrics.box_ap import BoxAp

__all__ = ["metric_cases", "train_cases"]

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
"""A narrow head, as in the recipe of coco128: beside a wider one, targets, losses and photos cost a smaller share."""
_NAMES = "ap ap50 ap75 ap_small ap_medium ap_large ar1 ar10 ar ar_small ar_medium ar_large".split()
"""Our names of pycocotools' twelve numbers, in its order."""


def train_cases() -> list[BenchmarkCase]:
    """The share of a step that is not targets and losses, and of steps that is not reading photos."""
    step = Implementation("sightline", _opened(_plain), allclose(1e-5))
    photos = Implementation("sightline", _opened(_from_photos, "loader.workers=2"), allclose(1e-5))
    return [
        _case("train", "detection_targets", _network, step),
        _case("train", "detection_photos", _ready_batches, photos),
    ]


def _case(suite: str, name: str, plain: Callable[[TrainState], Run], form: Implementation) -> BenchmarkCase:
    size, quick = {"images": 4, "size": 320}, {"images": 1, "size": 128}
    baseline = Implementation(plain.__name__.lstrip("_"), _opened(plain), form.compare)
    return BenchmarkCase(suite, f"{name}_{{images}}x{{size}}", size, quick, dict, baseline, (form,))


def metric_cases() -> list[BenchmarkCase]:
    """The twelve numbers of COCO; pycocotools' time is that of evaluating, after its structures are made."""
    size, quick = {"images": 5000, "detections": 100}, {"images": 20, "detections": 10}
    theirs = Implementation("pycocotools", _by_pycocotools, allclose(1e-9), needs="pycocotools")
    form = implementation("sightline", _by_sightline, allclose(1e-9))
    return [BenchmarkCase("metrics", "box_ap_{images}x{detections}", size, quick, _boxes, theirs, (form,))]


def _opened(make: Callable[[TrainState], Run], *overrides: str) -> Callable[[Any], AbstractContextManager[Run]]:
    """A form that begins with a new network, and photos in files of a prepared set."""

    @contextmanager
    def opened(inputs: dict[str, Any]) -> Iterator[Run]:
        with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
            folder = Path(name)
            _write_photos(folder / "photos", 2 * inputs["images"])
            YoloTxt.prepare(source=folder / "photos", target=folder / "set", name="yolo_txt", progress=lambda *_: None)
            path = folder / "bench.yaml"
            path.write_text(CONFIG.format(root=folder / "set", **inputs))
            yield make(build(read_config(path, list(overrides)), World()).job)

    return opened


def _write_photos(folder: Path, count: int) -> None:
    """JPEG files of 640 x 480 pixels with the bytes of COCO's, some 170 kB: coloured patches with grain, 20 boxes."""
    generator = np.random.default_rng(0)
    for number in range(count + 2):
        split = ("test", "val", "train")[min(number, 2)]
        patches = Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((640, 480))
        pixels = (np.asarray(patches) + generator.normal(0, 8, (480, 640, 3))).clip(0, 255).astype(np.uint8)
        places = generator.uniform(0.2, 0.8, (20, 2)), generator.uniform(0.02, 0.4, (20, 2))
        rows = np.column_stack((generator.integers(0, NUM_CLASSES, 20), *places))
        (folder / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / split / f"{number}.jpg", quality=95)
        np.savetxt(folder / split / f"{number}.txt", rows, fmt="%d %.6f %.6f %.6f %.6f")
    (folder / "classes.txt").write_text("\n".join(map(str, range(NUM_CLASSES))))


class _NoLaps:
    def end_phase(self, name: str) -> None:
        pass


def _batch(job: TrainState, step: int) -> dict[str, Any]:
    return job.stream.reader(job.stream.plan.step_keys(step)[0][0])


def _train_on(job: TrainState, batch: dict[str, Any]) -> Tensor:
    """One step of the engine; its losses and the norm of its gradient."""
    totals = train_step(job, job.model, [batch], World(), _NoLaps())
    return torch.tensor([*(totals.losses[name] for name in job.loss_weights), totals.grad_norm])


def _plain(job: TrainState) -> Run:
    """A step of the engine on a batch that is there."""
    return partial(_train_on, job, _batch(job, 0))


def _network(job: TrainState) -> Run:
    """The same step from the gradient of the outputs on: no assignment, no losses."""
    batch = _batch(job, 0)
    kept: dict[str, Tensor] = {}
    step = prepare_step(job.task, job.model.train(), [batch], World())
    with job.model.register_forward_hook(lambda module, given, made: kept.update(made)):
        means = step.loss_means(step.loss_sums(job.model))
    gradients = torch.autograd.grad(weighted_sum(means, job.loss_weights_at(0)), [kept["logits"], kept["codes"]])

    def run() -> Tensor:
        job.optimizer.zero_grad(set_to_none=True)
        made = job.model(image=batch["image"])
        torch.autograd.backward([made["logits"], made["codes"]], gradients)
        norm = nn.utils.clip_grad_norm_(job.model.parameters(), torch.inf)
        job.optimizer.step()
        return torch.stack([*means.values(), norm]).detach()

    return run


def _ready_batches(job: TrainState) -> Run:
    """Steps on batches that are there; the answer is the losses of each."""
    batches = [_batch(job, step) for step in range(NUM_STEPS)]
    return lambda: torch.stack([_train_on(job, batch) for batch in batches])


def _from_photos(job: TrainState) -> Run:
    """The same steps on batches that worker processes read from the files; they begin and end with the run."""
    return lambda: torch.stack([_train_on(job, *batches) for batches in job.stream.iterate(0, NUM_STEPS)])


def _boxes(*, images: int, detections: int) -> dict[str, np.ndarray]:
    """Eight labels an image, of 80 classes; three of five detections have theirs. Image, box, score and class."""
    generator = np.random.default_rng(0)
    index, order, shape = np.arange(images)[:, None], np.arange(detections) % 8, (images, detections)
    corners, sizes = 500 * generator.random((images, 8, 2)), np.exp(generator.uniform(2, 5.5, (images, 8, 2)))
    label = generator.integers(0, NUM_CLASSES, (images, 8))
    first = corners[:, order] + sizes[:, order] * generator.normal(0, 0.1, (*shape, 2))
    last = first + sizes[:, order] * generator.uniform(0.8, 1.25, first.shape)
    guess = np.where(generator.random(shape) < 0.6, label[:, order], generator.integers(0, NUM_CLASSES, shape))
    truth = (0 * label + index, *corners.transpose(2, 0, 1), *(corners + sizes).transpose(2, 0, 1), 0 * label, label)
    found = (0 * guess + index, *first.transpose(2, 0, 1), *last.transpose(2, 0, 1), generator.random(shape), guess)
    return {"truth": np.stack(truth, axis=2), "detections": np.stack(found, axis=2)}


def _by_sightline(inputs: dict[str, np.ndarray]) -> Tensor:
    """In batches of 16 images, as they come in an evaluation."""
    metric = BoxAp(class_names=tuple(map(str, range(NUM_CLASSES))))
    state = metric.new_state()
    truth, found = map(torch.from_numpy, inputs.values())
    area = (truth[..., 3:5] - truth[..., 1:3]).prod(dim=2, keepdim=True)
    truth = torch.cat([truth[..., 1:5], truth[..., 6:], area, torch.zeros_like(area)], dim=2)
    for index in torch.arange(len(truth)).split(16):
        metric.update(
            state,
            detections=found[index, :, 1:].flatten(0, 1),
            detection_offsets=torch.arange(len(index) + 1) * found.shape[1],
            truth=truth[index].flatten(0, 1),
            truth_offsets=torch.arange(len(index) + 1) * truth.shape[1],
            sample_index=index,
        )
    return torch.tensor(itemgetter(*_NAMES)(metric.compute(state)), dtype=torch.float64)


@contextmanager
def _by_pycocotools(inputs: dict[str, np.ndarray]) -> Iterator[Run]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    coco = COCO()
    numbers = {"images": len(inputs["truth"]), "categories": NUM_CLASSES}
    coco.dataset = {name: [{"id": number} for number in range(count)] for name, count in numbers.items()}

    def run() -> Tensor:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(truth, found, "bbox")
            for stage in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
                stage()
        return torch.from_numpy(evaluation.stats)

    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        tables = (table.reshape(-1, 7) for table in inputs.values())
        truth, found = (coco.loadRes(each - np.pad(each[:, 1:3], ((0, 0), (3, 2)))) for each in tables)
    yield run
