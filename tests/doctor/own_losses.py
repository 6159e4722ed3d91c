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
from sightline.areas.detect.rules import loss_normaliser
from sightline.config.run_config import Checks
from sightline.contract import registry
from sightline.contract.loss import Loss
from sightline.contract.types import ComponentConfig
from sightline.doctor.causes import merge_findings
from sightline.doctor.finding import Finding
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.ops.boxes.codes import decode_boxes, encode_deltas
from sightline.ops.boxes.overlaps import iou
from sightline.parts.losses.contrast import PairLoss
from sightline.parts.tasks.classification import Classify
from sightline.parts.tasks.distillation import DistillationTask, add_teacher_keys
from sightline.workbench.check.context import Context
from sightline.workbench.check.run_subject import examine_losses
from sightline.workbench.check.suite import all_rules, run_all
from tests.doctor.detecting import make_crowds
from tests.doctor.own_class_losses import (
    CLASS_FAULTS,
    CLASS_HEALTHY,
    Faults,
    FrequentWeighMore,
    Losses,
    ce_sum,
    over_classes,
    weigh_by_next,
)
from tests.doctor.pairing import make_pairs
from tests.doctor.planting import judge, make, subject_of
from tests.doctor.regressing import make_maps
from tests.doctor.segmenting import make_parts

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


def _of_cells(maps: Tensor, target: Tensor) -> Tensor:
    shares = target / target.flatten(1).sum(1)[:, None, None, None, None]
    return -(shares.flatten(1) * maps.flatten(1).log_softmax(1)).sum()


