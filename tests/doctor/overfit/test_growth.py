"""The ladder and the variants: rules, the first rung that breaks one, cross products."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from sightline.config import read_config
from sightline.contract.errors import UserError
from sightline.contract.types import SampleKey
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.workbench.fit.fit_one import FitOptions
from sightline.workbench.fit.sample_ladder import fit_constant, fit_variants, parse_rungs, parse_variants, run_ladder
from tests.doctor.overfit import nets
from tests.doctor.overfit.nets import run
from tests.runs.small import ROOT, small_config, small_run

TINY = ("data.train_size=120", "model={name: pointnet_plain, embedding: 8}", "losses=[{name: cross_entropy}]")


def test_rungs_are_read() -> None:
    assert parse_rungs("1,8,all", 60) == [1, 8, "all"]


@pytest.mark.parametrize("text", ["8,1", "0", "1,one", "", "1,90,all"])
def test_rungs_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="--grow"):
        parse_rungs(text, 60)


@pytest.mark.parametrize("text", ["61", "8,100000", "1,61,100000"])
def test_rungs_of_more_samples_than_there_are(text: str) -> None:
    with pytest.raises(UserError, match=f"--grow {text}: the training part has 60 samples"):
        parse_rungs(text, 60)


def test_the_climb_goes_up_with_its_rule_and_value_at_every_rung() -> None:
    config = small_config(*TINY, "optimizer={name: adam, lr: 1e-2}", "transforms.train=[]")
    built = build(config, World())
    lines: list[str] = []
    climbed, _ = run_ladder(config, World(), built, [1, 4, 32], FitOptions(steps=25), lines.append)
    assert [rung.samples for rung in climbed] == [1, 4, 32]
    assert all(rung.is_passed for rung in climbed[:2])
    told = [line for line in lines if "rule:" in line]
    assert len(told) == 3
    assert 0.0 <= climbed[2].figures["trivial"] <= 0.2  # twelve classes, evenly
    assert math.isfinite(climbed[2].figures["closeness"])


def test_the_climb_ends_at_the_rung_that_breaks_its_rule_and_says_why(tmp_path: Path) -> None:
    built = run(tmp_path, "optimizer.lr=1e-7", model=nets.Net())
    climbed, findings = run_ladder(built.config, World(), built, [2, 8], FitOptions(steps=20), lambda line: None)
    assert [rung.is_passed for rung in climbed] == [False]
    assert findings[0].cause == "optim.lr"


def test_a_rung_of_one_sample_where_samples_are_compared() -> None:
    small = ("data.num_points=32", "data.train_size=40", "model.points={name: dgcnn, num_neighbours: 4, embedding: 16}")
    config = read_config(ROOT / "configs" / "contrast" / "synthetic_shapes_intrapoint_parts.yaml", small)
    with pytest.raises(UserError, match=r"^--grow: rung 1: '\w+' compares samples with one another; begin with 2"):
        run_ladder(config, World(), build(config, World()), [1, 8], FitOptions(steps=2), lambda line: None)


def test_a_rung_above_that_learns_nothing() -> None:
    config = small_config(*TINY, "optimizer={name: sgd, lr: 1e-6}", "transforms.train=[]")
    built = build(config, World())
    climbed, findings = run_ladder(config, World(), built, [40], FitOptions(steps=5), lambda line: None)
    assert not climbed[0].is_passed
    assert findings[0].cause == "optim.lr"
    assert "constant prediction" in findings[0].measured


def test_the_constant_answer_to_classes_is_their_share() -> None:
    """The best constant of a cross entropy are the logarithms of the shares: its loss is their entropy."""
    built = small_run(*TINY)
    keys = [SampleKey(int(index), 0, 0) for index in built.data.train.indices[:30]]
    batches = [built.data.train.reader(keys[start : start + 10]) for start in (0, 10, 20)]
    constant = fit_constant(built, batches)
    labels = torch.cat([batch["label"] for batch in batches])
    shares = torch.bincount(labels, minlength=12).double() / 30
    found = F.softmax(constant(points=batches[0]["points"])["logits"].double(), dim=1)
    assert torch.equal(found[0], found[-1])
    assert torch.allclose(found[0], shares, atol=1e-4)


def test_variants_are_a_cross_product_and_lists_stay_whole() -> None:
    assert parse_variants(["model.shortcuts=true,false", "model.widths=[1,2],[3]"]) == [
        ("model.shortcuts=true", "model.widths=[1,2]"),
        ("model.shortcuts=true", "model.widths=[3]"),
        ("model.shortcuts=false", "model.widths=[1,2]"),
        ("model.shortcuts=false", "model.widths=[3]"),
    ]


@pytest.mark.parametrize("text", ["model.shortcuts", "=1,2", "model.width=1,"])
def test_variants_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="--vary"):
        parse_variants([text])


def test_variants_see_the_same_samples(tmp_path: Path) -> None:
    def variant(rate: str) -> tuple[tuple[str, ...], object]:
        return (f"optimizer.lr={rate}",), lambda: run(tmp_path, f"optimizer.lr={rate}", "seed=3")

    asked = FitOptions(samples=2, steps=10, is_brief=True, only_own_rate=True)
    found = fit_variants([variant("0.1"), variant("1e-6")], asked, lambda line: None)  # type: ignore[list-item]
    assert found[0].result.samples.indices == found[1].result.samples.indices
    firsts = [each.result.verdicts[0].curves[0].losses[0] for each in found]
    assert firsts[0] == firsts[1]
    assert [each.result.is_fitted for each in found] == [True, False]


def test_variants_that_change_the_samples_are_refused(tmp_path: Path) -> None:
    builders = [((f"seed={seed}",), lambda seed=seed: run(tmp_path, f"seed={seed}")) for seed in (0, 1)]
    with pytest.raises(UserError, match="changes which samples"):
        fit_variants(builders, FitOptions(samples=2, steps=1, is_brief=True), lambda line: None)
