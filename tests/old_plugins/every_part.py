"""A plugin with a part of each kind that docs/plugins.md and docs/how_to_add.md describe in words and show no code of."""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from sightline import registry
from sightline.arguments import Count, Factor, PointEncoder, Probability, Seed, Size
from sightline.assigners.base import BACKGROUND, Assigner, Assignment, Predicted
from sightline.compress.policy import Policy
from sightline.compress.search.base import Evaluator, Search
from sightline.compress.search.problem import Problem
from sightline.data.depth.depth_frames import DepthCamera, DepthFrames, FramePart
from sightline.data.depth.references import DepthFrame, FrameOrder
from sightline.data.depth.skeletons import HAND_21
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.engine.optimizers import Recipe
from sightline.geometry.boxes.priors import Priors
from sightline.geometry.boxes.suppression import Kept, Suppression
from sightline.models.detection.head import HeadOutput, at_priors
from sightline.probe.features import Features
from sightline.probe.outcome import Outcome, Table


@registry.backbones.add("old_backbone")
class Backbone(nn.Module):
    """Two maps, at strides 8 and 16."""

    def __init__(self, *, in_channels: int, width: Count = 4) -> None:
        super().__init__()
        self.channels, self.strides = (width, 2 * width), (8, 16)
        self.fine = nn.Conv2d(in_channels, width, 8, stride=8)
        self.coarse = nn.Conv2d(width, 2 * width, 2, stride=2)

    def forward(self, image: Tensor) -> list[Tensor]:
        fine = self.fine(image).relu()
        return [fine, self.coarse(fine).relu()]