def _map_bce(maps: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(maps, target.to(maps), reduction="sum")


MAP_FAULTS: Faults = {
    "loss.sign": {
        "minus a squared error": lambda o, t: -(o - t).square().sum(),
        "minus an absolute error": lambda o, t: -(o - t).abs().sum(),
        "plus a product": lambda o, t: (o * t).sum(),
        "a sum for a difference": lambda o, t: (o + t).square().sum(),
    },
    "loss.form": {
        "a difference without a square": lambda o, t: (o - t).sum(),
        "a minus product": lambda o, t: -(o * t).sum(),
        "the square of the sum": lambda o, t: (o - t).flatten(1).sum(1).square().sum(),
        "axes of the target exchanged": lambda o, t: (o - t.transpose(-1, -2)).square().sum(),
        "BCE with its arguments swapped": _map_binary,
        "every map against every target": lambda o, t: (o.flatten(1)[:, None] - t.flatten(1)).square().sum(),
        "every map against its neighbour's": lambda o, t: (o - o.detach().roll(1, 0)).square().sum(),
        "divided by the batch's spread": lambda o, t: (
            ((o - t) / (0.1 + o.std(0, correction=0, keepdim=True).detach())).square().sum()
        ),
        "a length without an epsilon": lambda o, t: (o - t).flatten(1).square().sum(1).sqrt().sum(),
    },
    "loss.double_softmax": {"sigmoid before BCE with logits": lambda o, t: _map_bce(o.sigmoid(), t)},
    "loss.normaliser": {
        "a mean square for the sum": lambda o, t: F.mse_loss(o, t.to(o)),
        "a sum over maps, and a mean over samples": lambda o, t: (o - t).square().flatten(1).sum(1).mean(),
    },
    "loss.detached": {"maps detached": lambda o, t: (o.detach() - t).square().sum()},
}
MAP_HEALTHY: Losses = {
    "squared error": lambda o, t: (o - t).square().sum(),
    "absolute error": lambda o, t: (o - t).abs().sum(),
    "smooth L1": lambda o, t: F.smooth_l1_loss(o, t.to(o), reduction="sum"),
    "BCE with logits": _map_bce,
    "cross entropy of cells": _over_maps(_of_cells, len),
    "squared error of a tenth": lambda o, t: (o - 0.1 * t).square().sum(),
    "squared error, weighted by the target": lambda o, t: ((1 + 9 * t) * (o - t).square()).sum(),
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


def _bce(logits: Tensor, target: Tensor, weight: Tensor, reduction: str = "sum") -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target.to(logits), weight.expand_as(logits), reduction=reduction)


def _deltas(codes: Tensor, priors: Tensor, boxes: Tensor) -> Tensor:
    return encode_deltas(priors, boxes).to(codes)


BOX_FAULTS: Faults = {
    "loss.sign": {
        "positive and negative terms exchanged": _of_scores(lambda z, t, w: sigmoid_focal(z, ~t, weight=w)),
        "scores with a minus": _of_scores(lambda z, t, w: -sigmoid_focal(z, t, weight=w)),
        "the overlap itself": lambda c, p, b: iou(decode_boxes(p, c), b).sum(),
        "minus smooth L1": lambda c, p, b: -F.smooth_l1_loss(c, _deltas(c, p, b), reduction="sum"),
    },
    "loss.normaliser": {
        "a mean over all scores": _of_scores(lambda z, t, w: _bce(z, t, w, "mean")),
        "a mean over boxes": lambda c, p, b: F.l1_loss(c, _deltas(c, p, b)),
    },
    "loss.double_softmax": {"sigmoid before BCE of scores": _of_scores(lambda z, t, w: _bce(z.sigmoid(), t, w))},
    "loss.form": {
        "deltas against boxes": lambda c, p, b: F.smooth_l1_loss(c, b.to(c), reduction="sum"),
        "width and height exchanged": lambda c, p, b: F.smooth_l1_loss(
            c, _deltas(c, p, b)[:, [0, 1, 3, 2]], reduction="sum"
        ),
        "a squared error of codes": lambda c, p, b: (c - _deltas(c, p, b)).square().sum(),
        "a weighted squared error of codes": lambda c, p, b: 0.1 * (c - _deltas(c, p, b)).square().sum(),
    },
    "loss.detached": {
        "codes detached": lambda c, p, b: F.l1_loss(c.detach(), _deltas(c, p, b), reduction="sum"),
        "a quality with a gradient": QualityWithGradient,
    },
}
BOX_HEALTHY: Losses = {
    "focal": _of_scores(lambda z, t, w: sigmoid_focal(z, t, weight=w)),
    "1 - overlap": lambda c, p, b: (1 - iou(decode_boxes(p, c), b)).sum(),
    "L1 of deltas": lambda c, p, b: F.l1_loss(c, _deltas(c, p, b), reduction="sum"),
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


def _each_side(first: Tensor, second: Tensor, temperature: float = 0.1) -> Tensor:
    return (_one_sided(first, second, temperature) + _one_sided(second, first, temperature)) / 2


def _stopped(first: Tensor, second: Tensor) -> Tensor:
    return -(F.cosine_similarity(first, second.detach()) + F.cosine_similarity(second, first.detach())) / 2


def _nll(first: Tensor, second: Tensor) -> Tensor:
    return F.nll_loss(_similarity(first, second).softmax(1), torch.arange(len(first)), reduction="none")


PAIR_FAULTS: Faults = {
    "loss.sign": {
        "plus a cosine": lambda a, b: F.cosine_similarity(a, b),
        "minus NT-Xent": lambda a, b: -_both_sides(a, b),
    },
    "loss.negatives": {
        "similarity to itself counts": lambda a, b: _both_sides(a, b, 0.0),
        "partners of the next object": lambda a, b: _both_sides(a, b, roll=1),
    },
    "loss.normaliser": {"a mean over pairs": lambda a, b: _both_sides(a, b).mean().expand(len(a)) / len(a)},
    "loss.detached": {"rows detached": lambda a, b: _both_sides(a.detach(), b.detach())},
    "loss.form": {
        "a softmax without its logarithm": _nll,
        "minus a product": lambda a, b: -(a * b).sum(1),
        "products of rows of any length": lambda a, b: _products(a, b, 0.1),
        "products divided by the width's root": lambda a, b: _products(a, b, 0.25),
        "a temperature of 10": lambda a, b: _both_sides(a, b, temperature=10.0),
        "a temperature of 4, of each side in turn": lambda a, b: _each_side(a, b, 4.0),
        "anchors of one view among both": lambda a, b: _both_sides(a, b, is_of_first=True),
    },
}
PAIR_HEALTHY: Losses = {
    "negative cosine": lambda a, b: -F.cosine_similarity(a, b),
    "negative cosine with a stopped gradient": _stopped,
    "NT-Xent": _both_sides,
    "CLIP, both sides": _each_side,
    "one side alone": _one_sided,
    "one side, with a stopped gradient": lambda a, b: _one_sided(a, b.detach()),
    "a temperature of 1": lambda a, b: _both_sides(a, b, temperature=1.0),
    "products at temperature 1": lambda a, b: _products(a, b, 1.0),
    "a margin of distances": _margin,
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


TEACHER_FAULTS: Faults = {
    "quant.distill": {
        "KL of probabilities": lambda s, t, y: F.kl_div(s.softmax(-1), t.softmax(-1), reduction="sum"),
        "minus KL": lambda s, t, y: -_kl(s, t),
    },
    "loss.normaliser": {"a mean of KL": lambda s, t, y: _kl(s, t) / len(y)},
    "data.pairing": {"the teacher's next sample": lambda s, t, y: _kl(s, t.roll(1, 0))},
}
TEACHER_HEALTHY: Losses = {
    "KL": lambda s, t, y: _kl(s, t),
    "KL the other way": lambda s, t, y: F.kl_div(t.log_softmax(-1), s.softmax(-1), reduction="sum"),
    "squared error of logits": lambda s, t, y: (s - t).square().sum(),
    "KL and cross entropy": lambda s, t, y: 0.7 * _kl(s, t) + 0.3 * ce_sum(s, y),
    "the teacher's class": lambda s, t, y: ce_sum(s, t.argmax(-1)),
}


def make_taught(built: TrainingSetup, loss: Loss) -> TrainingSetup:
    """The run with this loss alone, and a teacher whose logits are larger."""
    model: Any = built.job.model
    teacher = copy.deepcopy(model)
    last: Any = [module for module in teacher.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.normal_(last.weight, generator=torch.Generator().manual_seed(1))
    own = subject_of(built, model)
    keys = add_teacher_keys(own["batch_keys"], own["output_keys"])
    parent = Classify(losses={NAME: loss}, **{**own, "batch_keys": keys})
    task = DistillationTask(parent, teacher=teacher, teacher_task=Classify(losses={}, **{**own, "model": teacher}))
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


_TABLES: dict[str, tuple[Faults, Losses, Callable[..., type[Loss]]]] = {
    **dict.fromkeys(("classify", "segment"), (CLASS_FAULTS, CLASS_HEALTHY, over_classes)),
    "maps": (MAP_FAULTS, MAP_HEALTHY, _over_maps),
    "detect": (BOX_FAULTS, BOX_HEALTHY, _of_boxes),
    "contrast": (PAIR_FAULTS, PAIR_HEALTHY, _of_pairs),
    "taught": (TEACHER_FAULTS, TEACHER_HEALTHY, _of_teacher),
}


def _list_plants() -> Iterator[tuple[str, Plant]]:
    for kind, (faults, healthy, wrap) in _TABLES.items():
        for cause, losses in {**faults, "": healthy}.items():
            for name, loss in losses.items():
                if (kind, loss) != ("segment", FrequentWeighMore):  # which has no fact of class counts
                    yield f"{kind}: {name}", Plant(kind, loss if isinstance(loss, type) else wrap(loss), cause)


_PLANTS = dict(_list_plants())
_PLANTS["classify: a global table read one entry too far"] = Plant(
    "classify", over_classes(weigh_by_next), "loss.weights"
)
FAULTS = {name: plant for name, plant in _PLANTS.items() if plant.cause}
HEALTHY = {name: plant for name, plant in _PLANTS.items() if not plant.cause}
