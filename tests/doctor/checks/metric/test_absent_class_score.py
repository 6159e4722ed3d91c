"""Metrics that do not give perfect answers the best score."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from sightline.engine.distributed import World
from sightline.parts.metrics.labels import IoU, confusion_matrix
from sightline.workbench.check.context import Context
from sightline.workbench.check.evaluation_rules import _falls_short, absent_class_score
from tests.cases import run_each
from tests.doctor.planting import assert_healthy, caught, judge, make
from tests.doctor.segmenting import make_parts, make_rooms, with_metric

State = dict[str, Tensor]


class OverAllClasses(IoU):
    """A scene's class that nothing shows counts 0 in the mean."""

    def compute(self, state: State) -> dict[str, float]:
        confusion = state["confusion"]
        common = confusion.diagonal().double()
        union = confusion.sum(0) + confusion.sum(1) - common
        return {"mIoU": (common / union.clamp(min=1)).mean().item(), "points": float(confusion.sum())}


class OffByOne(IoU):
    """Takes the answer among all classes but the first."""

    def update(
        self, state: State, *, probabilities: Tensor, target: Tensor, cloud_offsets: Tensor, sample_index: Tensor
    ) -> None:
        state["confusion"] += confusion_matrix(
            1 + probabilities[:, 1:].argmax(1), target, num_classes=self.num_classes, ignore_index=self.ignore_index
        )


def test_an_absent_class_of_scenes_that_counts_nothing(tmp_path: Path) -> None:
    finding = caught(
        with_metric(make_rooms(tmp_path), OverAllClasses(num_classes=4)), "absent-class-score", "eval.absent_class"
    )
    assert finding.evidence["figures"] == {"mIoU": 0.25}  # one class of four


def test_answers_decoded_wrongly(tmp_path: Path) -> None:
    """With every class there the score still falls short, so absence does not explain it."""
    finding = caught(with_metric(make_rooms(tmp_path), OffByOne(num_classes=4)), "absent-class-score", "eval.decode")
    assert set(finding.evidence["figures"]) == {"miou", "overall_accuracy", "mean_class_accuracy"}


@run_each(
    "name, is_short",
    [
        *[(name, True) for name in ("miou", "mIoU", "instance_miou_all_parts", "iou_chair", "point_accuracy", "f1")],
        *[(name, False) for name in ("previous", "loss", "error_mm", "points", "chamfer", "macula")],
    ],
)
def test_only_figures_whose_best_is_known_to_be_one(name: str, is_short: bool) -> None:
    assert _falls_short(name, 0.5) == is_short
    assert not _falls_short(name, 1.0)
    assert not _falls_short(name, float("nan"))


def test_healthy_runs(tmp_path: Path) -> None:
    for built in (make_parts(tmp_path), make_rooms(tmp_path), make(tmp_path, "data.train_size=480")):
        assert judge(absent_class_score, Context(built, World())) == []
    assert_healthy(with_metric(make_rooms(tmp_path), IoU(num_classes=4, ignore_index=0)))
