"""Losses that need no network, the ReLU that ends one, and the plateau: found, and silent where they are meant."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import sightline
from sightline.config import read_config
from sightline.doctor.attempts import MissingError, attempt
from sightline.doctor.check import make_subject, measure_levels
from sightline.doctor.evidence import Evidence
from sightline.doctor.evidence.levels import Levels
from sightline.doctor.evidence.run import Plateau, plateau
from sightline.doctor.finding import Finding
from sightline.doctor.rules import find_by, get_rule
from sightline.doctor.rules.loss import begins_at_zeros, loss_begins_high
from sightline.doctor.rules.model import rectified_outputs
from sightline.doctor.rules.run import trivial_plateau
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.workbench.check.context import Context, TrainedRecords
from sightline.workbench.check.loss_subjects import make_loss_subjects
from sightline.workbench.check.run_subject import examine_run, find_rectified
from tests.cases import run_each
from tests.command import succeed
from tests.planted.catalog import FAULTS, HEALTHY
from tests.planted.planting import BENCHES, Planter


def measure(name: str, model: nn.Module, loss: Any, batch: Any) -> Any:
    return Evidence({"subject": make_subject(model, loss, [batch], None)}, math.inf).get(name)


# --- levels -----------------------------------------------------------------------------------------------------------


def draw_maps(num: int = 4, joints: int = 3, size: int = 16, sigma: float = 2.0) -> Tensor:
    """Gaussian maps (num, joints, size, size) with a maximum near 1."""
    cells = torch.arange(size)
    rows, columns = (torch.rand(2, num, joints, 1, 1) * size).unbind()
    distance = (cells[:, None] - rows).square() + (cells - columns).square()
    return torch.exp(-distance / (2 * sigma**2))


def test_levels_of_squares_are_the_mean_square_and_the_variance_of_channels() -> None:
    maps = draw_maps()
    found = measure("levels", nn.Conv2d(1, 3, 1), nn.MSELoss(), (torch.rand(4, 1, 16, 16), maps))
    assert found.zero == pytest.approx(float(maps.double().square().mean()), rel=1e-6)
    assert found.constant == pytest.approx(float(maps.double().var((0, 2, 3), correction=0).mean()), rel=1e-6)


def test_levels_of_absolute_errors_are_the_deviations_from_zero_and_from_medians() -> None:
    rows = torch.randn(33, 4) + 2
    found = measure("levels", nn.Linear(5, 4), nn.L1Loss(), (torch.rand(33, 5), rows))
    assert found.zero == pytest.approx(float(rows.abs().double().mean()), rel=1e-6)
    assert found.constant == pytest.approx(float((rows - rows.median(0)[0]).abs().double().mean()), rel=1e-3)


def test_the_loss_of_all_zero_heat_maps_of_the_paper_is_known() -> None:
    """(pi 1.7^2)^(3/2) / 44^3 for one Gaussian within 44^3 cells."""
    cells = torch.arange(44) - 21.5
    squares = cells[:, None, None].square() + cells[:, None].square() + cells.square()
    maps = torch.exp(-squares / (2 * 1.7**2))[None, None]
    found = measure("levels", nn.Conv3d(1, 1, 1), nn.MSELoss(), (torch.zeros(1, 1, 44, 44, 44), maps))
    assert found.zero == pytest.approx(3.2115e-4, rel=1e-4)


def test_there_are_no_levels_of_a_teacher_s_scores() -> None:
    """What a constant added to all scores does not change is of classes, not of numbers."""
    teach = lambda out, scores: F.kl_div(out.log_softmax(1), scores.softmax(1), reduction="batchmean")  # noqa: E731
    with pytest.raises(MissingError, match="targets of scores"):
        measure("levels", nn.Linear(5, 3), teach, (torch.rand(8, 5), torch.rand(8, 3)))


def test_there_are_no_levels_without_targets_of_numbers() -> None:
    with pytest.raises(MissingError, match="no target of numbers"):
        measure("levels", nn.Linear(5, 3), nn.CrossEntropyLoss(), (torch.rand(8, 5), torch.arange(8) % 3))


def test_levels_of_a_loader_are_those_of_64_samples_in_batches_of_any_size() -> None:
    inputs, rows, model = torch.randn(64, 5), torch.randn(64, 2) + 3, nn.Linear(5, 2)
    expected = pytest.approx([float(rows.double().square().mean()), float(rows.double().var(0, correction=0).mean())])
    for size in (1, 2, 64):
        found = measure_levels(model, F.mse_loss, DataLoader(TensorDataset(inputs, rows), batch_size=size))
        assert [found.zero, found.constant] == expected


# --- a ReLU that ends a network ---------------------------------------------------------------------------------------


class Maps(nn.Module):
    """Small U-Net with an operation at its end."""

    def __init__(self, end: Callable[[Tensor], Tensor], outputs: int = 1, bias: float | None = None) -> None:
        super().__init__()
        self.outer = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.inner = nn.Sequential(
            nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)
        )
        self.last, self.end = nn.Conv2d(16, outputs, 1), end
        if bias is not None:
            nn.init.constant_(self.last.bias, bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        outer = self.outer(images)
        return self.end(self.last(torch.cat([outer, self.inner(outer)], dim=1)))


def overlap(output: Tensor, mask: Tensor) -> Tensor:
    """One minus the Dice overlap."""
    return 1 - (2 * (output * mask).sum() + 1) / (output.sum() + mask.sum() + 1)


def distance_iou(output: Tensor, target: Tensor) -> Tensor:
    """One minus the IoU of six boxes a row, given by the distances of their sides from one point."""
    output, target = output.view(-1, 4), target.view(-1, 4)
    inner = torch.minimum(output, target)
    areas = [(each[:, 0] + each[:, 2]) * (each[:, 1] + each[:, 3]) for each in (inner, output, target)]
    return (1 - areas[0] / (areas[1] + areas[2] - areas[0]).clamp(min=1e-6)).mean()


class Case(NamedTuple):
    """Network, loss and target of images or rows; `is_bug` where a ReLU keeps outputs from their targets."""

    make: Callable[[], nn.Module]
    loss: Any
    is_bug: bool
    scale: float = 1.0


def rows(end: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 24), end)


class Restored(nn.Module):
    """Image with a small correction, within the range of ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = Maps(lambda maps: maps, 3)

    def forward(self, images: Tensor) -> Tensor:
        return F.relu6(images + 0.1 * self.maps(images))


