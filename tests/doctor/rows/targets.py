"""Programs whose loss does not have its least value at its own targets, or tells apart what means the same."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tests.doctor.rows import Case


def make_rows(num: int = 64, width: int = 6) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(num, width)


def overlap_of_a_spectrogram(has_bug: bool, watch: Any, check: Any) -> None:
    inputs = make_rows(64, 20).view(8, 1, 160)

    def loss(out: Tensor, mask: Tensor) -> Tensor:
        shares = out if has_bug else out.sigmoid()
        return 1 - (2 * (shares * mask).sum() + 1) / (shares.sum() + mask.sum() + 1)

    check(nn.Conv1d(1, 1, 5, padding=2), loss, (inputs, (inputs > 0.7).float()))


def direction_of_the_wind(has_bug: bool, watch: Any, check: Any) -> None:
    inputs, angle = make_rows(128), torch.linspace(0, 359, 128)[torch.randperm(128)]

    def loss(out: Tensor, wanted: Tensor) -> Tensor:
        turn = out[:, 0] - wanted if has_bug else (out[:, 0] - wanted).deg2rad()
        return turn.abs().mean() if has_bug else (1 - turn.cos()).mean()

    check(nn.Linear(6, 1), loss, (inputs, angle))


def attitude_of_a_satellite(has_bug: bool, watch: Any, check: Any) -> None:
    inputs, target = make_rows(), F.normalize(torch.randn(64, 4), dim=1)

    def loss(out: Tensor, wanted: Tensor) -> Tensor:
        return F.mse_loss(out, wanted) if has_bug else (1 - (F.normalize(out, dim=1) * wanted).sum(1).square()).mean()

    check(nn.Linear(6, 4), loss, (inputs, target))


def pollution_at_silent_stations(has_bug: bool, watch: Any, check: Any) -> None:
    inputs, level = make_rows(), 5 + 20 * torch.rand(64, 9)
    level[torch.rand(64, 9) < 0.3] = 0

    def loss(out: Tensor, wanted: Tensor) -> Tensor:
        known = torch.ones_like(wanted, dtype=torch.bool) if has_bug else wanted > 0
        return (out[known] - (wanted[known] + 1e-6).log()).abs().mean()

    check(nn.Linear(6, 9), loss, (inputs, level))


def overlap_of_boxes_of_rooms(has_bug: bool, watch: Any, check: Any) -> None:
    inputs, low = make_rows(), 3 * torch.rand(64, 3)
    boxes = torch.cat((low, low + 0.5 + torch.rand(64, 3)), 1)

    def loss(out: Tensor, wanted: Tensor) -> Tensor:
        extent = torch.minimum(out[:, 3:], wanted[:, 3:]) - torch.maximum(out[:, :3], wanted[:, :3])
        both = (extent if has_bug else extent.clamp(min=0)).prod(1)
        volumes = (out[:, 3:] - out[:, :3]).abs().prod(1) + (wanted[:, 3:] - wanted[:, :3]).prod(1)
        return (1 - both / (volumes - both).clamp(min=1e-3)).mean() + 0.01 * F.l1_loss(out, wanted)

    check(nn.Linear(6, 6), loss, (inputs, boxes))


def onsets_between_frames(has_bug: bool, watch: Any, check: Any) -> None:
    inputs, centre = make_rows(32, 20)[:, None], 3 + 14 * torch.rand(32)
    centre = centre if has_bug else centre.round()
    heat = torch.exp(-((torch.arange(20.0) - centre[:, None]) ** 2) / 2)[:, None]

    def loss(out: Tensor, wanted: Tensor) -> Tensor:
        shares, is_peak = out.sigmoid().clamp(1e-6, 1 - 1e-6), wanted.eq(1)
        low = (-(1 - shares).log() * shares**2 * (1 - wanted) ** 4)[~is_peak].sum()
        return low - (shares.log() * (1 - shares) ** 2)[is_peak].sum()

    check(nn.Conv1d(1, 1, 5, padding=2), loss, (inputs, heat))


def boxes_of_no_words(has_bug: bool, watch: Any, check: Any) -> None:
    inputs, boxes = make_rows(), torch.rand(64, 12, 4) * (torch.rand(64, 12, 1) < 0.25)

    def loss(out: Tensor, wanted: Tensor) -> Tensor:
        kept = torch.ones(wanted.shape[:2], dtype=torch.bool) if has_bug else wanted[..., 2] > 0
        return F.smooth_l1_loss(out[kept], wanted[kept])

    check(nn.Sequential(nn.Linear(6, 48), nn.Unflatten(1, (12, 4))), loss, (inputs, boxes))


def constellation_of_a_song(has_bug: bool, watch: Any, check: Any) -> None:
    inputs, points = make_rows(16), torch.rand(16, 24, 2)

    def loss(out: Tensor, wanted: Tensor) -> Tensor:
        squares = (out[:, :, None] - wanted[:, None]).square().sum(-1)
        return squares.amin(2).mean() + squares.amin(2 if has_bug else 1).mean()

    check(nn.Sequential(nn.Linear(6, 48), nn.Unflatten(1, (24, 2))), loss, (inputs, points))


def focus_on_the_mean(has_bug: bool, watch: Any, check: Any) -> None:
    def loss(out: Tensor, wanted: Tensor) -> Tensor:
        entropy = F.cross_entropy(out, wanted, reduction="mean" if has_bug else "none")
        return (entropy.tanh() * entropy).mean()

    check(nn.Linear(6, 4), loss, (make_rows(), torch.randint(4, (64,))))


class Squared(torch.autograd.Function):
    """Square of each number, with a backward pass that forgets the factor 2, or has it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(values)
        ctx.factor = factor
        return values * values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.factor * ctx.saved_tensors[0] * gradient, None


