"""Faulty and healthy losses as users write them, registered as plugins of small runs: rows of the table of cases."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.areas.detect.losses import sigmoid_focal
from sightline.config.run_config import Checks
from sightline.contract import registry
from sightline.contract.binding import AvailableKeys, declared_outputs
from sightline.contract.loss import Loss
from sightline.contract.types import ComponentConfig
from sightline.doctor.finding import Finding
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.ops.box_codes import decode_boxes, encode_deltas
from sightline.ops.box_overlaps import iou
from sightline.parts.losses.embeddings import PairLoss
from sightline.parts.tasks.distillation import DistillationTask, add_teacher_keys
from sightline.parts.tasks.supervised import Classify
from sightline.workbench.check.checks.loss_terms import loss_normaliser
from sightline.workbench.check.context import Context
from sightline.workbench.check.core.finding import merge_findings
from sightline.workbench.check.run_subject import examine_losses
from sightline.workbench.check.suite import all_rules, run_all
from tests.doctor.detecting import make_crowds
from tests.doctor.own_class_losses import (
    CLASS_FAULTS,
    CLASS_HEALTHY,
    FrequentWeighMore,
    ce_sum,
    over_classes,
    weigh_by_next,
)
from tests.doctor.pairing import make_pairs
from tests.doctor.planting import judge, make
from tests.doctor.regressing import make_maps
from tests.doctor.segmenting import make_parts

__all__ = [
    "FAULTS",
    "HEALTHY",
    "Plant",
    "build_with",
    "findings_with",
    "judge_losses",
    "make_taught",
    "registered",
]

NAME = "own"


# --- heat maps --------------------------------------------------------------------------------------------------------


def _over_maps(term: Callable[[Tensor, Tensor], Tensor], count: Callable[[Tensor], Any] = Tensor.numel) -> type[Loss]:
    class OverMaps(Loss):
        def __init__(self) -> None:
            super().__init__()

        def count(self, *, heatmaps: Tensor) -> Tensor:
            return torch.as_tensor(count(heatmaps))

        def forward(self, *, likelihood: Tensor, heatmaps: Tensor) -> Tensor:
            return term(likelihood, heatmaps)

    return OverMaps


def _map_binary(maps: Tensor, target: Tensor) -> Tensor:
    p = maps.sigmoid().clamp(1e-6, 1 - 1e-6)
    t = target.to(p).clamp(1e-6, 1 - 1e-6)
    return -(p * t.log() + (1 - p) * (1 - t).log()).sum()


MAP_FAULTS: dict[str, tuple[type[Loss], str]] = {
    "minus a squared error": (_over_maps(lambda o, t: -(o - t).square().sum()), "loss.sign"),
    "minus an absolute error": (_over_maps(lambda o, t: -(o - t).abs().sum()), "loss.sign"),
    "plus a product": (_over_maps(lambda o, t: (o * t).sum()), "loss.sign"),
    "a difference without a square": (_over_maps(lambda o, t: (o - t).sum()), "loss.form"),
    "a minus product": (_over_maps(lambda o, t: -(o * t).sum()), "loss.form"),
    "the square of the sum": (_over_maps(lambda o, t: (o - t).flatten(1).sum(1).square().sum()), "loss.form"),
    "a sum for a difference": (_over_maps(lambda o, t: (o + t).square().sum()), "loss.sign"),
    "axes of the target exchanged": (
        _over_maps(lambda o, t: (o - t.transpose(-1, -2)).square().sum()),
        "loss.form",
    ),
    "BCE with its arguments swapped": (_over_maps(_map_binary), "loss.form"),
    "sigmoid before BCE with logits": (
        _over_maps(
            lambda o, t: F.binary_cross_entropy_with_logits(o.sigmoid(), t.to(o), reduction="sum"),
        ),
        "loss.double_softmax",
    ),
    "a mean square for the sum": (_over_maps(lambda o, t: F.mse_loss(o, t.to(o))), "loss.normaliser"),
    "a sum over maps, and a mean over samples": (
        _over_maps(lambda o, t: (o - t).square().flatten(1).sum(1).mean()),
        "loss.normaliser",
    ),
    "every map against every target": (
        _over_maps(lambda o, t: (o.flatten(1)[:, None] - t.flatten(1)).square().sum()),
        "loss.form",
    ),
    "maps detached": (_over_maps(lambda o, t: (o.detach() - t).square().sum()), "loss.detached"),
    "every map against its neighbour's": (
        _over_maps(lambda o, t: (o - o.detach().roll(1, 0)).square().sum()),
        "loss.form",
    ),
    "divided by the batch's spread": (
        _over_maps(lambda o, t: ((o - t) / (0.1 + o.std(0, correction=0, keepdim=True).detach())).square().sum()),
        "loss.form",
    ),
    "a length without an epsilon": (
        _over_maps(lambda o, t: (o - t).flatten(1).square().sum(1).sqrt().sum()),
        "loss.form",
    ),
}

MAP_HEALTHY: dict[str, type[Loss]] = {
    "squared error": _over_maps(lambda o, t: (o - t).square().sum()),
    "absolute error": _over_maps(lambda o, t: (o - t).abs().sum()),
    "smooth L1": _over_maps(lambda o, t: F.smooth_l1_loss(o, t.to(o), reduction="sum")),
    "BCE with logits": _over_maps(lambda o, t: F.binary_cross_entropy_with_logits(o, t.to(o), reduction="sum")),
    "cross entropy of cells": _over_maps(
        lambda o, t: (
            -((t / t.flatten(1).sum(1)[:, None, None, None, None]).flatten(1) * o.flatten(1).log_softmax(1)).sum()
        ),
        len,
    ),
    "squared error of a tenth": _over_maps(lambda o, t: (o - 0.1 * t).square().sum()),
    "squared error, weighted by the target": _over_maps(lambda o, t: ((1 + 9 * t) * (o - t).square()).sum()),
}


# --- boxes ------------------------------------------------------------------------------------------------------------


class _AtPriors(Loss):
    """A loss of positives, by the targets of the task."""

    def __init__(self) -> None:
        super().__init__()

    def count(self, *, target: Tensor) -> Tensor:
        return (target >= 0).sum()


def _of_scores(term: Callable[[Tensor, Tensor, Tensor], Tensor]) -> type[Loss]:
    """`term` is given the logits, whether each is a target, and which priors count."""

    class OfScores(_AtPriors):
        def forward(self, *, logits: Tensor, target: Tensor) -> Tensor:
            is_target = target[..., None] == torch.arange(logits.shape[-1])
            return term(logits, is_target, (target != -2)[..., None].to(logits))

    return OfScores


def _of_boxes(term: Callable[[Tensor, Tensor, Tensor], Tensor]) -> type[Loss]:
    """`term` is given the codes, the priors and the boxes of positives."""

    class OfBoxes(_AtPriors):
        def forward(self, *, codes: Tensor, priors: Tensor, target: Tensor, matched_boxes: Tensor) -> Tensor:
            image, prior = (target >= 0).nonzero(as_tuple=True)
            return term(codes[image, prior], priors[prior], matched_boxes[image, prior])

    return OfBoxes


class QualityWithGradient(_AtPriors):
    """The overlap that scores are to reach is not detached."""

    def forward(
        self, *, logits: Tensor, codes: Tensor, priors: Tensor, target: Tensor, matched_boxes: Tensor
    ) -> Tensor:
        image, prior = (target >= 0).nonzero(as_tuple=True)
        quality = iou(decode_boxes(priors[prior], codes[image, prior]), matched_boxes[image, prior])
        wanted = torch.zeros_like(logits, dtype=quality.dtype)
        wanted = wanted.index_put((image, prior, target[image, prior]), quality)
        weight = (target != -2)[..., None].to(logits)
        return (weight * F.binary_cross_entropy_with_logits(logits.to(wanted), wanted, reduction="none")).sum()


BOX_FAULTS: dict[str, tuple[type[Loss], str]] = {
    "positive and negative terms exchanged": (
        _of_scores(lambda z, t, w: sigmoid_focal(z, ~t, weight=w)),
        "loss.sign",
    ),
    "scores with a minus": (_of_scores(lambda z, t, w: -sigmoid_focal(z, t, weight=w)), "loss.sign"),
    "a mean over all scores": (
        _of_scores(lambda z, t, w: F.binary_cross_entropy_with_logits(z, t.to(z), w.expand_as(z))),
        "loss.normaliser",
    ),
    "sigmoid before BCE of scores": (
        _of_scores(
            lambda z, t, w: F.binary_cross_entropy_with_logits(z.sigmoid(), t.to(z), w.expand_as(z), reduction="sum")
        ),
        "loss.double_softmax",
    ),
    "the overlap itself": (_of_boxes(lambda c, p, b: iou(decode_boxes(p, c), b).sum()), "loss.sign"),
    "deltas against boxes": (_of_boxes(lambda c, p, b: F.smooth_l1_loss(c, b.to(c), reduction="sum")), "loss.form"),
    "width and height exchanged": (
        _of_boxes(lambda c, p, b: F.smooth_l1_loss(c, encode_deltas(p, b).to(c)[:, [0, 1, 3, 2]], reduction="sum")),
        "loss.form",
    ),
    "minus smooth L1": (
        _of_boxes(lambda c, p, b: -F.smooth_l1_loss(c, encode_deltas(p, b).to(c), reduction="sum")),
        "loss.sign",
    ),
    "a mean over boxes": (_of_boxes(lambda c, p, b: F.l1_loss(c, encode_deltas(p, b).to(c))), "loss.normaliser"),
    "codes detached": (
        _of_boxes(lambda c, p, b: F.l1_loss(c.detach(), encode_deltas(p, b).to(c), reduction="sum")),
        "loss.detached",
    ),
    "a quality with a gradient": (QualityWithGradient, "loss.detached"),
    "a squared error of codes": (
        _of_boxes(lambda c, p, b: (c - encode_deltas(p, b).to(c)).square().sum()),
        "loss.form",
    ),
    "a weighted squared error of codes": (
        _of_boxes(lambda c, p, b: 0.1 * F.mse_loss(c, encode_deltas(p, b).to(c), reduction="sum")),
        "loss.form",
    ),
}
BOX_HEALTHY: dict[str, type[Loss]] = {
    "focal": _of_scores(lambda z, t, w: sigmoid_focal(z, t, weight=w)),
    "1 - overlap": _of_boxes(lambda c, p, b: (1 - iou(decode_boxes(p, c), b)).sum()),
    "L1 of deltas": _of_boxes(lambda c, p, b: F.l1_loss(c, encode_deltas(p, b).to(c), reduction="sum")),
}


# --- pairs ------------------------------------------------------------------------------------------------------------


def _of_pairs(term: Callable[[Tensor, Tensor], Tensor]) -> type[Loss]:
    class OfPairs(PairLoss):
        def __init__(self) -> None:
            super().__init__()

        def forward(self, *, first: Tensor, second: Tensor) -> Tensor:
            return term(first, second)

    return OfPairs


def _similarity(first: Tensor, second: Tensor, temperature: float = 0.1) -> Tensor:
    return F.normalize(first, dim=1) @ F.normalize(second, dim=1).T / temperature


def _one_sided(first: Tensor, second: Tensor, temperature: float = 0.1) -> Tensor:
    return F.cross_entropy(_similarity(first, second, temperature), torch.arange(len(first)), reduction="none")


def _products(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Both sides of a softmax of products, whose rows are not scaled."""
    products, target = first @ second.T / temperature, torch.arange(len(first))
    return sum(F.cross_entropy(logits, target, reduction="none") for logits in (products, products.T)) / 2  # type: ignore[return-value]


