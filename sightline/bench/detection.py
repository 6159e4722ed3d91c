"""A detector's training step, what targets, losses and photos add to it, and the precision of its boxes."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sightline.bench.agreement import allclose
from sightline.bench.case import Case, Run, Variant, variant
from sightline.config import read_config
from sightline.data.boxes.yolo_txt import YoloTxt
from sightline.data.synthetic.crowd_scenes import draw_scene
from sightline.engine.build import build
from sightline.engine.device import to_device
from sightline.engine.distributed import World
from sightline.engine.records import StepRecord
from sightline.engine.step import prepare_step, weighted_sum
from sightline.engine.train import Job, optimise_once, train
from sightline.metrics.box_ap import BoxAp
from sightline.types import Batch

__all__ = ["metric_cases", "model_cases", "train_cases"]

NUM_STEPS = 4
NUM_CLASSES = 80
CONFIG = """\
name: bench
task: {{name: detect, assigner: {{name: max_iou}}}}
data: {{name: yolo_txt, root: {root}}}
model: {{name: detector, backbone: {{name: resnet18}}, neck: {{name: fpn, width: 64}}, head: {{name: retina}}}}
losses: [{{name: sigmoid_focal}}, {{name: box_smooth_l1}}]
metrics: [{{name: box_ap}}]
transforms:
  train: [{{name: flip_image}}, {{name: fit_image, height: {size}, width: {size}}}, {{name: normalize_image}}]
  evaluate: [{{name: fit_image, height: {size}, width: {size}}}, {{name: normalize_image}}]
optimizer: {{name: sgd, lr: 1e-4}}
train: {{epochs: 1000, batch_size: {images}}}
evaluate: {{metric: ap50}}
"""
"""A narrow head, as in the recipe of coco128: beside a wider one, targets, losses and photos cost a smaller share."""
_NEAR_IN_16_BITS = 0.05
_SIZES = ("", "_small", "_medium", "_large")
_NAMES = ("ap", "ap50", "ap75", *(f"ap{size}" for size in _SIZES[1:]), "ar1", "ar10", *(f"ar{size}" for size in _SIZES))
"""Our names of pycocotools' twelve numbers, in its order."""


def model_cases() -> list[Case]:
    """A step in float32, and in bf16 with the channels of a pixel side by side in memory."""
    half = _opened(_whole_step, "train.precision=bf16", "model.channels_last=true")
    return [_case("models", "retinanet_step", "plain", _whole_step, Variant("sightline_bf16", half, _near))]


def train_cases() -> list[Case]:
    """A ratio of 0.9 says that the form adds what makes a step of nine parts one of ten."""
    whole = Variant("sightline", _opened(_whole_step), allclose(1e-5))
    from_photos = Variant("sightline", _opened(_from_photos, "loader.workers=2"), allclose(1e-5))
    return [
        _case("train", "detection_targets", "network", _network, whole),
        _case("train", "detection_photos", "ready_batches", _ready_batches, from_photos),
    ]


def metric_cases() -> list[Case]:
    """The twelve numbers of COCO; pycocotools' time is that of evaluating, after its structures are made."""
    return [
        Case(
            suite="metrics",
            label="box_ap_{images}x{detections}",
            size={"images": 5000, "detections": 100},
            quick={"images": 20, "detections": 10},
            make=_boxes,
            baseline=Variant("pycocotools", _by_pycocotools, _same_numbers, needs="pycocotools"),
            variants=(variant("sightline", _by_sightline, _same_numbers),),
        )
    ]


Open = Callable[[dict[str, Any]], AbstractContextManager[Run]]


def _case(suite: str, name: str, baseline: str, plain: Callable[[Job], Run], form: Variant) -> Case:
    return Case(
        suite=suite,
        label=f"{name}_{{images}}x{{size}}",
        size={"images": 4, "size": 320},
        quick={"images": 1, "size": 128},
        make=dict,
        baseline=Variant(baseline, _opened(plain), form.agrees),
        variants=(form,),
    )


def _opened(make: Callable[[Job], Run], *overrides: str) -> Open:
    """A form that begins with a new network and photos in files, prepared as a set of YOLO's."""

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
    """JPEG files of 640 x 480 pixels with the bytes of COCO's: drawn crowds, grainy, each person of a random class."""
    generator = np.random.default_rng(0)
    for split, number in [("train", number) for number in range(count)] + [("val", 0), ("test", 0)]:
        scene = draw_scene(generator, height=480, width=640)
        grain = generator.normal(0, 8, scene.image.shape)
        boxes = np.array([person.full for person in scene.people]).clip(0, [640, 480, 640, 480]) / [640, 480, 640, 480]
        centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        rows = np.column_stack((generator.integers(0, NUM_CLASSES, len(boxes)), centres, sizes))[
            (sizes > 0).all(axis=1)
        ]
        for place in ("images", "labels"):
            (folder / place / split).mkdir(parents=True, exist_ok=True)
        pixels = Image.fromarray((scene.image + grain).clip(0, 255).astype(np.uint8))
        pixels.save(folder / "images" / split / f"{number}.jpg", quality=95)
        np.savetxt(folder / "labels" / split / f"{number}.txt", rows, fmt=("%d", *["%.6f"] * 4))
    (folder / "classes.txt").write_text("\n".join(f"class {number}" for number in range(NUM_CLASSES)))


class _NoLaps:
    def lap(self, name: str) -> None:
        pass


def _batch(job: Job, step: int) -> Batch:
    return to_device(job.stream.reader(job.stream.plan.parts(step)[0][0]), torch.device("cpu"), floats=torch.float32)


def _total(job: Job, batch: Batch) -> float:
    found = optimise_once(job, job.model, [batch], World(), _NoLaps())
    return sum(found[name] for name in job.weights)


