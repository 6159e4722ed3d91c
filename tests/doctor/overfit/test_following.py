"""Samples followed through the layers: numbers against torch's own, and expectations that are met or not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from sightline.contract.errors import ConfigError
from sightline.workbench.fit.fit_one import FitOptions
from sightline.workbench.fit.layer_trace import followed_document, trace_fit
from tests.doctor.overfit import nets
from tests.doctor.overfit.nets import run

BRIEF = FitOptions(samples=2, steps=3)


def test_layers_are_what_torch_says(tmp_path: Path) -> None:
    net = nets.Net()
    built = run(tmp_path, model=net)
    look = trace_fit(built, BRIEF).first
    points = built.job.stream.reader(built.job.stream.plan.step_keys(0)[0][0][:2])["points"]
    label = built.job.stream.reader(built.job.stream.plan.step_keys(0)[0][0][:2])["label"]
    hidden = net.each(points)
    logits = net.head(torch.relu(hidden).amax(1))
    hidden.retain_grad()
    logits.retain_grad()
    loss = F.cross_entropy(logits, label)
    loss.backward()
    layers = {layer.path: layer for layer in look.layers}
    assert set(layers) == {"", "each", "head"}
    each, head = layers["each"], layers["head"]
    assert each.shape == tuple(hidden.shape)
    assert each.output.mean == pytest.approx(hidden.mean().item(), rel=1e-5)
    assert each.output.std == pytest.approx(hidden.std(correction=0).item(), rel=1e-5)
    assert hidden.grad is not None
    assert logits.grad is not None
    assert each.output.grad_norm == pytest.approx(hidden.grad.norm().item(), rel=1e-5)
    assert head.output.grad_norm == pytest.approx(logits.grad.norm().item(), rel=1e-5)
    own = torch.cat([p.grad.flatten() for p in net.head.parameters() if p.grad is not None]).norm().item()
    assert head.weights_grad_norm == pytest.approx(own, rel=1e-5)
    assert look.loss == pytest.approx(loss.item(), rel=1e-5)
    assert look.grad_norm == pytest.approx(
        torch.nn.utils.get_total_norm([p.grad for p in net.parameters()]).item(), rel=1e-5
    )
    assert layers[""].output.max == pytest.approx(logits.max().item(), rel=1e-5)
    net.zero_grad()


def test_zeros_are_counted_before_anything_changes_them_in_place(tmp_path: Path) -> None:
    built = run(tmp_path, "model={name: pointnet_plain, embedding: 8, fused: false}")
    look = trace_fit(built, BRIEF).first
    share = {layer.path: layer.output.zeros for layer in look.layers if layer.is_leaf}
    rectified = [zeros for path, zeros in share.items() if path.endswith("activation") and "head" not in path]
    assert all(0.2 < zeros < 0.8 for zeros in rectified)
    assert all(zeros < 0.01 for path, zeros in share.items() if path.endswith(("norm", "linear")))


def test_the_last_look_is_after_the_last_step(tmp_path: Path) -> None:
    followed = trace_fit(run(tmp_path, model=nets.Net()), BRIEF)
    assert followed.last is not None
    assert [followed.first.step, followed.last.step] == [0, 3]
    assert followed.last.loss == pytest.approx(followed.curve.losses[3], rel=1e-5)


ENTRIES = (
    "expect=[{quantity: loss, at_most: 10.0, step: 0}, {quantity: layer.head.std, at_least: 0.0, step: 2}, "
    "{quantity: output.max, at_least: 1e6, step: 1}, {quantity: share, at_least: 1.0, at_most: 1.0, step: 0}]"
)


def test_the_entry_that_is_not_met_is_named_with_its_value(tmp_path: Path) -> None:
    followed = trace_fit(run(tmp_path, ENTRIES, model=nets.Net()), BRIEF)
    assert [each.is_met for each in followed.met] == [True, True, False, True]
    wrong = followed.met[2]
    assert wrong.measured is not None
    assert wrong.line.startswith(f"expect.2: output.max after 1 steps is {wrong.measured:.6g}, expected at least 1e+06")
    document = followed_document(followed)["expect"]
    assert [each["met"] for each in document] == [True, True, False, True]


@pytest.mark.parametrize(
    ("quantity", "told"),
    [
        ("layer.haed.max", "no layer 'haed'; did you mean 'head'"),
        ("output.heat.max", "no output 'heat'; allowed: logits"),
        ("loss.chamfer", "no loss 'chamfer'"),
    ],
)
def test_a_quantity_that_the_run_does_not_have(tmp_path: Path, quantity: str, told: str) -> None:
    entry = f"expect=[{{quantity: {quantity}, at_least: 0.0, step: 0}}]"
    with pytest.raises(ConfigError, match=told):
        trace_fit(run(tmp_path, entry, model=nets.Net()), BRIEF)
