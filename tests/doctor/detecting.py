"""Small detectors of the embedded crowds with planted bugs, and how often the checks of a training's start find them.

`python -m tests.doctor.detecting 10` prints the table for ten seeds, `python -m tests.doctor.detecting` the processor
time of these checks.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from sightline.areas.detect import heads
from sightline.areas.detect import task as detect
from sightline.areas.detect.assigners.base import BACKGROUND, IGNORED, Assigner, Assignment
from sightline.areas.detect.heads import DenseHead, RetinaHead
from sightline.areas.detect.losses import SigmoidFocal, sigmoid_focal
from sightline.areas.detect.metrics.box_ap import BoxAp
from sightline.areas.detect.metrics.crowds import CrowdAp
from sightline.areas.detect.sets import synthetic_crowds
from sightline.areas.detect.sets.synthetic_crowds import SyntheticCrowds
from sightline.areas.detect.task import Detect
from sightline.compute.geometry.boxes.priors import Priors
from sightline.config import read_config
from sightline.contract.types import Sample
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.workbench.check.context import CHECKS, Context
from sightline.workbench.check.core.finding import Finding
from sightline.workbench.check.suite import all_checks
from tests.conftest import ROOT
from tests.doctor.power import processor_time, table

__all__ = ["BUGS", "NEW", "Bug", "edited", "findings_of", "make_crowds", "quick"]

NEW = (
    *("broken-boxes", "swapped-canvas", "anchor-coverage", "unmatched-boxes", "ignored-regions"),
    *("prior-bias", "level-order", "loss-normaliser", "untrained-class", "box-protocol", "box-evaluation"),
)
SMALL = (
    *("data.train_size=24", "data.validation_size=2", "data.test_size=2"),
    *("model.backbone.width=8", "model.neck.width=32"),
)
Patch = pytest.MonkeyPatch
READ = SyntheticCrowds.__getitem__
_DRAWN: dict[Any, Any] = {}
QUICK_S = 1.5  # what a step may take at the start of a training


def make_crowds(*overrides: str, name: str = "retinanet", seed: int = 0) -> TrainingSetup:
    """A shipped recipe of detection with a narrow network, on other crowds for every seed."""
    words = (*SMALL, f"seed={seed}", f"data.data_seed={seed}", *overrides)
    built = build(read_config(ROOT / f"configs/detect/synthetic_crowds_{name}.yaml", words), World())
    for part in (built.data.train, built.data.selection, built.data.test):
        dataset: Any = part.dataset
        key = (dataset._split, dataset._data_seed, dataset._boxes)
        dataset._cache = _DRAWN.setdefault(key, dataset._cache)  # drawing them is most of the work
    return built


def findings_of(context: Context, codes: tuple[str, ...] = NEW) -> list[Finding]:
    """What some checks find, without notes."""
    all_checks()
    return [each for code in codes for each in CHECKS[code](context) if each.severity != "note"]


def quick(built: TrainingSetup) -> Context:
    """As at the start of a training."""
    return Context(built, World(), QUICK_S)


class Bug(NamedTuple):
    """What is planted by patching or by config; the check that finds it, with which cause among those it names."""

    code: str
    cause: str
    plant: Callable[[Patch], Any] = lambda patch: None
    overrides: tuple[str, ...] = ()


# --- data -------------------------------------------------------------------------------------------------------------


def edited(patch: Patch, edit: Callable[[Sample], Sample]) -> None:
    """Samples of the crowds changed as they are read."""
    patch.setattr(SyntheticCrowds, "__getitem__", lambda dataset, key: edit(dict(READ(dataset, key))))


def _boxes(change: Callable[[Tensor], Tensor]) -> Callable[[Patch], None]:
    def edit(sample: Sample) -> Sample:
        truth = sample["truth"].clone()
        truth[:, :4] = change(truth[:, :4])
        return {**sample, "boxes": change(sample["boxes"]), "truth": truth}

    return lambda patch: edited(patch, edit)


def _sides(boxes: Tensor) -> Tensor:
    return boxes[:, 2:] - boxes[:, :2]


def _middles(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] + boxes[:, :2]) / 2


def _turned_at_times(boxes: Tensor) -> Tensor:
    """The corners of a tenth of the boxes exchanged."""
    return torch.where(torch.arange(len(boxes))[:, None] % 10 == 0, boxes[:, [2, 3, 0, 1]], boxes)


def _unflagged(sample: Sample) -> Sample:
    return {**sample, "is_ignored": torch.zeros_like(sample["is_ignored"])}


def _left_out(sample: Sample) -> Sample:
    kept = ~sample["is_ignored"]
    return {**sample, **{name: sample[name][kept] for name in ("boxes", "label", "is_ignored")}}


# --- assigners --------------------------------------------------------------------------------------------------------


def _matched(change: Callable[[Tensor, Priors], Tensor]) -> Callable[[Patch], None]:
    """The assigner's result changed."""
    call = Assigner.__call__

    def changed(self: Assigner, priors: Priors, boxes: Tensor, is_ignored: Tensor) -> Assignment:
        found = call(self, priors, boxes, is_ignored)
        return Assignment(change(found.matched, priors), found.num_candidates)

    return lambda patch: patch.setattr(Assigner, "__call__", changed)


