"""Modules, losses and targets that do on purpose what is a bug elsewhere: each beside a twin with the bug."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sightline


def find(model: nn.Module, loss: Any, batch: Any) -> list[str]:
    torch.manual_seed(0)
    return [each.code for each in sightline.check(model, loss, batch).findings if each.severity != "note"]


# --- networks ---------------------------------------------------------------------------------------------------------


class Masked(nn.Conv2d):
    """Convolution of the pixels before each, with or without its own (van den Oord et al. 2016)."""

    def __init__(self, channels: int, outputs: int, *, sees_own: bool) -> None:
        super().__init__(channels, outputs, 3, padding=1)
        rows = torch.ones(3, 3).tril(-1)
        rows[0], rows[1], rows[2] = 1, torch.tensor([1.0, sees_own, 0.0]), 0
        self.mask = nn.Buffer(rows)

    def forward(self, maps: Tensor) -> Tensor:
        return self._conv_forward(maps, self.weight * self.mask, self.bias)


def test_pixels_that_come_before_may_be_the_label_of_the_next() -> None:
    torch.manual_seed(0)
    level = torch.randint(0, 4, (16, 12, 12))
    layers = Masked(1, 8, sees_own=False), nn.ReLU(), Masked(8, 8, sees_own=True), nn.ReLU(), nn.Conv2d(8, 4, 1)
    batch = ((level / 3)[:, None], level)
    assert find(nn.Sequential(*layers), nn.CrossEntropyLoss(), batch) == []


class Transformed(nn.Module):
    """Maps of a spectrum, of polar coordinates, or with rows and columns of memory exchanged."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.first, self.last = form, nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        if self.form == "spectrum":
            spectrum = torch.fft.ifft2(torch.complex(image[:, 0], image[:, 1]), norm="ortho")
            image = torch.stack([spectrum.real, spectrum.imag], dim=1)
        elif self.form == "polar":
            radius, angle = torch.linspace(0, 1, 32)[:, None], torch.linspace(0, 2 * math.pi, 32)
            grid = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).to(image)
            image = F.grid_sample(image, grid.expand(len(image), -1, -1, -1), align_corners=False)
        elif self.form == "bug":
            image = image.permute(0, 2, 3, 1).reshape(image.shape)
        return self.last(self.first(image).relu())


@pytest.mark.parametrize("form", ["spectrum", "polar", "bug"])
def test_a_spectrum_does_not_move_with_its_image(form: str) -> None:
    batch = (torch.rand(8, 2, 32, 32), torch.rand(8, 1, 32, 32))
    assert find(Transformed(form), nn.MSELoss(), batch) == ["exchanged-axes", "pixel-order"] * (form == "bug")


class Frames(nn.Module):
    """Overlapping frames that are added up again."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, rows: Tensor) -> Tensor:
        start, place = torch.meshgrid(torch.arange(9), torch.arange(16), indexing="ij")
        index = start * 8 + place
        frames = self.layer(rows[:, index])
        return torch.zeros_like(rows).index_add(1, index.flatten(), frames.flatten(1))


def test_frames_of_a_signal_may_overlap() -> None:
    rows = torch.randn(8, 80)
    assert find(Frames(), nn.MSELoss(), (rows, rows)) == []


class Skeleton(nn.Module):
    """Graph convolution of joints, or layers of points that a view mixes up."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.first, self.last = form, nn.Linear(3, 16), nn.Linear(16, 3)
        self.neighbours = nn.Buffer(torch.rand(24, 24) if form == "graph" else torch.zeros(()))

    def forward(self, pts: Tensor) -> Tensor:
        rows = self.first(pts).relu()
        rows = self.neighbours @ rows if self.form == "graph" else rows.mT.reshape(rows.shape)
        return self.last(rows.relu()).mean(dim=1)


@pytest.mark.parametrize("form", ["graph", "bug"])
def test_joints_of_a_graph_have_numbers(form: str) -> None:
    batch = (torch.randn(16, 24, 3), torch.randint(0, 3, (16,)))
    assert find(Skeleton(form), nn.CrossEntropyLoss(), batch) == ["exchanged-axes", "point-order"] * (form == "bug")


class WithEdges(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 16), nn.Linear(16, 3)

    def forward(self, pts: Tensor, edges: Tensor) -> Tensor:
        rows = self.first(pts).relu()
        sources, ends = edges[:, :, :, None].expand(-1, -1, -1, 16).unbind(1)
        return self.last(rows.scatter_add(1, ends, rows.gather(1, sources)).relu()).mean(dim=1)


def test_points_with_edges_have_numbers() -> None:
    batch = ((torch.randn(16, 24, 3), torch.randint(0, 24, (16, 2, 60))), torch.randint(0, 3, (16,)))
    assert find(WithEdges(), nn.CrossEntropyLoss(), batch) == []


# --- backward passes --------------------------------------------------------------------------------------------------


class LowerBound(torch.autograd.Function):
    """Bound that a gradient may lead back from (Ballé et al. 2018)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(values)
        return values.clamp(min=0.1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (values,) = ctx.saved_tensors
        return gradient * ((values >= 0.1) | (gradient < 0))


class Straight(LowerBound):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(values)
        return values.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (values,) = ctx.saved_tensors
        return gradient * ((values > -0.5) & (values < 1.5))


class Doubled(LowerBound):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * gradient * (ctx.saved_tensors[0] >= 0.1)


class Own(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.layer = function, nn.Linear(8, 8)

    def forward(self, rows: Tensor) -> Tensor:
        return self.layer(self.function.apply(self.layer(rows)))


@pytest.mark.parametrize(("function", "is_bug"), [(LowerBound, False), (Straight, False), (Doubled, True)])
def test_a_gradient_may_lead_back_from_beyond_a_bound(function: Any, is_bug: bool) -> None:
    rows = torch.randn(32, 8)
    assert find(Own(function), nn.MSELoss(), (rows, rows)) == ["layer-gradient"] * is_bug


class Experts(nn.Module):
    """Linear layers of which each row runs one; the last is never chosen."""

    def __init__(self, chooses: bool) -> None:
        super().__init__()
        self.experts, self.chooses = nn.ModuleList(nn.Linear(4, 2) for _ in range(5)), chooses

    def forward(self, rows: Tensor) -> Tensor:
        chosen = torch.randint(4, (len(rows),)) if self.chooses else torch.arange(len(rows)) % 4
        outputs = rows.new_zeros(len(rows), 2)
        for index in chosen.unique().tolist():
            own = (chosen == index).nonzero()[:, 0]
            outputs = outputs.index_add(0, own, self.experts[index](rows[own]))
        return outputs


@pytest.mark.parametrize(("chooses", "severity"), [(True, "note"), (False, "warning")])
def test_an_expert_that_no_row_chooses_is_a_note(chooses: bool, severity: str) -> None:
    """Where all others run at each update, the last of a list was forgotten; an expert may have no rows."""
    torch.manual_seed(0)
    model = Experts(chooses)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(60):
            optimizer.zero_grad()
            model(torch.randn(6, 4)).square().mean().backward()
            optimizer.step()
    found = [finding for finding in watch.findings if finding.code == "no-gradient"]
    assert [(finding.severity, finding.where.param) for finding in found] == [(severity, "experts.4.weight")]
