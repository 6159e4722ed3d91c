"""Benchmarks of overlaps and suppression of boxes, each against its plain form."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import BenchmarkCase, allclose, equal, implementation
from sightline.ops.boxes.overlaps import box_iou, iou
from sightline.ops.boxes.suppression import batched_nms, soft_nms, sort_detections
from sightline.ops.operator import OPERATORS

WIDTH, HEIGHT = 1344, 800
"""Size of an image, in pixels."""


def cases() -> list[BenchmarkCase]:
    return [
        BenchmarkCase(
            suite="geometry",
            label="box_iou_{boxes}x{labels}",
            size={"boxes": 10_000, "labels": 1000},
            quick={"boxes": 200, "labels": 50},
            make=_make_box_sets,
            baseline=implementation("plain", lambda sets: iou(sets["boxes"][:, None], sets["labels"]), equal),
            variants=(implementation("sightline", lambda sets: box_iou(sets["boxes"], sets["labels"]), equal),),
        ),
        *(
            _suppression_case(name, 10_000, equal, batched_nms, _suppress_plainly, num_classes, iou_threshold=0.5)
            for name, num_classes in (("greedy", 1), ("greedy_20_classes", 20), ("greedy_80_classes", 80))
        ),
        *(
            _suppression_case(
                f"soft_{name}",
                1000,
                allclose(1e-6),
                lambda **inputs: soft_nms(**inputs)._asdict(),
                _weaken_plainly,
                sigma=sigma,
            )
            for name, sigma in (("linear", None), ("gaussian", 0.5))
        ),
    ]


def _suppress_plainly(boxes: Tensor, scores: Tensor, idxs: Tensor, *, iou_threshold: float) -> Tensor:
    order, *columns = sort_detections(boxes, scores, idxs, iou_threshold, None)
    return order[OPERATORS["keep_greedily"].plain(*columns)]


def _weaken_plainly(boxes: Tensor, scores: Tensor, idxs: Tensor, *, sigma: float | None) -> dict[str, Tensor]:
    limits = torch.full_like(scores, sigma or 0.3)
    weakened = OPERATORS["weaken"].plain(boxes, scores, idxs, limits, sigma is None, 1e-3)
    order = weakened.argsort(descending=True, stable=True)
    indices = order[weakened[order] >= 0]
    return {"indices": indices, "scores": weakened[indices]}


def _suppression_case(
    name: str, boxes: int, agrees: Any, form: Any, plain: Any, num_classes: int = 1, **limits: Any
) -> BenchmarkCase:
    """Make a case of NMS; with classes, a plain loop of each class by itself stands beside the one of all."""

    def run_by_class(inputs: dict[str, Any]) -> Any:
        rows = [(inputs["idxs"] == number).nonzero()[:, 0] for number in range(num_classes)]
        parts = [row[plain(**{key: value[row] for key, value in inputs.items()}, **limits)] for row in rows]
        kept = torch.cat(parts).sort().values
        return kept[inputs["scores"][kept].argsort(descending=True, stable=True)]

    by_class = (implementation("plain_loop_by_class", run_by_class, agrees),) if num_classes > 1 else ()
    return BenchmarkCase(
        suite="geometry",
        label=f"suppress_{name}_{{boxes}}",
        size={"boxes": boxes},
        quick={"boxes": 200},
        make=partial(_make_detections, num_classes=num_classes),
        baseline=implementation("plain_loop", lambda inputs: plain(**inputs, **limits), agrees),
        variants=(*by_class, implementation("sightline", lambda inputs: form(**inputs, **limits), agrees)),
    )


def draw_people(num_boxes: int, per_person: int, generator: torch.Generator) -> Tensor:
    """Draw boxes (N, 4) around standing people of 20 to 245 px in an image of 1344 x 800, several per person."""
    people = -(-num_boxes // per_person)
    centres = torch.rand(people, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT])
    heights = torch.exp(3 + 2.5 * torch.rand(people, 1, generator=generator))
    sizes = heights * torch.tensor([0.41, 1.0])
    centres, sizes = (item.repeat_interleave(per_person, dim=0)[:num_boxes] for item in (centres, sizes))
    centres = centres + 0.1 * sizes * torch.randn(num_boxes, 2, generator=generator)
    sizes = sizes * torch.exp(0.1 * torch.randn(num_boxes, 2, generator=generator))
    return torch.cat([centres - sizes / 2, centres + sizes / 2], dim=1)


def _make_box_sets(*, boxes: int, labels: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {"boxes": draw_people(boxes, 20, generator), "labels": draw_people(labels, 1, generator)}


def _make_detections(*, boxes: int, num_classes: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(boxes, generator=generator)
    people = draw_people(boxes, 20, generator)
    return {"boxes": people, "scores": scores, "idxs": torch.randint(0, num_classes, (boxes,), generator=generator)}