def _margin(first: Tensor, second: Tensor) -> Tensor:
    """The distance of a pair, and that of the next object up to a margin, for both sides."""
    near = (first - second).square().sum(1)
    return (
        near
        + (1 - (first - second.roll(1, 0)).square().sum(1)).clamp(min=0) / 2
        + (1 - (second - first.roll(1, 0)).square().sum(1)).clamp(min=0) / 2
    )


def _both_sides(
    first: Tensor,
    second: Tensor,
    masked: float = -torch.inf,
    roll: int = 0,
    temperature: float = 0.1,
    is_of_first: bool = False,
) -> Tensor:
    rows = torch.cat([first, second])
    similarity = _similarity(rows, rows, temperature)
    similarity = similarity.masked_fill(torch.eye(len(rows), dtype=torch.bool), masked) if masked else similarity
    target = torch.arange(len(rows)).roll(len(first) + roll)
    sides = F.cross_entropy(similarity, target, reduction="none").view(2, -1)
    return sides[0] if is_of_first else sides.mean(0)


PAIR_FAULTS: dict[str, tuple[type[Loss], str]] = {
    "plus a cosine": (_of_pairs(lambda a, b: F.cosine_similarity(a, b)), "loss.sign"),
    "minus NT-Xent": (_of_pairs(lambda a, b: -_both_sides(a, b)), "loss.sign"),
    "similarity to itself counts": (_of_pairs(lambda a, b: _both_sides(a, b, 0.0)), "loss.negatives"),
    "partners of the next object": (_of_pairs(lambda a, b: _both_sides(a, b, roll=1)), "loss.negatives"),
    "a mean over pairs": (_of_pairs(lambda a, b: _both_sides(a, b).mean().expand(len(a)) / len(a)), "loss.normaliser"),
    "rows detached": (_of_pairs(lambda a, b: _both_sides(a.detach(), b.detach())), "loss.detached"),
    "a softmax without its logarithm": (
        _of_pairs(lambda a, b: F.nll_loss(_similarity(a, b).softmax(1), torch.arange(len(a)), reduction="none")),
        "loss.form",
    ),
    "minus a product": (_of_pairs(lambda a, b: -(a * b).sum(1)), "loss.form"),
    "products of rows of any length": (_of_pairs(lambda a, b: _products(a, b, 0.1)), "loss.form"),
    "products divided by the width's root": (_of_pairs(lambda a, b: _products(a, b, 0.25)), "loss.form"),
    "a temperature of 10": (_of_pairs(lambda a, b: _both_sides(a, b, temperature=10.0)), "loss.form"),
    "a temperature of 4, of each side in turn": (
        _of_pairs(lambda a, b: (_one_sided(a, b, 4.0) + _one_sided(b, a, 4.0)) / 2),
        "loss.form",
    ),
    "one side alone": (_of_pairs(_one_sided), "loss.form"),
    "anchors of one view among both": (
        _of_pairs(lambda a, b: _both_sides(a, b, is_of_first=True)),
        "loss.form",
    ),
}
PAIR_HEALTHY: dict[str, type[Loss]] = {
    "negative cosine": _of_pairs(lambda a, b: -F.cosine_similarity(a, b)),
    "negative cosine with a stopped gradient": _of_pairs(
        lambda a, b: -(F.cosine_similarity(a, b.detach()) + F.cosine_similarity(b, a.detach())) / 2
    ),
    "NT-Xent": _of_pairs(_both_sides),
    "CLIP, both sides": _of_pairs(lambda a, b: (_one_sided(a, b) + _one_sided(b, a)) / 2),
    "one side, with a stopped gradient": _of_pairs(lambda a, b: _one_sided(a, b.detach())),
    "a temperature of 1": _of_pairs(lambda a, b: _both_sides(a, b, temperature=1.0)),
    "products at temperature 1": _of_pairs(lambda a, b: _products(a, b, 1.0)),
    "a margin of distances": _of_pairs(_margin),
}