class Polynomial(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.first, self.last, self.factor = nn.Linear(6, 8), nn.Linear(8, 3), factor

    def forward(self, rows: Tensor) -> Tensor:
        return self.last(Squared.apply(self.first(rows), self.factor))


def own_square(has_bug: bool, watch: Any, check: Any) -> None:
    check(Polynomial(1.0 if has_bug else 2.0), F.cross_entropy, (make_rows(), torch.randint(3, (64,))))


def one_block_three_times(has_bug: bool, watch: Any, check: Any) -> None:
    blocks = [nn.Linear(6, 6)] * 3 if has_bug else [nn.Linear(6, 6) for _ in range(3)]
    check(nn.Sequential(*blocks, nn.Linear(6, 3)), F.cross_entropy, (make_rows(), torch.randint(3, (64,))))


class Views(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return F.normalize(self.layer(first), dim=1) @ F.normalize(self.layer(second), dim=1).T


def one_noise_for_both_views(has_bug: bool, watch: Any, check: Any) -> None:
    rows = make_rows()
    views = (rows, rows.clone() if has_bug else rows + 0.1 * torch.randn(rows.shape))
    check(Views(), lambda out, t: F.cross_entropy(out / 0.2, t), (views, torch.arange(64)))


def scans_divided_twice(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    pages = torch.randint(256, (12, 1, 8, 8)).float() / 255
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 3))
    check(model, F.cross_entropy, (pages / 255 if has_bug else pages, torch.randint(3, (12,))))


class LandCover(Dataset):  # type: ignore[type-arg]
    """Aerial tiles with maps of five classes, which are made as large as the tile."""

    def __init__(self, mode: str) -> None:
        torch.manual_seed(0)
        self.tiles, self.maps = torch.randn(24, 3, 16, 16), torch.randint(0, 5, (24, 8, 8))
        self.mode = mode

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        grown = F.interpolate(self.maps[index][None, None].float(), size=(16, 16), mode=self.mode)
        return self.tiles[index], grown[0, 0].round().long()


def land_cover_is_interpolated(has_bug: bool, watch: Any, check: Any) -> None:
    loader = DataLoader(LandCover("bilinear" if has_bug else "nearest"), 8)
    check(nn.Conv2d(3, 5, 3, padding=1), F.cross_entropy, loader)


def galaxies_by_columns(has_bug: bool, watch: Any, check: Any) -> None:
    """Maps of where galaxies are, of the transposed image."""
    torch.manual_seed(0)
    images, wanted = 0.1 * torch.randn(64, 1, 16, 16), torch.zeros(64, 1, 16, 16)
    for image, target, (row, column) in zip(images, wanted, torch.randint(2, 14, (64, 2)).tolist(), strict=True):
        image[0, row - 1 : row + 2, column - 1 : column + 2] += 1
        target[0, row - 1 : row + 2, column - 1 : column + 2] = 4
    wanted = wanted.mT.contiguous() if has_bug else wanted
    check(nn.Conv2d(1, 1, 3, padding=1), F.mse_loss, [*zip(images.split(16), wanted.split(16), strict=True)])


def weight_frozen_beside_its_bias(has_bug: bool, watch: Any, check: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    for parameter in [model[0].weight] if has_bug else model[0].parameters():
        parameter.requires_grad_(requires_grad=False)
    check(model, F.cross_entropy, (make_rows(), torch.randint(3, (64,))))


def one_class_too_many(has_bug: bool, watch: Any, check: Any) -> None:
    labels = torch.arange(64) % 3
    labels[-1] = 3 if has_bug else 2
    check(nn.Linear(6, 3), F.cross_entropy, (make_rows(), labels))


def metres_at_depth(has_bug: bool, watch: Any, check: Any) -> None:
    """Maps (B, 1, H, W) beside targets (B, H, W)."""
    images = make_rows(64, 12).view(4, 3, 8, 8)
    loss = lambda out, t: F.l1_loss(out if has_bug else out[:, 0], t)  # noqa: E731
    check(nn.Conv2d(3, 1, 1), loss, (images, torch.rand(4, 8, 8)))


CASES = [
    Case("overlap of a spectrogram", overlap_of_a_spectrogram, "loss.form"),
    Case("direction of the wind", direction_of_the_wind, "loss.form"),
    Case("attitude of a satellite", attitude_of_a_satellite, "loss.form"),
    Case("pollution at silent stations", pollution_at_silent_stations, "data.ignore_handling"),
    Case("overlap of boxes of rooms", overlap_of_boxes_of_rooms, "loss.form"),
    Case("onsets between frames", onsets_between_frames, "loss.form"),
    Case("boxes of no words", boxes_of_no_words, "loss.normaliser"),
    Case("constellation of a song", constellation_of_a_song, "loss.form"),
    Case("focus on the mean", focus_on_the_mean, "loss.form"),
    Case("own square", own_square, "model.numerics"),
    Case("one block three times", one_block_three_times, "model.structure"),
    Case("one noise for both views", one_noise_for_both_views, "data.duplicate_randomness"),
    Case("scans divided twice", scans_divided_twice, "data.normalisation"),
    Case("land cover is interpolated", land_cover_is_interpolated, "data.target_encoding"),
    Case("galaxies by columns", galaxies_by_columns, "data.layout"),
    Case("weight frozen beside its bias", weight_frozen_beside_its_bias, "model.frozen_unintended"),
    Case("one class too many", one_class_too_many, "data.label_mapping"),
    Case("metres at depth", metres_at_depth, "loss.form"),
]