BINARY = F.binary_cross_entropy_with_logits
CASES: dict[str, Case] = {
    "heat maps": Case(lambda: Maps(torch.relu, 3), F.mse_loss, True),
    "masks": Case(lambda: Maps(torch.relu), BINARY, True),
    "masks, all above 0 at first": Case(lambda: Maps(torch.relu, bias=3.0), BINARY, True),
    "masks by a clamp": Case(lambda: Maps(lambda maps: maps.clamp(min=0), bias=-1.0), F.l1_loss, True),
    "masks, all 0 at first": Case(lambda: Maps(torch.relu, bias=-3.0), F.mse_loss, True),
    "boxes": Case(lambda: rows(nn.ReLU()), F.smooth_l1_loss, False),  # as good as plain ones after 500 steps
    "boxes by deltas": Case(lambda: rows(nn.ReLU()), F.smooth_l1_loss, True),
    "depths": Case(lambda: Maps(torch.relu), F.l1_loss, False),
    "heat maps, plain": Case(lambda: Maps(lambda maps: maps, 3), F.mse_loss, False),
    "masks, plain": Case(lambda: Maps(lambda maps: maps), BINARY, False),
    "masks by an overlap": Case(lambda: Maps(torch.relu), overlap, False),
    "boxes, plain": Case(lambda: rows(nn.Identity()), F.smooth_l1_loss, False),
    "boxes by their distances": Case(lambda: rows(nn.ReLU()), distance_iou, False),
    "densities": Case(lambda: Maps(torch.relu), F.mse_loss, False, scale=1e-2),
    "densities by softplus": Case(lambda: Maps(F.softplus), F.mse_loss, False, scale=1e-2),
    "images within ReLU6": Case(lambda: Maps(F.relu6, 3), F.mse_loss, False),
    "images corrected within ReLU6": Case(Restored, F.l1_loss, False),
    "dropout at the end": Case(
        lambda: nn.Sequential(Maps(torch.relu, 3, bias=3.0), nn.Dropout(0.5)), F.mse_loss, False
    ),
}


