"""Quantised runs: bugs planted in quantisers, policies, gradients, outputs, optimisers and teachers; healthy ones."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sightline.engine.distributed import World
from sightline.workbench.check.context import Context
from sightline.workbench.check.suite import run_all, run_quick
from tests.doctor.compressing import (
    BUGS,
    MIXED,
    findings_of,
    floats_of,
    make_quantised,
    planted,
    quick,
    taught,
)
from tests.doctor.planting import assert_complete, make


@pytest.mark.parametrize("name", {(bug.code, bug.case.cause): name for name, bug in BUGS.items()}.values())
def test_planted_bugs_are_found_when_a_training_starts(name: str) -> None:
    """One of each check and cause, with the cause among those named. All, on ten seeds: tests/doctor/compressing.py."""
    bug = BUGS[name]
    with planted(bug, seed=3) as built:
        found = findings_of(quick(built), (bug.code,))
    assert found
    for finding in found:
        assert_complete(finding)
    assert any(bug.case.cause in (each.cause, *each.alternatives) for each in found), list(map(str, found))


@pytest.mark.parametrize("model", ["pointnet_plain", "dgcnn", "scale_net"])
def test_healthy_quantised_runs_are_not_flagged(model: str) -> None:
    """Codebooks and grids, by tensor and by channel; fp16. Each alone, over seeds: `tests.doctor.compressing healthy`.

    PointNet trains, quantised, after the checks of every training in tests/runs/test_quantised.py.
    """
    assert findings_of(quick(make_quantised(model, choices=MIXED))) == []


def test_a_float_run_is_not_looked_at(tmp_path) -> None:
    built = make(tmp_path)
    assert findings_of(quick(built)) == []
    assert quick(built).float_model is None


def test_a_teacher_at_rest_is_not_flagged() -> None:
    built = make_quantised()
    taught(built, floats_of(built))
    assert findings_of(quick(built), ("unfit-teacher",)) == []


def test_a_float_student_may_begin_as_its_teacher(tmp_path) -> None:
    """Born again: another module with the same weights, which nothing but training parts from the student."""
    built = make(tmp_path)
    taught(built, make(tmp_path).job.model.eval().requires_grad_(False))
    assert findings_of(quick(built), ("unfit-teacher",)) == []


def test_constant_weights_and_few_values_need_few_centres(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros at the start (of a residual branch, of an alignment) are one cluster, and right."""
    from sightline.engine import build

    own = build.apply_policy

    def edited(model, *given, **more) -> None:
        weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        weights[0].data.zero_()
        weights[1].data.sign_()
        own(model, *given, **more)

    monkeypatch.setattr(build, "apply_policy", edited)
    built = make_quantised(
        choices=({"kind": "codebook", "bits": 4, "per_channel": True}, {"kind": "codebook", "bits": 8})
    )
    context = quick(built)
    plain = floats_of(built)
    weights = [parameter for parameter in plain.parameters() if parameter.ndim > 1]
    weights[0].data.zero_()
    weights[1].data.sign_()
    vars(context)["float_model"] = plain
    assert findings_of(context, ("broken-codebook", "unquantised-weights")) == []


def test_checks_leave_the_model_as_it_is() -> None:
    built = make_quantised()
    before = {name: value.clone() for name, value in built.job.model.state_dict().items()}
    findings_of(Context(built, World()))
    assert all(torch.equal(before[name], value) for name, value in built.job.model.state_dict().items())
    assert all(parameter.grad is None for parameter in built.job.model.parameters())
    assert built.job.model.training


def test_a_broken_codebook_explains_what_follows_of_it() -> None:
    """One error for NaN centres, at the codebook: the loss and the gradient that are not finite are its symptoms."""
    with planted(BUGS["a centre is NaN"]) as built:
        found = run_quick(built, World())
    assert [each.code for each in found if each.severity == "error"] == ["broken-codebook"]
    assert any("non-finite" in line for line in found[0].evidence["explains"])


def test_a_resumed_run_is_not_compared_with_weights_that_it_did_not_read() -> None:
    built = make_quantised()
    built = dataclasses.replace(built, config=dataclasses.replace(built.config, init=object()))  # type: ignore[arg-type]
    assert quick(built).float_model is None


def test_deep_checks_of_a_healthy_quantised_run_all_run_and_are_silent() -> None:
    """Layers with parametrisations are measured by the weight behind them, and compared with their type."""
    found = run_all(make_quantised(choices=MIXED), World(), deep=True)
    assert [each for each in found if each.severity != "note"] == [], list(map(str, found))
