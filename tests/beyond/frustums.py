"""B4.29 to B4.35: FRNet, its pixels and losses, scans that are mixed and filled, and its published settings."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import TypedDict

from sightline.areas.scans.frustums import AssignPixels, CopyClasses, InterpolateRanges, MixFrustums
from sightline.areas.scans.losses import PixelBoundary, PixelCrossEntropy
from sightline.areas.scans.models.frnet import FRNet
from sightline.config import read_config
from sightline.contract import registry
from sightline.contract.binding import AvailableKeys
from sightline.contract.draws import Draws
from sightline.parts.tasks.segment import Segment
from tests.mission.rows import row
from tests.mission.trial import Edit
from tests.processes import ROOT

_HEIGHT, _WIDTH = 8, 32
_VIEW = {"fov_deg": (20.0, -20.0), "azimuth_deg": (180.0, -180.0)}
_SIZE = {"height": _HEIGHT, "width": _WIDTH}
_DRAWS = Draws.from_seed(0)


def _draw_scan(num_points: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    azimuth, height, share = (torch.rand(3, num_points, generator=generator) * 2 - 1).unbind()
    flat = 12 + 6 * share
    points = torch.stack([flat * (3.1 * azimuth).cos(), flat * (3.1 * azimuth).sin(), 0.3 * flat * height], dim=1)
    label = torch.randint(0, 4, (1, num_points), generator=generator)
    return {"points": points[None], "remission": torch.rand(1, num_points, 1, generator=generator), "label": label}


def _find_pixels(points: Tensor) -> list[tuple[int, int]]:
    found = []
    for x, y, z in points.tolist():
        column = 0.5 * (1 - math.atan2(y, x) / math.pi) * _WIDTH
        line = (20 - math.degrees(math.asin(z / math.sqrt(x * x + y * y + z * z)))) / 40 * _HEIGHT
        found.append((math.floor(line), math.floor(column)))
    return found


@row(
    "B4.29",
    "label every point of a scan from its pixel and from itself, so that nothing votes for points that share a pixel",
    "`{name: frnet}` behind `{name: assign_pixels}`",
)
def _labels_of_points(work: Path) -> None:
    torch.manual_seed(0)
    model = FRNet(
        num_classes=4,
        in_channels=4,
        image_size_px=(_WIDTH, _HEIGHT),
        encoder_widths=(8, 8),
        width=8,
        blocks=(1, 1, 1, 1),
        fused_widths=(8,),
    ).eval()
    scan = _draw_scan(1000, 0)
    pixel = AssignPixels(**_VIEW, **_SIZE, num_classes=4, ignore_index=0)(_DRAWS, points=scan["points"])["pixel"]
    logits = model(points=scan["points"], features=scan["remission"], pixel=pixel)["logits"][0]
    assert logits.shape == (1000, 4)
    crowded = int(pixel[0].bincount().argmax())
    together = logits[pixel[0] == crowded]
    assert len(together) > 3
    assert len(together.unique(dim=0)) == len(together)


@row(
    "B4.30",
    "give each point the pixel of its direction, and each pixel the commonest class of its points",
    "`{name: assign_pixels, height: 64, width: 512}`",
)
def _pixels(work: Path) -> None:
    scan = _draw_scan(900, 1)
    assign = AssignPixels(**_VIEW, **_SIZE, num_classes=4, ignore_index=0)
    fields = assign(_DRAWS, points=scan["points"], label=scan["label"])
    places = _find_pixels(scan["points"][0])
    assert fields["pixel"][0].tolist() == [line * _WIDTH + column for line, column in places]
    for at in set(places):
        votes = [int(label) for label, place in zip(scan["label"][0], places, strict=True) if place == at]
        counts = {kind: votes.count(kind) for kind in votes}
        expected = min(counts, key=lambda kind: (-counts[kind], kind == 0, kind))
        assert fields["pixel_label"][0][at] == expected


@row(
    "B4.31",
    "fill gaps of a scan between two returns with points that are never scored",
    "`{name: interpolate_ranges}` in both lists of transforms",
)
def _gaps(work: Path) -> None:
    scan = _draw_scan(90, 2)
    filled = InterpolateRanges(**_VIEW, **_SIZE, ignore_index=0)(_DRAWS, **scan)
    nearest: dict[tuple[int, int], int] = {}
    points, places = scan["points"][0], _find_pixels(scan["points"][0])
    for number in points.norm(dim=1).argsort(descending=True).tolist():
        nearest[places[number]] = number
    gaps = [
        (nearest[line, column - 1], nearest[line, column + 1])
        for line in range(_HEIGHT)
        for column in range(1, _WIDTH - 1)
        if (line, column) not in nearest and {(line, column - 1), (line, column + 1)} <= nearest.keys()
    ]
    assert 0 in {left for left, _ in gaps}, "the case of the published code's slip"
    expected = torch.stack([(points[left] + points[right]) / 2 for left, right in gaps])
    added = filled["points"][0, 90:]
    assert len(added) == len(expected)
    assert torch.cdist(added, expected).amin(dim=1).max() < 1e-4
    logits = F.one_hot(filled["label"], 4).float()
    batch = {
        "nearest": filled["nearest"][0],
        "whole_label": filled["whole_label"][0],
        "whole_offsets": torch.tensor([0, 90]),
    }
    keys = AvailableKeys("a scan", {"points"}), AvailableKeys("the network", {"logits"})
    task = Segment(model=_Network(), losses={}, batch_keys=keys[0], output_keys=keys[1])
    scored = task.postprocess({"logits": logits}, batch)
    assert torch.equal(scored["probabilities"].argmax(dim=1), scan["label"][0])
    assert torch.equal(scored["target"], scan["label"][0])


class _Output(TypedDict):
    logits: Tensor


class _Network(nn.Module):
    def forward(self, *, points: Tensor) -> _Output:
        return {"logits": points}


@row(
    "B4.32",
    "mix two scans by bands of elevation or by a half turn, so that no direction has points of both",
    "`{name: mix_frustums}`",
)
def _mixed_scans(work: Path) -> None:
    own, other = _draw_scan(600, 3), _draw_scan(600, 4)
    mix = MixFrustums(**_VIEW, **_SIZE, bands=(3,))
    halves = 0
    for seed in range(12):
        mixed = mix(Draws.from_seed(seed), lambda count: [other] * count, **own)
        of_own = {tuple(point) for point in own["points"][0].tolist()}
        is_own = torch.tensor([tuple(point) in of_own for point in mixed["points"][0].tolist()])
        places = _find_pixels(mixed["points"][0])
        kept = {place for place, is_mine in zip(places, is_own.tolist(), strict=True) if is_mine}
        added = {place for place, is_mine in zip(places, is_own.tolist(), strict=True) if not is_mine}
        assert kept
        assert added
        assert not kept & added
        columns = {column for _, column in added}
        halves += len(columns) == _WIDTH // 2
        assert len(columns) in (_WIDTH // 2, _WIDTH)
    assert 2 <= halves <= 10


@row("B4.33", "add the points of rare classes of another scan", "`{name: copy_classes, classes: [person, pole]}`")
def _copied_classes(work: Path) -> None:
    own, other = _draw_scan(50, 5), _draw_scan(80, 6)
    copy = CopyClasses(class_names=("none", "road", "person", "pole"), classes=("pole", "person"))
    copied = copy(_DRAWS, lambda count: [other] * count, **own)
    rare = [number for number, label in enumerate(other["label"][0].tolist()) if label >= 2]
    for name, values in own.items():
        assert torch.equal(copied[name], torch.cat([values, other[name][:, rare]], dim=1))


@row(
    "B4.34",
    "teach heads at four depths the classes of pixels and their boundaries, without those that nobody labelled",
    "`losses: [{name: pixel_cross_entropy}, {name: pixel_boundary}]`",
)
def _losses_of_pixels(work: Path) -> None:
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(1, 4, 6, 8, 3, generator=generator, requires_grad=True)
    label = torch.randint(0, 3, (1, 6, 8), generator=generator)
    for loss in (PixelCrossEntropy(num_classes=3, ignore_index=0), PixelBoundary(num_classes=3, ignore_index=0)):
        (gradient,) = torch.autograd.grad(loss(auxiliary_logits=logits, pixel_label=label), logits)
        assert (gradient[0, :, label[0] == 0] == 0).all()
        assert gradient[0, :, label[0] != 0].abs().amax(dim=(1, 2)).min() > 0
        perfect = 50 * F.one_hot(label, 3)[:, None].expand(-1, 4, -1, -1, -1).float()
        assert float(loss(auxiliary_logits=perfect, pixel_label=label)) < 1e-4


@row("B4.35", "train FRNet with its published settings", "`sightline train configs/segment/semantic_kitti_frnet.yaml`")
def _published_settings(work: Path) -> None:
    config = read_config(ROOT / "configs/segment/semantic_kitti_frnet.yaml")
    facts = {"num_classes": 20, "in_channels": 4, "image_size_px": (512, 64)}
    with torch.device("meta"):
        model = registry.models.build(config.model, facts=facts)
    heads = 4 * 129 * 20
    assert sum(parameter.numel() for parameter in model.parameters()) == 10_019_252 + heads
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}
    weights = {loss.name: loss.weight for loss in config.losses}
    assert weights == {"cross_entropy": 1, "pixel_cross_entropy": 1, "pixel_lovasz": 1.5, "pixel_boundary": 1}
    steps = config.train.epochs * (19_130 // config.train.batch_size)
    assert abs(steps - 50_000) < 19_130 / 16
    schedule = registry.schedules.build(config.schedule, facts={"num_steps": 1001, "steps_per_epoch": 10})
    assert [round(0.01 * schedule(step), 6) for step in (0, 200, 1000)] == [0.0004, 0.01, 4e-6]


MUTANTS = {
    "B4.29": Edit("areas/scans/models/frnet.py", "layer(values) + features", "layer(values)"),
    "B4.30": Edit("areas/scans/frustums.py", "counts.argmax(dim=1)", "(counts > 0).long().argmax(dim=1)"),
    "B4.31": Edit("areas/scans/frustums.py", "(left >= 0)", "(left > 0)"),
    "B4.32": Edit("areas/scans/frustums.py", "return ~parts[0], parts[1]", "return parts[0] >= 0, parts[1]"),
    "B4.33": Edit("areas/scans/frustums.py", "return stays, torch.isin(", "return stays, ~torch.isin("),
    "B4.34": Edit(
        "areas/scans/losses.py",
        "torch.where(self.is_counted(label)[:, None], probabilities, wanted)",
        "probabilities",
    ),
    "B4.35": Edit("areas/scans/models/frnet.py", "_EPS = 1e-3", "_EPS = 1e-5"),
}
