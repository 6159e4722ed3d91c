"""Benchmark of box average precision, compared with pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

from sightline.bench.case import BenchmarkCase, Implementation, Run, allclose, implementation
from sightline.metrics.box_ap import BoxAp

NUM_CLASSES = 80
_NAMES = "ap ap50 ap75 ap_small ap_medium ap_large ar1 ar10 ar ar_small ar_medium ar_large".split()
"""Our names of the twelve metrics of pycocotools, in its order."""


def cases() -> list[BenchmarkCase]:
    """Make the case of COCO's twelve metrics; pycocotools' time excludes building its data structures."""
    size, quick = {"images": 5000, "detections": 100}, {"images": 20, "detections": 10}
    pycocotools = Implementation("pycocotools", _open_pycocotools, allclose(1e-9), needs="pycocotools")
    form = implementation("sightline", _compute_by_sightline, allclose(1e-9))
    return [BenchmarkCase("metrics", "box_ap_{images}x{detections}", size, quick, _make_boxes, pycocotools, (form,))]


def _make_boxes(*, images: int, detections: int) -> dict[str, np.ndarray]:
    """Draw 8 labels per image, of 80 classes, and detections, 60 % with the right class: image, box, score, class."""
    generator = np.random.default_rng(0)
    index, order, shape = np.arange(images)[:, None], np.arange(detections) % 8, (images, detections)
    corners, sizes = 500 * generator.random((images, 8, 2)), np.exp(generator.uniform(2, 5.5, (images, 8, 2)))
    label = generator.integers(0, NUM_CLASSES, (images, 8))
    first = corners[:, order] + sizes[:, order] * generator.normal(0, 0.1, (*shape, 2))
    last = first + sizes[:, order] * generator.uniform(0.8, 1.25, first.shape)
    guess = np.where(generator.random(shape) < 0.6, label[:, order], generator.integers(0, NUM_CLASSES, shape))
    truth = (0 * label + index, *corners.transpose(2, 0, 1), *(corners + sizes).transpose(2, 0, 1), 0 * label, label)
    detected = (0 * guess + index, *first.transpose(2, 0, 1), *last.transpose(2, 0, 1), generator.random(shape), guess)
    return {"truth": np.stack(truth, axis=2), "detections": np.stack(detected, axis=2)}


def _compute_by_sightline(inputs: dict[str, np.ndarray]) -> Tensor:
    """Compute the metrics by `BoxAp` in batches of 16 images, as in an evaluation."""
    metric = BoxAp(class_names=tuple(map(str, range(NUM_CLASSES))))
    state = metric.new_state()
    truth, detections = map(torch.from_numpy, inputs.values())
    area = (truth[..., 3:5] - truth[..., 1:3]).prod(dim=2, keepdim=True)
    truth = torch.cat([truth[..., 1:5], truth[..., 6:], area, torch.zeros_like(area)], dim=2)
    for index in torch.arange(len(truth)).split(16):
        metric.update(
            state,
            detections=detections[index, :, 1:].flatten(0, 1),
            detection_offsets=torch.arange(len(index) + 1) * detections.shape[1],
            truth=truth[index].flatten(0, 1),
            truth_offsets=torch.arange(len(index) + 1) * truth.shape[1],
            sample_index=index,
        )
    return torch.tensor(itemgetter(*_NAMES)(metric.compute(state)), dtype=torch.float64)


@contextmanager
def _open_pycocotools(inputs: dict[str, np.ndarray]) -> Iterator[Run]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    coco = COCO()
    numbers = {"images": len(inputs["truth"]), "categories": NUM_CLASSES}
    coco.dataset = {name: [{"id": number} for number in range(count)] for name, count in numbers.items()}

    def run() -> Tensor:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(truth, detections, "bbox")
            for stage in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
                stage()
        return torch.from_numpy(evaluation.stats)

    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        tables = (rows.reshape(-1, 7) for rows in inputs.values())
        truth, detections = (coco.loadRes(table - np.pad(table[:, 1:3], ((0, 0), (3, 2)))) for table in tables)
    yield run
