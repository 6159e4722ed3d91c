"""Rates, clipping and weight decay that are powers of ten off."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.config import read_config
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.workbench.check.checks.optimiser.update_size import update_size
from sightline.workbench.check.context import Context
from tests.conftest import ROOT
from tests.doctor.planting import caught, make
from tests.marks import long_but

LARGE = ("optimizer={name: adam, lr: 100}", "optimizer={name: sgd, lr: 1e5}", "optimizer={name: adamw, lr: 20}")
SMALL = ("optimizer={name: adam, lr: 1e-9}", "optimizer={name: sgd, lr: 1e-10}", "optimizer={name: adamw, lr: 1e-10}")
ADAM = "optimizer={{name: adam, lr: 1e-3, weight_decay: {:g}}}"


@pytest.mark.parametrize("seed", long_but([0], [0, 1, 2]))
@pytest.mark.parametrize("words", LARGE)
def test_a_rate_that_is_far_too_large(tmp_path: Path, words: str, seed: int) -> None:
    (finding,) = update_size(Context(make(tmp_path, words, f"seed={seed}"), World(), forward_s=1.5))
    assert None not in (finding.value, finding.bound)
    assert (finding.cause, finding.where.step) == ("optim.lr", 0)


@pytest.mark.parametrize("seed", long_but([0], [0, 1, 2]))
@pytest.mark.parametrize("words", SMALL)
def test_a_rate_that_moves_nothing(tmp_path: Path, words: str, seed: int) -> None:
    (finding,) = update_size(Context(make(tmp_path, words, f"seed={seed}"), World(), forward_s=1.5))
    assert None not in (finding.value, finding.bound)
    assert finding.cause == "optim.lr"


@pytest.mark.parametrize("seed", long_but([0], [0, 1, 2]))
def test_clipping_to_nothing_is_named_before_the_rate(tmp_path: Path, seed: int) -> None:
    built = make(tmp_path, "train.clip_norm=1e-9", f"seed={seed}")
    (finding,) = update_size(Context(built, World(), forward_s=1.5))
    assert finding.cause == "optim.clip"
    assert finding.where.config_path == "train.clip_norm"


def test_an_adaptive_optimiser_undoes_clipping(tmp_path: Path) -> None:
    """Adam divides by the size of what is left: such a norm is odd, but the weights move."""
    built = make(tmp_path, "optimizer={name: adam, lr: 1e-3}", "train.clip_norm=1e-3")
    assert update_size(Context(built, World())) == []


@pytest.mark.parametrize("seed", long_but([0], [0, 1, 2]))
def test_a_decay_that_outweighs_the_gradients(tmp_path: Path, seed: int) -> None:
    built = make(tmp_path, ADAM.format(10), f"seed={seed}")
    (finding,) = update_size(Context(built, World(), forward_s=1.5))
    assert finding.cause == "optim.hyper"
    assert finding.where.config_path == "optimizer.weight_decay"


def test_the_first_finding_is_the_rate(tmp_path: Path) -> None:
    found = caught(make(tmp_path, LARGE[0]), "update-size", "optim.lr", "warning").measured
    assert "learning rate, 100" in found


@pytest.mark.parametrize(
    "words",
    [
        *(ADAM.format(decay) for decay in (1e-4, 1e-2, 0.1)),
        "optimizer={name: adamw, lr: 1e-3, weight_decay: 0.5}",
        "optimizer={name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 5e-4}",
        "optimizer={name: sgd, lr: 1e-3}",
        "optimizer={name: adam, lr: 1e-6}",
        "schedule={name: cosine, warmup_epochs: 1}",
    ],
)
def test_usual_recipes_are_silent(tmp_path: Path, words: str) -> None:
    assert update_size(Context(make(tmp_path, words), World())) == []


SHIPPED = ("pose/synthetic_hands_v2v_small", "classify/synthetic_shapes_dgcnn", "detect/synthetic_crowds_fcos")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_are_silent(name: str) -> None:
    """Volumes start with weights of 0.001, which one update of Adam doubles."""
    built = build(read_config(ROOT / f"configs/{name}.yaml"), World())
    assert update_size(Context(built, World(), forward_s=1.5)) == []


def test_a_rate_of_zero_is_judged_elsewhere(tmp_path: Path) -> None:
    built = make(tmp_path)
    for group in built.job.optimizer.param_groups:
        group["base_lr"] = 0.0
    assert update_size(Context(built, World())) == []