# --- teachers ---------------------------------------------------------------------------------------------------------


def _of_teacher(term: Callable[[Tensor, Tensor, Tensor], Tensor]) -> type[Loss]:
    class OfTeacher(Loss):
        def __init__(self) -> None:
            super().__init__()

        def count(self, *, label: Tensor) -> Tensor:
            return torch.tensor(label.numel())

        def forward(self, *, logits: Tensor, teacher_logits: Tensor, label: Tensor) -> Tensor:
            return term(logits, teacher_logits, label)

    return OfTeacher


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div((student / 4).log_softmax(-1), (teacher / 4).softmax(-1), reduction="sum") * 16


TEACHER_FAULTS: dict[str, tuple[type[Loss], str]] = {
    "KL of probabilities": (
        _of_teacher(lambda s, t, y: F.kl_div(s.softmax(-1), t.softmax(-1), reduction="sum")),
        "quant.distill",
    ),
    "minus KL": (_of_teacher(lambda s, t, y: -_kl(s, t)), "quant.distill"),
    "a mean of KL": (_of_teacher(lambda s, t, y: _kl(s, t) / len(y)), "loss.normaliser"),
    "the teacher's next sample": (_of_teacher(lambda s, t, y: _kl(s, t.roll(1, 0))), "data.pairing"),
}
TEACHER_HEALTHY: dict[str, type[Loss]] = {
    "KL": _of_teacher(lambda s, t, y: _kl(s, t)),
    "KL the other way": _of_teacher(lambda s, t, y: F.kl_div(t.log_softmax(-1), s.softmax(-1), reduction="sum")),
    "squared error of logits": _of_teacher(lambda s, t, y: (s - t).square().sum()),
    "KL and cross entropy": _of_teacher(lambda s, t, y: 0.7 * _kl(s, t) + 0.3 * ce_sum(s, y)),
    "the teacher's class": _of_teacher(lambda s, t, y: ce_sum(s, t.argmax(-1))),
}