def make_batch(name: str, case: Case) -> tuple[Tensor, Tensor]:
    """Draw inputs and targets: positive boxes or signed deltas, masks, images, depths, or maps of some scale."""
    if name.startswith("boxes"):
        inputs = torch.randn(64, 16)
        return inputs, torch.randn(64, 24) if name == "boxes by deltas" else torch.rand(64, 24) + 0.1
    images = torch.rand(4, 3, 16, 16)
    if name.startswith("images"):
        return images, images
    if name == "depths":
        return images, 1 + 9 * torch.rand(4, 1, 16, 16)
    maps = draw_maps(joints=1 if name.startswith(("masks", "densities")) else 3)
    return images, (maps > 0.3).float() if name.startswith("masks") else case.scale * maps


@pytest.mark.parametrize("seed", [0, 1, 2])
@run_each("name", CASES)
def test_a_relu_that_ends_a_network_is_named_with_its_layer(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    case = CASES[name]
    batch = make_batch(name, case)
    measured = attempt("", lambda: measure("rectified", case.make(), case.loss, batch), {})
    assert getattr(measured, "kind", "apply") == "apply", measured.reason
    found = [] if isinstance(measured, MissingError) else find_by(rectified_outputs, rectified=measured)
    assert [(each.severity, each.cause) for each in found] == [("warning", "model.activation")] * case.is_bug
    assert {each.where.layer for each in found} <= {"last", "2"}


# --- runs ---------------------------------------------------------------------------------------------------------


BY_ID = {case.id: case for case in (*FAULTS, *HEALTHY)}


def judge(built: TrainingSetup) -> list[Finding]:
    """Judge the first losses of a run, and how its network ends."""
    findings = find_rectified(built)
    for _, subject, term in make_loss_subjects(Context(built, World())):
        evidence = Evidence({"subject": subject, "term": term}, math.inf)
        for row in map(get_rule, (loss_begins_high, begins_at_zeros)):
            findings += row.find(**{name: evidence.get(name) for name in row.reads})
    return findings


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("N14", ["final-activation warning output", "initial-squares note None"]),
        ("N15", ["initial-loss warning None"]),
        ("H14", ["initial-squares note None"]),
        ("POSE", ["initial-squares note None"]),
    ],
)
def test_volumes_behind_a_relu_and_with_large_weights_are_named(name: str, found: list[str]) -> None:
    with Planter() as planter:
        BY_ID[name].plant_into(planter)
        small = [f"transforms.{part}.0.size=24" for part in ("train", "evaluate")]
        config = read_config(BENCHES / "POSE.yaml", ("seed=1", *small, *planter.overrides))
        findings = judge(planter.change(build(config, World())))
    assert [f"{each.code} {each.severity} {each.where.layer}" for each in findings] == found


@run_each("constant, named", [(0.95, True), (0.4, False)])
def test_a_first_loss_near_that_of_zeros_is_explained_where_constants_do_not_lower_it(
    constant: float, named: bool
) -> None:
    subject = make_subject(nn.Conv2d(3, 1, 1), F.mse_loss, [(torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8))], None)
    evidence = Evidence({"subject": subject}, math.inf)
    of_batch = {name: evidence.get(name) for name in ("free_loss", "passed")}
    assert len(find_by(begins_at_zeros, levels=Levels(1.0, zero=1.0, constant=constant), **of_batch)) == named


# --- a loss that stays ------------------------------------------------------------------------------------------------


def train(rate: float) -> list[str]:
    """Train on noisy maps at a rate, watched; return the codes of warnings and errors."""
    torch.manual_seed(0)
    maps = draw_maps(num=64, joints=1)
    loader = DataLoader(TensorDataset(maps + 0.1 * torch.randn_like(maps), maps), batch_size=16, shuffle=True)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
    nn.init.normal_(model[3].weight, std=1e-3)
    nn.init.zeros_(model[3].bias)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    with sightline.watch(model, optimizer=optimizer, loss=F.mse_loss, loader=loader) as watch:
        for _ in range(30):
            for inputs, target in loader:
                optimizer.zero_grad()
                F.mse_loss(model(inputs), target).backward()
                optimizer.step()
    return [each.code for each in watch.findings if each.severity != "note"]


