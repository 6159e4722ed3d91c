"""Ignored targets that count in a loss or a metric, and points of scans that are not scored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.engine.distributed import World
from sightline.parts.losses.classification import CrossEntropy, FocalCrossEntropy, LovaszSoftmax
from sightline.parts.metrics.labels import IoU
from sightline.workbench.check.checks.scored_targets import ignored_targets, unscored_points
from sightline.workbench.check.context import Context
from tests.doctor.planting import assert_complete
from tests.doctor.scanning import make_scans
from tests.doctor.segmenting import Edited, make_rooms


def test_sound_recipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Range images with the losses that recipes over them use, and rooms without and with an ignore index."""
    context = Context(make_scans(monkeypatch), World())
    assert [*ignored_targets(context), *unscored_points(context)] == []
    rooms = Context(make_rooms(tmp_path), World())
    assert [*ignored_targets(rooms), *unscored_points(rooms)] == []
    ignoring = make_rooms(tmp_path, lambda inner: Edited(inner, facts={"ignore_index": 1}))
    assert ignored_targets(Context(ignoring, World())) == []


@pytest.mark.parametrize("kind", [CrossEntropy, LovaszSoftmax, FocalCrossEntropy])
def test_a_loss_that_forgets_the_ignored_class(monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    """Class 0 is a valid index: nothing fails, and empty pixels are learned as a class."""
    losses = {
        "CrossEntropy": "cross_entropy",
        "LovaszSoftmax": "lovasz_softmax",
        "FocalCrossEntropy": "focal_cross_entropy",
    }
    monkeypatch.setattr(kind, "is_counted", lambda self, label: torch.ones_like(label, dtype=torch.bool))
    name = losses[kind.__name__]
    (finding,) = ignored_targets(Context(make_scans(monkeypatch, f"losses=[{{name: {name}}}]"), World()))
    assert_complete(finding)
    assert (finding.cause, finding.where.config_path) == ("data.ignore_handling", "losses.0")


def test_a_loss_that_ignores_another_index(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: CrossEntropy, *, logits: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, -2), label.flatten(), ignore_index=255, reduction="sum")

    monkeypatch.setattr(CrossEntropy, "forward", forward)
    (finding,) = ignored_targets(Context(make_scans(monkeypatch, "losses=[{name: cross_entropy}]"), World()))
    assert "learns from targets" in finding.summary


def test_a_loss_that_refuses_some_rows_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = CrossEntropy.forward

    def of_whole_images(self: CrossEntropy, *, logits: Tensor, label: Tensor) -> Tensor:
        if label.ndim == 3 and label.shape[1] <= 8:
            raise ValueError("whole images alone")
        return forward(self, logits=logits, label=label)

    monkeypatch.setattr(CrossEntropy, "forward", of_whole_images)
    (finding,) = ignored_targets(Context(make_scans(monkeypatch, "losses=[{name: cross_entropy}]"), World()))
    assert (finding.severity, finding.summary) == ("note", "check could not run: ValueError: whole images alone")
    assert_complete(finding)


def test_a_metric_that_scores_them(monkeypatch: pytest.MonkeyPatch) -> None:
    made = IoU.__init__
    monkeypatch.setattr(IoU, "__init__", lambda self, **given: made(self, **{**given, "ignore_index": None}))
    built = make_scans(monkeypatch)
    findings = ignored_targets(Context(built, World()))
    assert [finding.where.config_path for finding in findings][:1] == ["metrics.0"]
    for finding in findings:  # metrics that derive from it score them, too
        assert_complete(finding)
        assert finding.cause == "eval.protocol"


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("{name: drop_points, max_ratio: 0.5, fill: none}", "points are scored of a scan of"),
        ("{name: drop_points, max_ratio: 0.5}", "by the labels of others"),
    ],
)
def test_points_that_evaluation_drops(monkeypatch: pytest.MonkeyPatch, stage: str, words: str) -> None:
    """The figures would be those of the points that are left, in silence."""
    project = "{name: project, height: 64, width: 128, rows: ring}"
    built = make_scans(monkeypatch, f"transforms.evaluate=[{stage}, {project}]")
    (finding,) = unscored_points(Context(built, World()))
    assert_complete(finding)
    assert (finding.cause, finding.where.config_path) == ("eval.protocol", "transforms.evaluate")
    assert words in finding.summary