def make_taught(built: TrainingSetup, loss: Loss) -> TrainingSetup:
    """The run with this loss alone, and a teacher whose logits are larger."""
    model: Any = built.job.model
    teacher = copy.deepcopy(model)
    last: Any = [module for module in teacher.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.normal_(last.weight, generator=torch.Generator().manual_seed(1))
    batch = AvailableKeys("data", built.data.train.reader.keys)
    outputs = AvailableKeys("model", declared_outputs(model.forward, owner="model"))
    parent = Classify(
        model=model, losses={NAME: loss}, batch_keys=add_teacher_keys(batch, outputs), output_keys=outputs
    )
    teacher_task = Classify(model=teacher, losses={}, batch_keys=batch, output_keys=outputs)
    task = DistillationTask(parent, teacher=teacher, teacher_task=teacher_task)
    job = dataclasses.replace(built.job, task=task, loss_weights={NAME: 1.0})
    config = dataclasses.replace(
        built.config, losses=(ComponentConfig(NAME),), checks=Checks(skip=("first-evaluation", "unfit-teacher"))
    )
    return dataclasses.replace(built, job=job, config=config)


# --- runs -------------------------------------------------------------------------------------------------------------


class Plant(NamedTuple):
    """The kind of a run, the loss, and the cause that must come first; "" for a healthy one."""

    kind: str
    loss: type[Loss]
    cause: str = ""


@contextmanager
def registered(loss: type[Loss]) -> Iterator[None]:
    """The loss under the name `own` in the registry, as a plugin's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry.losses, "_entries", dict(registry.losses._entries))
        registry.losses.names()
        registry.losses.add(NAME)(loss)
        yield


def build_with(plant: Plant, folder: Path, seed: int = 0) -> TrainingSetup:
    """A small run of its kind with this loss alone."""
    words = (f"losses=[{{name: {NAME}}}]", f"seed={seed}")
    if plant.kind == "classify":
        return make(folder, *words, "data.imbalance=10")
    if plant.kind == "segment":
        return make_parts(folder, *words)
    if plant.kind == "contrast":
        return make_pairs(folder, *words)
    if plant.kind == "detect":
        other = "box_smooth_l1" if "logits" in plant.loss.forward.__annotations__ else "sigmoid_focal"
        return make_crowds(f"losses=[{{name: {NAME}}}, {{name: {other}}}]", seed=seed)
    if plant.kind == "taught":
        return make_taught(make(folder, words[1]), plant.loss())
    built = make_maps(folder, loss=plant.loss())
    skipped = Checks(skip=("first-evaluation",))  # the run's evaluation is that of another task
    return dataclasses.replace(built, config=dataclasses.replace(built.config, seed=seed, checks=skipped))


def findings_with(plant: Plant, folder: Path, seed: int = 0, judge: Callable[..., Any] = run_all) -> list[Finding]:
    """What `sightline check` finds in a small run with this loss, without notes."""
    with registered(plant.loss):
        built = build_with(plant, folder, seed)
        return [each for each in judge(built, World()) if each.severity != "note"]


def judge_losses(built: TrainingSetup, world: World) -> list[Finding]:
    """What the checks of losses alone find, in the order in which it is printed."""
    all_rules()
    context = Context(built, world)
    return merge_findings([*examine_losses(context), *judge(loss_normaliser, context)])


_TABLES: dict[str, tuple[dict[str, tuple[type[Loss], str]], dict[str, type[Loss]], tuple[str, ...]]] = {
    "classify": (CLASS_FAULTS, CLASS_HEALTHY, ("classify", "segment")),
    "maps": (MAP_FAULTS, MAP_HEALTHY, ("maps",)),
    "boxes": (BOX_FAULTS, BOX_HEALTHY, ("detect",)),
    "pairs": (PAIR_FAULTS, PAIR_HEALTHY, ("contrast",)),
    "teachers": (TEACHER_FAULTS, TEACHER_HEALTHY, ("taught",)),
}
FAULTS = {
    f"{kind}: {name}": Plant(kind, loss, cause)
    for faults, _, kinds in _TABLES.values()
    for kind in kinds
    for name, (loss, cause) in faults.items()
    if (kind, loss) != ("segment", FrequentWeighMore)  # which has no fact of class counts
}
FAULTS["classify: a global table read one entry too far"] = Plant(
    "classify", over_classes(weigh_by_next), "loss.weights"
)
HEALTHY = {
    f"{kind}: {name}": Plant(kind, loss)
    for _, healthy, kinds in _TABLES.values()
    for kind in kinds
    for name, loss in healthy.items()
}
