"""Samples followed through the layers: numbers against torch's own, and expectations that hold or do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from sightline.contract.errors import ConfigError
from sightline.engine.build import TrainingSetup
from sightline.workbench.fit.fit import fit_samples
from sightline.workbench.fit.trace import MODEL, Snapshot, judge_expectations, look_at_layers, look_once
from tests.cases import run_each
from tests.doctor.planting import assert_complete
from tests.fit import nets
from tests.fit.nets import run


def traced(built: TrainingSetup, steps: int = 3) -> tuple[Snapshot, ...]:
    result = fit_samples(built, 2, lambda line: None, steps=steps, look=look_at_layers)
    assert result.best is not None
    return result.best.looks


def test_layers_are_what_torch_says(tmp_path: Path) -> None:
    net = nets.Net()
    built = run(tmp_path, model=net)
    result = fit_samples(built, 2, lambda line: None, steps=3, look=look_at_layers)
    first = result.attempts[0].looks[0]
    batch = result.samples.batch
    hidden = net.each(batch["points"])
    logits = net.head(torch.relu(hidden).amax(1))
    hidden.retain_grad()
    logits.retain_grad()
    F.cross_entropy(logits, batch["label"]).backward()
    layers = {layer.layer: layer for layer in first.layers}
    assert list(layers) == [MODEL, "each", "head"]
    assert layers["each"].shape == tuple(hidden.shape)
    for layer, tensor, module in ((layers["each"], hidden, net.each), (layers["head"], logits, net.head)):
        own = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
        assert tensor.grad is not None
        expected = (tensor.mean(), tensor.std(correction=0), tensor.min(), tensor.max(), tensor.grad.norm(), own.norm())
        found = (layer.mean, layer.std, layer.min, layer.max, layer.gradient, layer.weight_gradient)
        assert found == pytest.approx([value.item() for value in expected], rel=1e-5, abs=1e-8)
    assert layers[MODEL].max == pytest.approx(logits.max().item(), rel=1e-5)
    net.zero_grad()


def test_a_look_changes_no_bit_and_the_last_is_after_the_last_step(tmp_path: Path) -> None:
    built = run(tmp_path, "model.dropout=0.5", "model.embedding=8")
    plain = fit_samples(built, 2, lambda line: None, steps=3)
    looked = fit_samples(built, 2, lambda line: None, steps=3, look=look_at_layers)
    assert looked.to_dict() == plain.to_dict()
    assert looked.best is not None
    assert [look.step for look in looked.best.looks] == [0, len(looked.best.losses)]


def test_zeros_are_counted_before_anything_changes_them_in_place(tmp_path: Path) -> None:
    first = traced(run(tmp_path, "model={name: pointnet_plain, embedding: 8, fused: false}"))[0]
    share = {layer.layer: layer.zeros for layer in first.layers if layer.is_leaf}
    rectified = [zeros for path, zeros in share.items() if path.endswith("activation") and "head" not in path]
    assert all(0.2 < zeros < 0.8 for zeros in rectified)
    assert all(zeros < 0.01 for path, zeros in share.items() if path.endswith(("norm", "linear")))


def test_the_first_look_of_a_check_is_that_of_a_fit(tmp_path: Path) -> None:
    built = run(tmp_path, "model.dropout=0.5", "model.embedding=8")
    result = fit_samples(built, None, lambda line: None, steps=1, look=look_at_layers)
    assert result.best is not None
    assert look_once(built) == result.best.looks[0]


EXPECTED = {
    "{layer: head, std: [1e-3, 10], at: first}": (),
    "{layer: head, shape: [null, 12], zeros: [null, 0.5]}": (),
    "{layer: (model), max: [null, 1e6], gradient: [1e-9, null]}": (),
    "{layer: head, shape: [2, 13], at: first}": ("expect.0.shape",),
    "{layer: head, shape: [12], at: last}": ("expect.0.shape",),
    "{layer: head, std: [1e6, null]}": ("expect.0.std", "expect.0.std"),
    "{layer: each, mean: [5, 6], weight_gradient: [1e6, null], at: first}": (
        "expect.0.mean",
        "expect.0.weight_gradient",
    ),
}
"""Entry, and where it does not hold."""


@run_each("entry", EXPECTED)
def test_what_does_not_hold_is_an_error_with_its_value(entry: str, tmp_path: Path) -> None:
    built = run(tmp_path, f"expect=[{entry}]", model=nets.Net())
    findings = judge_expectations(built.config, dict(zip(("first", "last"), traced(built), strict=True)))
    assert tuple(finding.where.config_path for finding in findings) == EXPECTED[entry]
    for finding in findings:
        assert finding.severity == "error"
        assert_complete(finding)


@run_each("layer, told", [("haed", "; did you mean 'head'"), ("quite.another", "; `fit --trace` lists the layers")])
def test_a_layer_that_no_step_calls(layer: str, told: str, tmp_path: Path) -> None:
    built = run(tmp_path, f"expect=[{{layer: {layer}, std: [0, 1]}}]", model=nets.Net())
    with pytest.raises(ConfigError, match=rf"expect\.0\.layer: no layer '{layer}' is called in a training step{told}"):
        judge_expectations(built.config, {"first": look_once(built)})