def _regions_are(kind: str) -> Callable[[Patch], None]:
    """An assigner that treats ignored boxes as background, or as any other box."""
    call = Assigner.__call__

    def background(self: Assigner, priors: Priors, boxes: Tensor, is_ignored: Tensor) -> Assignment:
        targets = (~is_ignored).nonzero().flatten()
        if not len(targets):
            return call(self, priors, boxes[:0], is_ignored[:0])
        found = call(self, priors, boxes[targets], is_ignored[targets])
        matched = torch.where(found.matched >= 0, targets[found.matched.clamp(min=0)], found.matched)
        return Assignment(matched, found.num_candidates)

    def boxes_too(self: Assigner, priors: Priors, boxes: Tensor, is_ignored: Tensor) -> Assignment:
        return call(self, priors, boxes, torch.zeros_like(is_ignored))

    return lambda patch: patch.setattr(Assigner, "__call__", background if kind == "background" else boxes_too)


def _only_finest(matched: Tensor, priors: Priors) -> Tensor:
    return torch.where((matched >= 0) & (priors.prior_level > 0), BACKGROUND, matched)


def _reversed_anchors(patch: Patch) -> None:
    """The coarsest anchors on the finest map, and so on."""
    made = Detect.get_priors

    def turned(self: Detect, image: Tensor) -> Priors:
        priors = made(self, image)
        per_cell = priors.priors_per_cell[0]
        sides = [
            priors.coordinates[rows][:per_cell, 2:] - priors.coordinates[rows][:per_cell, :2]
            for rows in priors.level_slices
        ]
        halves = [
            each.repeat(count // per_cell, 1) / 2 for each, count in zip(sides[::-1], priors.num_per_level, strict=True)
        ]
        rows = torch.cat([priors.centres - torch.cat(halves), priors.centres + torch.cat(halves)], dim=1)
        return Priors("anchors", rows, priors.strides, priors.maps, priors.priors_per_cell)

    patch.setattr(Detect, "get_priors", turned)


# --- losses -----------------------------------------------------------------------------------------------------------


def _count(count: Callable[[Tensor], Tensor]) -> Callable[[Patch], None]:
    def counted(self: SigmoidFocal, *, target: Tensor) -> Tensor:
        return count(target)

    return lambda patch: patch.setattr(SigmoidFocal, "count", counted)


def _learns_ignored(patch: Patch) -> None:
    def forward(self: SigmoidFocal, *, logits: Tensor, target: Tensor) -> Tensor:
        is_target = target[..., None] == torch.arange(logits.shape[-1])
        weight = torch.ones_like(logits[..., :1])
        return sigmoid_focal(logits, is_target, alpha=self.alpha, gamma=self.gamma, weight=weight)

    patch.setattr(SigmoidFocal, "forward", forward)


# --- heads ------------------------------------------------------------------------------------------------------------


def _bias(value: float) -> Callable[[Patch], None]:
    def start(self: DenseHead, prior: float) -> None:
        nn.init.constant_(self.classes.conv.bias, value)  # type: ignore[arg-type]

    return lambda patch: patch.setattr(DenseHead, "_start", start)


def _norm_after(patch: Patch) -> None:
    """A batch norm after the class layer takes its bias away."""
    made = RetinaHead.forward

    @functools.wraps(made)
    def forward(self: RetinaHead, maps: Any) -> Any:
        outputs = made(self, maps)
        logits = outputs["logits"]
        return {**outputs, "logits": (logits - logits.mean()) / logits.std()}

    patch.setattr(RetinaHead, "forward", forward)


def _order(flatten: Callable[[list[Tensor], int], Tensor]) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(heads, "flatten_to_priors", flatten)


def _levels(maps: list[Tensor], numbers: int, order: tuple[int, ...] = (0, 3, 4, 1, 2)) -> list[Tensor]:
    return [each.unflatten(1, (-1, numbers)).permute(*order).flatten(1, 3) for each in maps]


# --- evaluation -------------------------------------------------------------------------------------------------------


def _on_canvas(patch: Patch) -> None:
    """Detections are scored where the network predicts them."""
    patch.setattr(detect, "to_file_pixels", lambda found, to_canvas, file_px, clip: found.double())


def _rescaled_truth(sample: Sample) -> Sample:
    truth = sample["truth"].clone()
    truth[:, :4] *= 0.75
    return {**sample, "truth": truth}


def _unflagged_truth(sample: Sample) -> Sample:
    truth = sample["truth"].clone()
    truth[:, 6] = 0
    return {**sample, "truth": truth}


def _update(metric: Any, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Patch], None]:
    """A metric that is given something else."""
    made = metric.update

    @functools.wraps(made)
    def update(self: Any, state: Any, **given: Any) -> None:
        made(self, state, **change(given))

    return lambda patch: patch.setattr(metric, "update", update)