def test_a_loss_that_stays_at_a_trivial_level_is_named() -> None:
    assert "trivial-plateau" in train(1e-9)
    assert train(1e-2) == []


@run_each(
    "start, constant, named",
    [
        (0.0321, 0.03, "at the level of all-zero outputs"),
        (0.0299, 0.03, "at the level of the best constants"),
        (0.031, 0.03, "above the level of the best constants"),
        (0.029, 0.03, ""),
        (0.0, 0.03, ""),
        (0.01, 1e-7, ""),  # labels of the same class
    ],
)
def test_the_level_at_which_a_trained_network_stays_is_named(start: float, constant: float, named: str) -> None:
    levels = Levels(start, zero=0.032, constant=constant)
    found = find_by(trivial_plateau, plateau=Plateau(50, 150, 0.031, 0.031), trained_levels=levels)
    assert [each.summary for each in found] == ([f"the loss stays {named}, while training goes on"] if named else [])


@run_each(
    "start, early, severity",
    [
        (0.0321, 0.05, "warning"),  # maps of zeros, wherever it began
        (0.0311, 0.0312, "warning"),
        (0.0311, 0.0318, "note"),  # it has fallen
        (0.0322, 0.031, "note"),  # the batches are noisy
    ],
)
def test_a_loss_that_has_moved_is_a_note(start: float, early: float, severity: str) -> None:
    levels = Levels(start, zero=0.0321 if start == 0.0321 else 0.04, constant=0.03)
    (finding,) = find_by(trivial_plateau, plateau=Plateau(50, 150, 0.031, early), trained_levels=levels)
    assert finding.severity == severity


@run_each(
    "curve, reason",
    [
        ([(step, 1.0) for step in range(0, 200, 10)], ""),
        ([(step, 1.0) for step in range(0, 90, 10)], "fewer than 100 finite losses"),
        ([(step, 1.0) for step in (0, 100, 200)], "fewer than 100 finite losses"),
        ([(step, 1 - step / 1000) for step in range(0, 200, 10)], "a loss that falls"),
        ([(step, 2.0 if step < 50 else 1.0) for step in range(0, 200, 10)], ""),
    ],
)
def test_a_loss_is_still_if_the_halves_of_its_last_two_thirds_are_alike(curve: Any, reason: str) -> None:
    found = attempt("", plateau, {"loss_curve": curve})
    assert found.reason == reason if reason else found.last == 190


def test_the_records_of_a_run_are_judged() -> None:
    """Of an untrained network and records that say that it was trained."""
    with Planter():
        config = read_config(BENCHES / "POSE.yaml", [f"transforms.{part}.0.size=16" for part in ("train", "evaluate")])
        built = build(config, World())
    for curve, codes in (([(step, 0.05) for step in range(0, 200, 10)], ["trivial-plateau"]), ([(10, 0.05)], [])):
        lines = [{"split": "train", "step": step, "loss/total": loss} for step, loss in curve]
        trained = TrainedRecords(lambda lines=lines: lines, lambda: built.job.model)  # type: ignore[misc]
        _, findings = examine_run(Context(built, World(), is_quick=True, trained=trained))
        assert [each.code for each in findings] == codes
        assert {each.where.config_path for each in findings} <= {"model"}


@pytest.mark.long
def test_a_run_that_stays_at_zeros_says_so_at_its_end_and_when_it_is_checked(tmp_path: Path) -> None:
    words = ["optimizer={name: sgd, lr: 1e-9}", "log.every=5", "train.epochs=20", "schedule.name=constant"]
    words += [f"transforms.{part}.0.size=16" for part in ("train", "evaluate")]
    succeed("train", BENCHES / "POSE.yaml", *words, "evaluate.every=20", "--out", tmp_path / "run")
    assert "trivial-plateau" in (tmp_path / "run" / "findings.json").read_text()
    (finding,) = [each for each in sightline.check(tmp_path / "run").findings if each.code == "trivial-plateau"]
    assert finding.summary == "the loss stays at the level of all-zero outputs, while training goes on"