def _whole_step(job: Job) -> Run:
    """One step of the engine on a batch that is there; the answer is its loss, and the gradient of all weights."""
    batch = _batch(job, 0)

    def run() -> dict[str, Tensor]:
        return {"loss": torch.tensor(_total(job, batch)), **_gradients(job)}

    return run


def _network(job: Job) -> Run:
    """The same step from the gradient of the outputs on: no assignment, no losses."""
    batch = _batch(job, 0)
    kept: dict[str, Tensor] = {}
    handle = job.model.register_forward_hook(lambda module, given, made: kept.update(made))
    step = prepare_step(job.task, job.model.train(), [batch], World())
    loss = weighted_sum(step.means(step.sums(job.model)), job.weights_at(0))
    handle.remove()
    gradients = torch.autograd.grad(loss, [kept["logits"], kept["codes"]])

    def run() -> dict[str, Tensor]:
        job.optimizer.zero_grad(set_to_none=True)
        made = job.model(image=batch["image"])
        torch.autograd.backward([made["logits"], made["codes"]], gradients)
        job.optimizer.step()
        return {"loss": loss.detach(), **_gradients(job)}

    return run


def _gradients(job: Job) -> dict[str, Tensor]:
    return {name: each.grad for name, each in job.model.named_parameters() if each.grad is not None}


def _ready_batches(job: Job) -> Run:
    """Steps on batches that are there; the answer is the loss of each."""
    batches = [_batch(job, step) for step in range(NUM_STEPS)]
    return lambda: torch.tensor([_total(job, batch) for batch in batches])


def _from_photos(job: Job) -> Run:
    """The same steps on batches that two worker processes read from the files, which begin and end with the run."""

    def run() -> Tensor:
        losses: list[float] = []

        def after_step(record: StepRecord, stop_asked: bool) -> bool:
            losses.append(record.losses["total"])
            return stop_asked

        job.step, job.num_steps = 0, NUM_STEPS
        train(job, World(), after_step)
        return torch.tensor(losses)

    return run


def _near(inputs: Any, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    return allclose(_NEAR_IN_16_BITS)(inputs, expected["loss"], found["loss"])


def _boxes(*, images: int, detections: int) -> dict[str, Any]:
    """Labels of 80 classes, 8 an image on average, one of fifty a crowd; three of five detections have their class."""
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 16, images)
    corners, sizes = 500 * generator.random((counts.sum(), 2)), np.exp(generator.uniform(2, 5.5, (counts.sum(), 2)))
    label = generator.integers(0, NUM_CLASSES, len(sizes))
    is_crowd = generator.random(len(sizes)) < 0.02
    truth = np.column_stack((corners, corners + sizes, label, 0.7 * sizes.prod(axis=1), is_crowd))
    near = (np.cumsum(counts) - counts).repeat(detections)
    near += generator.integers(0, counts.repeat(detections))
    moved = truth[near, :4] + generator.normal(0, 0.1, (len(near), 4)) * np.tile(sizes[near], 2)
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
    guess = np.where(generator.random(len(near)) < 0.6, label[near], generator.integers(0, NUM_CLASSES, len(near)))
    found = np.column_stack((moved, generator.random(len(near)), guess))
    offsets = {"truth": np.append(0, np.cumsum(counts)), "detections": np.arange(images + 1) * detections}
    return {"truth": truth, "detections": found, "offsets": offsets}


def _by_sightline(inputs: dict[str, Any]) -> dict[str, float]:
    """In batches of 16 images, as they come in an evaluation."""
    metric = BoxAp(class_names=tuple(map(str, range(NUM_CLASSES))))
    state, num_images = metric.new_state(), len(inputs["offsets"]["truth"]) - 1
    for first in range(0, num_images, 16):
        last, given = min(first + 16, num_images), {}
        for name, own in inputs["offsets"].items():
            given[name] = torch.from_numpy(inputs[name][own[first] : own[last]])
            given[f"{name}_offsets".replace("detections_", "detection_")] = torch.from_numpy(own[first : last + 1])
        metric.update(state, sample_index=torch.arange(first, last), **given)
    return metric.compute(state)


@contextmanager
def _by_pycocotools(inputs: dict[str, Any]) -> Iterator[Run]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    image = {name: np.arange(len(own) - 1).repeat(np.diff(own)).tolist() for name, own in inputs["offsets"].items()}

    def rows(name: str) -> Iterator[tuple[dict[str, Any], list[float]]]:
        for number, (index, row) in enumerate(zip(image[name], inputs[name].tolist(), strict=True)):
            left, top, right, bottom, *rest = row
            yield {"id": number + 1, "image_id": index, "bbox": [left, top, right - left, bottom - top]}, rest

    truth = COCO()
    truth.dataset = {
        "images": [{"id": index} for index in range(len(inputs["offsets"]["truth"]) - 1)],
        "categories": [{"id": number} for number in range(NUM_CLASSES)],
        "annotations": [
            {**about, "category_id": int(label), "area": area, "iscrowd": int(crowd)}
            for about, (label, area, crowd) in rows("truth")
        ],
    }
    found = [{**about, "category_id": int(label), "score": score} for about, (score, label) in rows("detections")]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        results = truth.loadRes(found)

    def run() -> dict[str, float]:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(truth, results, "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return dict(zip(_NAMES, evaluation.stats.tolist(), strict=True))

    yield run


def _same_numbers(inputs: Any, expected: Mapping[str, float], found: Mapping[str, float]) -> str | None:
    for name, value in expected.items():
        if not abs(found[name] - value) <= 1e-9:
            return f"{name} is {found[name]:.12f}, the baseline has {value:.12f}"
    return None