@registry.necks.add("old_neck")
class Neck(nn.Module):
    """Maps of one width."""

    def __init__(self, *, channels: tuple[int, ...], strides: tuple[int, ...], width: Count = 4) -> None:
        super().__init__()
        self.channels, self.strides = (width,) * len(channels), strides
        self.layers = nn.ModuleList(nn.Conv2d(each, width, 1) for each in channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [layer(each) for layer, each in zip(self.layers, maps, strict=True)]


@registry.heads.add("old_head")
class Head(nn.Module):
    """One convolution at points: logits, and the distances to the four sides."""

    priors = "points"
    priors_per_cell = 1

    def __init__(self, *, channels: tuple[int, ...], strides: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.num_classes, self.strides = num_classes, strides
        self.classes = nn.Conv2d(channels[0], num_classes, 1)
        self.boxes = nn.Conv2d(channels[0], 4, 1)

    def forward(self, maps: Sequence[Tensor]) -> HeadOutput:
        codes = [self.boxes(each).exp() * stride for each, stride in zip(maps, self.strides, strict=True)]
        return {"logits": at_priors([self.classes(each) for each in maps], self.num_classes), "codes": at_priors(codes, 4)}


class _Nearest(Assigner):
    takes = frozenset({"anchors", "points"})

    def __init__(self, *, reach_px: Size = 9.0) -> None:
        self.reach_px = reach_px

    def match(self, priors: Priors, boxes: Tensor, *more: Any) -> Assignment:
        distance, box = torch.cdist(priors.centres, (boxes[:, :2] + boxes[:, 2:]) / 2).min(dim=1)
        matched = torch.where(distance < self.reach_px, box, BACKGROUND)
        return Assignment(matched=matched, num_claims=(matched >= 0).long())


@registry.assigners.add("old_nearest")
class Nearest(_Nearest):
    """A prior predicts the box whose middle is nearest to its own."""


@registry.assigners.add("old_needing")
class Needing(_Nearest):
    """The same, and it asks for labels and predictions."""

    needs = True
    excludes = frozenset({"objectness"})

    def match(self, priors: Priors, boxes: Tensor, labels: Tensor, predicted: Predicted) -> Assignment:
        assert len(labels) == len(boxes)
        assert predicted.boxes.shape == (len(priors), 4)
        assert predicted.logits.shape[0] == len(priors)
        assert predicted.objectness is None
        return super().match(priors, boxes)


@registry.suppressions.add("old_first")
class First(Suppression):
    """The best detections, whatever they overlap."""

    def __init__(self, *, most: Count = 3, per_class: bool = False) -> None:
        super().__init__(per_class=per_class)
        self.most = most

    def keep(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Kept:
        places = scores.argsort(descending=True, stable=True)[: self.most]
        return Kept(places=places, scores=scores[places])


@registry.optimizers.add("old_adagrad")
def adagrad(*, lr: Size, weight_decay: Factor = 0.0, groups: tuple[dict[str, Any], ...] = ()) -> Recipe:
    """Adagrad of torch."""
    arguments = {"lr": lr, "weight_decay": weight_decay}
    return Recipe(torch.optim.Adagrad, arguments, decay="all", groups=groups, frozen=(), layer_decay=None)


@registry.schedules.add("old_halves")
class Halves:
    """Half the rate at each epoch."""

    def __init__(self, *, num_steps: int, steps_per_epoch: int, factor: Probability = 0.5) -> None:
        self.num_steps, self.steps_per_epoch, self.factor = num_steps, steps_per_epoch, factor

    def __call__(self, step: int) -> float:
        return self.factor ** (step // self.steps_per_epoch)


@registry.point_encoders.add("old_points")
class Points(nn.Module):
    """A layer per point, and the maximum."""

    def __init__(self, *, in_channels: int, width: Count = 8) -> None:
        super().__init__()
        self.feature_width = width
        self.layer = nn.Linear(in_channels, width)

    def encode(self, *, points: Tensor, features: Tensor | None = None) -> Tensor:
        return self.layer(points if features is None else torch.cat([points, features], dim=-1)).amax(dim=1)


@registry.image_encoders.add("old_images")
class Images(nn.Module):
    """A convolution, and the mean."""

    def __init__(self, *, width: Count = 8) -> None:
        super().__init__()
        self.feature_width = width
        self.layer = nn.Conv2d(3, width, 4, stride=4)

    def encode(self, *, image: Tensor) -> Tensor:
        return self.layer(image).mean(dim=(2, 3))


class Output(TypedDict):
    logits: Tensor


@registry.models.add("old_classifier")
class Classifier(nn.Module):
    """An encoder of a block, named by its annotation, and a layer."""

    def __init__(self, *, num_classes: int, points: PointEncoder) -> None:
        super().__init__()
        self.points = points
        self.feature_width = points.feature_width
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(self.feature_width, num_classes))

    def encode(self, *, points: Tensor) -> Tensor:
        return self.points.encode(points=points)

    def forward(self, *, points: Tensor) -> Output:
        return {"logits": self.head(self.encode(points=points))}


@registry.searches.add("old_lowest")
class Lowest(Search):
    """The fewest bits for every layer, and one at random that the budget is made to hold."""

    max_evaluations = 40

    def __init__(self, *, seed: Seed = 1) -> None:
        self.seed = seed

    def assert_fits(self, problem: Problem) -> None:
        assert problem.free

    def run(self, problem: Problem, evaluator: Evaluator) -> Policy:
        levels = np.random.default_rng(self.seed).integers(0, len(problem.bits), len(problem.free))
        lowest, drawn = problem.policy(problem.lowest), problem.policy(problem.enforced(levels.tolist()))
        assert evaluator.num_left > 0
        return min(lowest, drawn, key=evaluator.loss)


@registry.probes.add("old_means")
class Means:
    """The class whose mean feature is nearest."""

    most_rows = None

    def __init__(self, *, scale: Size = 1.0) -> None:
        self.scale = scale

    def __call__(self, train: Features, test: Features) -> Outcome:
        kinds = np.unique(train.labels)
        means = np.stack([train.take(np.flatnonzero(train.labels == kind)).rows.mean(axis=0) for kind in kinds])
        distance = np.linalg.norm(test.rows[:, None] - means, axis=2) * self.scale
        accuracy = float((kinds[distance.argmin(axis=1)] == test.labels).mean())
        table = Table("nearest mean", ("accuracy",), [(accuracy,)])
        return Outcome(
            metrics={"probe_old_means_accuracy": accuracy},
            chance={"probe_old_means_accuracy": 1 / len(kinds)},
            tables=(table,),
            protocol=("nearest mean",),
            details={"num_test": len(test)},
        )


class _Middles:
    is_known = None

    def __init__(self, order: FrameOrder) -> None:
        self.order = order

    def __call__(self, frame: DepthFrame, place: int) -> np.ndarray:
        return frame.joints[self.order.centre].astype(np.float64)


@registry.references.add("old_middle")
class Middle:
    """The labelled joint in the middle."""

    title = "old_middle"

    def __init__(self) -> None:
        pass

    def of(self, order: FrameOrder) -> _Middles:
        assert order.num_frames > 0
        assert order.cube_mm > 0
        return _Middles(order)


@registry.data.add("old_frames")
class Frames(DepthFrames):
    """A flat square before a camera, whose joints lie in it."""

    set_name = "old_frames"

    def __init__(self, *, split: str, size: Count = 6) -> None:
        sizes = {"train": size, "test": size}
        part = FramePart(split, split, np.arange(size), size, sizes)
        super().__init__(part=part, camera=DepthCamera(200.0, -200.0, 32.0, 32.0, 64, 64), skeleton=HAND_21)

    def _frame(self, place: int) -> DepthFrame:
        depth = np.zeros((64, 64), dtype=np.float32)
        depth[16:48, 16:48] = 300.0 + place
        joints = np.zeros((21, 3), dtype=np.float32)
        joints[:, 2] = 300.0 + place
        return DepthFrame(depth=depth, joints=joints, visible=np.ones(21, dtype=bool))


@check("G99", "old-check", "preflight", severity="note", causes=("cfg.contract",), at="model", action="nothing")
def old_check(context: Context) -> list[Finding]:
    """A note of each model."""
    assert context.rehearsal.is_sound
    layer = type(context.built.job.model).__name__
    return [old_check.finding(context, "was run", measured=layer, expected="a model", layer=layer)]