def _all_count(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**given, "truth": torch.cat([given["truth"][:, :6], 0 * given["truth"][:, 6:]], dim=1)}


def _ignored_left_out(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ignored labels are dropped, so that what lies in them is wrong."""
    kept = given["truth"][:, 6] == 0
    counts = torch.cat([torch.zeros(1, dtype=torch.int64), kept.cumsum(0)])
    given = {name: rows[kept] if name in ("truth", "truth_visible") else rows for name, rows in given.items()}
    return {**given, "truth_offsets": counts[given["truth_offsets"]]}


def _where_found(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Images without a detection are left out, with their labels."""
    seen = given["detection_offsets"].diff() > 0
    counts = given["truth_offsets"].diff()
    rows = seen.repeat_interleave(counts)
    given = {name: each[rows] if name in ("truth", "truth_visible") else each for name, each in given.items()}
    return {
        **{name: each[seen] if name in ("sample_index", "file_px") else each for name, each in given.items()},
        "truth_offsets": torch.cat([counts[:0], torch.zeros(1, dtype=torch.int64), counts[seen].cumsum(0)]),
        "detection_offsets": torch.cat([given["detection_offsets"][:1], given["detection_offsets"][1:][seen]]),
    }


def _two_classes(patch: Patch) -> None:
    """Every other person is a rider."""
    made = synthetic_crowds.box_facts

    def alternated(sample: Sample) -> Sample:
        truth = sample["truth"].clone()
        truth[:, 4] = torch.arange(len(truth)) % 2
        return {**sample, "truth": truth, "label": torch.arange(len(sample["label"])) % 2}

    patch.setattr(synthetic_crowds, "box_facts", lambda names, kind: made(("person", "rider"), kind))
    edited(patch, alternated)


_CROWD = "metrics=[{name: crowd_ap}]", "evaluate.metric=crowd_ap"
_SMALL_CANVAS = tuple(
    f"transforms.{stage}.{side}" for stage in ("train.1", "evaluate.0") for side in ("height=144", "width=192")
)


BUGS = {
    "evaluated on the canvas": Bug("box-evaluation", "eval.coordinate", _on_canvas),
    "evaluated on the canvas, half as large": Bug("box-evaluation", "eval.coordinate", _on_canvas, _SMALL_CANVAS),
    "labels in pixels of the canvas": Bug(
        "box-evaluation", "eval.coordinate", lambda patch: edited(patch, _rescaled_truth), _SMALL_CANVAS
    ),
    "the flag is lost in what is scored": Bug(
        "box-evaluation", "data.ignore_handling", lambda patch: edited(patch, _unflagged_truth)
    ),
    "box_ap scores ignored boxes": Bug("box-evaluation", "data.ignore_handling", _update(BoxAp, _all_count)),
    "crowd_ap scores ignored boxes": Bug(
        "box-evaluation", "data.ignore_handling", _update(CrowdAp, _all_count), _CROWD
    ),
    "box_ap drops ignored boxes": Bug("box-evaluation", "data.ignore_handling", _update(BoxAp, _ignored_left_out)),
    "box_ap drops images without detections": Bug("box-evaluation", "eval.protocol", _update(BoxAp, _where_found)),
    "crowd_ap drops images without detections": Bug(
        "box-evaluation", "eval.protocol", _update(CrowdAp, _where_found), _CROWD
    ),
    "score threshold 0.7": Bug("box-protocol", "eval.protocol", overrides=("task.score=0.7",)),
    "score threshold 0.1": Bug("box-protocol", "eval.protocol", overrides=("task.score=0.1",)),
    "score threshold 0.05 for crowd_ap": Bug("box-protocol", "eval.protocol", overrides=(*_CROWD, "task.score=0.05")),
    "ten detections an image": Bug("box-protocol", "eval.protocol", overrides=("task.most=10",)),
    "ten detections looked at": Bug("box-protocol", "eval.protocol", overrides=("metrics.0.most=10",)),
    "classes suppress one another": Bug(
        "box-protocol", "eval.decode", _two_classes, ("task.suppression={name: greedy, per_class: false}",)
    ),
    "classes suppress one another from 0.3 on": Bug(
        "box-protocol",
        "eval.decode",
        _two_classes,
        ("task.suppression={name: greedy, per_class: false, iou_threshold: 0.3}",),
    ),
    "width and height for right and bottom": Bug(
        "broken-boxes", "assign.box_format", _boxes(lambda b: torch.cat([b[:, :2], _sides(b)], dim=1))
    ),
    "middle, width, height for corners": Bug(
        "broken-boxes", "assign.box_format", _boxes(lambda b: torch.cat([_middles(b), _sides(b)], dim=1))
    ),
    "corners taken for left, top, width, height": Bug(
        "broken-boxes", "assign.box_format", _boxes(lambda b: torch.cat([b[:, :2], b[:, :2] + b[:, 2:]], dim=1))
    ),
    "middles taken for left, top": Bug(
        "broken-boxes", "assign.box_format", _boxes(lambda b: b + _sides(b).repeat(1, 2) / 2), ("data.box=visible",)
    ),
    "a tenth of the corners exchanged": Bug("broken-boxes", "data.corrupt_sample", _boxes(_turned_at_times)),
    "right, bottom first": Bug("broken-boxes", "assign.box_format", _boxes(lambda b: b[:, [2, 3, 0, 1]])),
    "shares for pixels": Bug(
        "broken-boxes", "data.normalisation", _boxes(lambda b: b / torch.tensor([256, 192, 256, 192]))
    ),
    "x and y exchanged": Bug("broken-boxes", "cfg.axis_swap", _boxes(lambda b: b[:, [1, 0, 3, 2]])),
    "boxes of images twice as large": Bug("broken-boxes", "data.corrupt_sample", _boxes(lambda b: b * 2)),
    "file_px is width, height": Bug(
        "broken-boxes", "cfg.axis_swap", lambda patch: edited(patch, lambda s: {**s, "file_px": s["file_px"].flip(0)})
    ),
    "canvas of width x height": Bug(
        "swapped-canvas",
        "cfg.axis_swap",
        overrides=tuple(
            f"transforms.{stage}.{side}" for stage in ("train.1", "evaluate.0") for side in ("height=256", "width=192")
        ),
    ),
    "anchors four times as large": Bug(
        "anchor-coverage", "assign.anchor_coverage", overrides=("task.anchors.base_strides=8.0",)
    ),
    "anchors a quarter as large": Bug(
        "anchor-coverage", "assign.anchor_coverage", overrides=("task.anchors.base_strides=0.5",)
    ),
    "anchors in the reverse order of the maps": Bug("anchor-coverage", "assign.anchor_coverage", _reversed_anchors),
    "no best anchor for a box": Bug(
        "unmatched-boxes", "assign.unmatched_gt", overrides=("task.assigner={name: max_iou, low_quality: null}",)
    ),
    "no best anchor, threshold 0.7": Bug(
        "unmatched-boxes",
        "assign.unmatched_gt",
        overrides=("task.assigner={name: max_iou, low_quality: null, positive: 0.7}",),
    ),
    "positives on one level alone": Bug("unmatched-boxes", "assign.unmatched_gt", _matched(_only_finest)),
    "no positives": Bug("unmatched-boxes", "assign.unmatched_gt", _matched(lambda m, priors: m.clamp(max=BACKGROUND))),
    "no negatives": Bug(
        "unmatched-boxes", "loss.negatives", _matched(lambda m, priors: torch.where(m < 0, IGNORED, m))
    ),
    "ignored regions are background": Bug("ignored-regions", "assign.ignore", _regions_are("background")),
    "ignored regions are boxes": Bug("ignored-regions", "assign.ignore", _regions_are("boxes")),
    "is_ignored is never set": Bug("ignored-regions", "data.ignore_handling", lambda patch: edited(patch, _unflagged)),
    "ignored boxes are left out": Bug(
        "ignored-regions", "data.ignore_handling", lambda patch: edited(patch, _left_out)
    ),
    "divided by all priors": Bug(
        "loss-normaliser", "loss.normaliser", _count(lambda target: torch.tensor(target.numel()))
    ),
    "divided by all but the ignored": Bug(
        "loss-normaliser", "loss.normaliser", _count(lambda target: (target != IGNORED).sum())
    ),
    "ignored ones count as boxes": Bug(
        "loss-normaliser", "loss.normaliser", _count(lambda target: (target != BACKGROUND).sum())
    ),
    "ignored ones are learned": Bug("loss-normaliser", "data.ignore_handling", _learns_ignored),
    "no prior bias": Bug("prior-bias", "model.init", _bias(0.0)),
    "bias of the wrong sign": Bug("prior-bias", "model.init", _bias(4.6)),
    "bias of one in a million": Bug("prior-bias", "model.init", _bias(-13.8)),
    "a norm after the class layer": Bug("prior-bias", "model.structure", _norm_after),
    "levels coarsest first": Bug(
        "level-order", "model.structure", _order(lambda maps, k: torch.cat(_levels(maps, k)[::-1], dim=1))
    ),
    "two levels exchanged": Bug(
        "level-order",
        "model.structure",
        _order(lambda maps, k: torch.cat([_levels(maps, k)[place] for place in (1, 0, 2, 3, 4)], dim=1)),
    ),
    "columns before rows": Bug(
        "level-order", "model.structure", _order(lambda maps, k: torch.cat(_levels(maps, k, (0, 4, 3, 1, 2)), dim=1))
    ),
    "anchors before cells": Bug(
        "level-order", "model.structure", _order(lambda maps, k: torch.cat(_levels(maps, k, (0, 1, 3, 4, 2)), dim=1))
    ),
    "boxes alone in another order": Bug(
        "level-order",
        "model.structure",
        _order(lambda maps, k: torch.cat(_levels(maps, k, (0, 1, 3, 4, 2) if k == 4 else (0, 3, 4, 1, 2)), dim=1)),
    ),
}


def is_found(bug: Bug, seed: int) -> bool:
    """Whether the check of a bug finds it at the start of a training, with its cause among those that are named."""
    with pytest.MonkeyPatch.context() as patch:
        bug.plant(patch)
        found = findings_of(quick(make_crowds(*bug.overrides, seed=seed)), (bug.code,))
        return any(bug.cause in (each.cause, *each.alternatives) for each in found)


def seconds() -> dict[str, float]:
    """The processor time of each check on the shipped recipe, without samples and outputs that other checks share."""
    all_checks()
    built = build(read_config(ROOT / "configs/detect/synthetic_crowds_retinanet.yaml"), World())
    findings_of(quick(built))  # compiles
    context = quick(built)
    _ = context.statistics, context.dry_run, context.first_outputs, context.class_counts, context.dry_evaluations
    return processor_time(NEW, context)


if __name__ == "__main__":
    if sys.argv[1:]:
        table(BUGS, is_found, int(sys.argv[1]))
    else:
        spent = seconds()
        lines = [f"{code} {1000 * each:.0f} ms" for code, each in (*spent.items(), ("all", sum(spent.values())))]
        sys.stdout.write("\n".join(lines) + "\n")
