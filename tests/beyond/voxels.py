"""B4.1 to B4.10: voxels, kernel maps, sparse convolutions, and the networks that are made of them."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sightline import ops
from sightline.layers.voxel_levels import build_voxel_levels
from sightline.parts.models.voxel_unet import MinkUNet, SpUNet, VoxelUNet
from sightline.parts.tasks.windows import FragmentWindows
from sightline.published.translation import convert_state_dict
from tests.mission.rows import row
from tests.mission.trial import Edit

_SIDE = 0.25
_SIZES = (120, 0, 70)


def _draw_clouds() -> tuple[Tensor, Tensor]:
    points = torch.rand(sum(_SIZES), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    return points, torch.tensor([0, *_SIZES]).cumsum(0)


def _draw_voxels() -> tuple[Tensor, Tensor]:
    """Cells of two clouds in no order, no two of a cloud alike."""
    generator = torch.Generator().manual_seed(1)
    clouds = [torch.randint(0, 5, (90, 3), generator=generator).unique(dim=0) for _ in range(2)]
    mixed = [cells[torch.randperm(len(cells), generator=generator)] for cells in clouds]
    return torch.cat(mixed), torch.tensor([0, len(mixed[0]), len(mixed[0]) + len(mixed[1])])


def _find_rows(cells: Tensor, offsets: Tensor) -> dict[tuple[int, ...], int]:
    """The row of each cloud and cell."""
    cloud = np.searchsorted(offsets.numpy(), np.arange(len(cells)), side="right") - 1
    return {(int(cloud[number]), *cell): number for number, cell in enumerate(cells.tolist())}


def _draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- operators --------------------------------------------------------------------------------------------------------


@row(
    "B4.1",
    "group the points of clouds by voxels, with their means, their first points and their commonest class",
    "`ops.sparse_voxels(points, offsets, side=0.05)`",
)
def _voxels(work: Path) -> None:
    points, offsets = _draw_clouds()
    labels = torch.arange(len(points)) * 7 % 3
    voxels = ops.sparse_voxels(points, offsets, side=_SIDE)
    members: dict[tuple[int, ...], list[int]] = {}
    for cloud in range(3):
        rows = range(*offsets[cloud : cloud + 2].tolist())
        for number in rows:
            members.setdefault((cloud, *np.floor(points[number].numpy() / _SIDE).astype(int)), []).append(number)
    assert len(members) < len(points)
    means, votes = voxels.average(points), voxels.vote(labels, 3)
    for voxel, (_, listed) in enumerate(sorted(members.items())):
        assert voxels.first[voxel] == listed[0]
        assert (voxels.inverse[listed] == voxel).all()
        assert (means[voxel] - points[listed].mean(dim=0)).abs().max() < 1e-12
        assert votes[voxel] == np.bincount(labels[listed].numpy(), minlength=3).argmax()


@row(
    "B4.2",
    "predict every point of a dense cloud through fragments of a grid, one point a voxel, and average what they say",
    "`sightline evaluate RUN task.fragments_m=0.02`",
)
def _fragments(work: Path) -> None:
    points, _ = _draw_clouds()
    cell = [tuple(each) for each in np.floor(points.numpy() / _SIDE).astype(int).tolist()]
    asked: list[Tensor] = []

    def answer(batch: dict[str, Tensor]) -> Tensor:
        asked.append(batch["points"])
        return torch.stack([batch["points"][:, 0] * len(asked), batch["points"][:, 1]], dim=1)

    batch = {"points": points, "offsets": torch.tensor([0, len(points)])}
    found = FragmentWindows(size_m=_SIDE)(answer, batch).softmax(dim=1)
    assert len(asked) == max(cell.count(each) for each in set(cell))
    total, times = np.zeros((len(points), 2)), np.zeros(len(points))
    row_of = {tuple(point): number for number, point in enumerate(points.tolist())}
    for number, fragment in enumerate(asked, start=1):
        rows = [row_of[tuple(point)] for point in fragment.tolist()]
        assert sorted(cell[each] for each in rows) == sorted(set(cell))
        logits = np.stack([fragment[:, 0].numpy() * number, fragment[:, 1].numpy()], axis=1)
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        total[rows], times[rows] = total[rows] + shares, times[rows] + 1
    assert times.min() == 1
    assert np.abs(found.numpy() - total / times[:, None]).max() < 1e-12


@row(
    "B4.3",
    "convolve sparse voxels without a compiled extension: outputs at the voxels, which see their neighbours alone",
    "`ops.sparse_convolution(values, weight, ops.submanifold_map(cells, offsets, size=3))`",
)
def _submanifold(work: Path) -> None:
    cells, offsets = _draw_voxels()
    values, weight, bias = _draw(len(cells), 5, seed=2), _draw(27, 5, 7, seed=3), _draw(7, seed=4)
    found = ops.sparse_convolution(values, weight, ops.submanifold_map(cells, offsets, size=3), bias)
    rows = _find_rows(cells, offsets)
    for (cloud, *cell), number in rows.items():
        expected = bias.clone()
        for place, moved in enumerate(product((-1, 0, 1), repeat=3)):
            near = rows.get((cloud, *(c + m for c, m in zip(cell, moved, strict=True))))
            if near is not None:
                expected += values[near] @ weight[place]
        assert (found[number] - expected).abs().max() < 1e-12


@row(
    "B4.4",
    "halve the resolution of voxels by a convolution, and come back to the same voxels",
    "`ops.strided_map(cells, offsets, size=2, stride=2)`, `.map.inverted()`",
)
def _strided(work: Path) -> None:
    cells, offsets = _draw_voxels()
    coarse = ops.strided_map(cells, offsets, size=2, stride=2)
    rows, coarse_rows = _find_rows(cells, offsets), _find_rows(coarse.cells, coarse.offsets)
    assert [*coarse_rows] == sorted({(cloud, *(c // 2 for c in cell)) for cloud, *cell in rows})
    values, weight = _draw(len(cells), 4, seed=2), _draw(8, 4, 3, seed=3)
    down = ops.sparse_convolution(values, weight, coarse.map)
    expected = torch.zeros_like(down)
    back, upper = torch.zeros(len(cells), 4, dtype=torch.float64), _draw(8, 3, 4, seed=5)
    for (cloud, x, y, z), number in rows.items():
        output, place = coarse_rows[cloud, x // 2, y // 2, z // 2], x % 2 * 4 + y % 2 * 2 + z % 2
        expected[output] += values[number] @ weight[place]
        back[number] = down[output] @ upper[place]
    assert (down - expected).abs().max() < 1e-12
    assert (ops.sparse_convolution(down, upper, coarse.map.inverted()) - back).abs().max() < 1e-12


@row(
    "B4.5",
    "train on voxels: the gradients of a sparse convolution are those of finite differences",
    "`ops.sparse_convolution`",
)
def _gradients(work: Path) -> None:
    cells, offsets = torch.tensor([[0, 0, 0], [0, 0, 1], [1, 0, 0], [3, 3, 3]]), torch.tensor([0, 3, 4])
    kernel_map = ops.submanifold_map(cells, offsets, size=3)
    tensors = [_draw(4, 2, seed=2), _draw(27, 2, 2, seed=3), _draw(2, seed=4)]
    cotangent = _draw(4, 2, seed=5)

    def compute() -> Tensor:
        return (ops.sparse_convolution(tensors[0], tensors[1], kernel_map, tensors[2]) * cotangent).sum()

    for tensor in tensors:
        tensor.requires_grad_()
    gradients = torch.autograd.grad(compute(), tensors)
    with torch.no_grad():
        for tensor, gradient in zip(tensors, gradients, strict=True):
            for entry, expected in zip(tensor.view(-1), gradient.reshape(-1), strict=True):
                kept, ends = entry.item(), []
                for step in (1e-6, -1e-6):
                    entry.fill_(kept + step)
                    ends.append(compute().item())
                entry.fill_(kept)
                assert abs((ends[0] - ends[1]) / 2e-6 - expected.item()) < 1e-7


# --- networks ---------------------------------------------------------------------------------------------------------


def _build_small(kind: type[VoxelUNet] = SpUNet) -> VoxelUNet:
    torch.manual_seed(0)
    sizes = {f"{half}coder_widths": (4, 8) for half in ("en", "de")}
    blocks = {f"{half}coder_blocks": (1, 1) for half in ("en", "de")}
    return kind(num_classes=3, in_channels=4, grid_m=_SIDE, stem_width=4, **sizes, **blocks)  # type: ignore[call-arg]


def _draw_batch() -> dict[str, Tensor]:
    points, offsets = _draw_clouds()
    return {"points": points.float(), "features": _draw(len(points), 1, seed=6).float(), "offsets": offsets}


@row(
    "B4.6",
    "rely on a prediction for a cloud, which no other cloud of its batch changes by a bit",
    "`sightline predict RUN FILE...`",
)
def _alone(work: Path) -> None:
    model, batch = _build_small(MinkUNet).eval(), _draw_batch()
    together = model(**batch)["logits"]
    for first, last in ((0, 120), (120, 190)):
        alone = model(points=batch["points"][None, first:last], features=batch["features"][None, first:last])
        assert torch.equal(alone["logits"][0], together[first:last])


@row(
    "B4.7",
    "get the logits of a point's own voxel, in the order of the points",
    "`model: {name: spunet}`, `model: {name: minkunet}`",
)
def _own_voxel(work: Path) -> None:
    model, batch = _build_small().double().eval(), {k: v.double() for k, v in _draw_batch().items()}
    points, features = batch["points"][:120], batch["features"][:120]
    logits = model(points=points[None], features=features[None])["logits"][0]
    order = torch.randperm(120, generator=torch.Generator().manual_seed(7))
    mixed = model(points=points[order][None], features=features[order][None])["logits"][0]
    assert (mixed - logits[order]).abs().max() <= 1e-10 * logits.abs().max()
    cell = [tuple(each) for each in np.floor(points.numpy() / _SIDE).astype(int).tolist()]
    rows: dict[tuple[int, ...], list[int]] = {}
    for number, each in enumerate(cell):
        rows.setdefault(each, []).append(number)
    assert all(torch.equal(logits[listed], logits[listed[:1]].expand(len(listed), -1)) for listed in rows.values())
    assert len(logits.unique(dim=0)) == len(rows)


@row(
    "B4.8",
    "fill the tables of voxels up to a capacity, so that steps have few forms, without changing a bit of a step",
    "`sightline train` on a GPU",
)
def _capacities(work: Path) -> None:
    batch, steps = _draw_batch(), []
    for more in (0, 1, 300):
        model = _build_small().train()
        voxels = ops.sparse_voxels(batch["points"], batch["offsets"], side=_SIDE)
        levels = build_voxel_levels(voxels.cells, voxels.offsets, sizes=[[3, 5], [3], [3]])
        rows = [level.num_voxels + more for level in levels]
        filled = [
            level.fill_up(*each) for level, each in zip(levels, zip(rows, [*rows[1:], 0], strict=True), strict=True)
        ]
        values = voxels.average(torch.cat([batch["points"], batch["features"]], dim=1))
        values = functional.pad(values, (0, 0, 0, more), value=torch.nan)
        logits = model.compute(values, filled)[: len(voxels.cells)]
        logits.square().sum().backward()
        steps.append([logits.detach(), *(p.grad for p in model.parameters()), *model.buffers()])
    for other in steps[1:]:
        assert all(torch.equal(one, two) for one, two in zip(steps[0], other, strict=True))


@row(
    "B4.9",
    "take published weights of spconv, whose kernels of size 1 are read as they lie in memory",
    "`sightline weights convert FILE --to DIR`",
)
def _published(work: Path) -> None:
    square, head = _draw(4, 1, 1, 1, 4, seed=2), _draw(3, 1, 1, 1, 4, seed=3)
    kernel = _draw(4, 3, 3, 3, 4, seed=4)
    ours = convert_state_dict(
        {
            "dec.3.block0.proj.0.weight": square,
            "final.weight": head,
            "final.bias": torch.zeros(3),
            "enc.0.block0.conv1.weight": kernel,
        },
        "pointcept_spunet",
    )
    assert torch.equal(ours["decoder.0.blocks.0.shortcut.conv.weight"][0], square.flatten().view(4, 4))
    assert torch.equal(ours["head.weight"][0], head.flatten().view(4, 3))
    dense = _draw(1, 4, 3, 3, 3, seed=5)
    axis = torch.arange(3)
    cells = torch.cartesian_prod(axis, axis, axis)
    kernel_map = ops.submanifold_map(cells, torch.tensor([0, 27]), size=3)
    rows = dense[0].flatten(1).T.contiguous()
    found = ops.sparse_convolution(rows, ours["encoder.0.blocks.0.first.conv.weight"], kernel_map)
    expected = functional.conv3d(dense, kernel.permute(0, 4, 1, 2, 3), padding=1)
    assert (found - expected[0].flatten(1).T).abs().max() < 1e-12


@row(
    "B4.10",
    "train the published sizes of SpUNet, of MinkUNet 14 to 34, and of spvnas",
    "`sightline describe configs/segment/synthetic_rooms_spunet.yaml`",
)
def _sizes(work: Path) -> None:
    with torch.device("meta"):
        networks = {
            39_157_844: SpUNet(in_channels=9, num_classes=20, inputs="features"),
            37_856_052: MinkUNet(in_channels=3, num_classes=20),
            8_024_500: MinkUNet(
                in_channels=3,
                num_classes=20,
                encoder_blocks=(1,) * 4,
                decoder_blocks=(1,) * 4,
                decoder_widths=(128, 128, 96, 96),
            ),
            21_723_315: MinkUNet(in_channels=4, num_classes=19, stem_sizes=(3, 3), encoder_blocks=(2,) * 4),
        }
    for count, network in networks.items():
        assert sum(parameter.numel() for parameter in network.parameters()) == count
    assert {norm.eps for norm in networks[39_157_844].modules() if isinstance(norm, torch.nn.BatchNorm1d)} == {1e-3}
    assert {norm.eps for norm in networks[37_856_052].modules() if isinstance(norm, torch.nn.BatchNorm1d)} == {1e-5}


MUTANTS = {
    "B4.1": Edit("ops/voxels/cells.py", "rows = values[self.order].flatten(1)", "rows = values.flatten(1)"),
    "B4.2": Edit(
        "parts/tasks/windows.py", ".softmax(dim=-1))\n        return mean().log()", ")\n        return mean()"
    ),
    "B4.3": Edit("ops/voxels/sparse_convolution.py", "if read >= 0:", "if read > 0:"),
    "B4.4": Edit(
        "ops/voxels/kernel_maps.py",
        "(place[..., 0] * size + place[..., 1]) * size + place[..., 2]",
        "(place[..., 2] * size + place[..., 1]) * size + place[..., 0]",
    ),
    "B4.5": Edit("ops/voxels/sparse_convolution.py", "weight.transpose(1, 2), None, reverse", "weight, None, reverse"),
    "B4.6": Edit("ops/voxels/cells.py", "return cloud * (sizes[0] * steps[0])", "return 0 * cloud"),
    "B4.7": Edit(
        "parts/models/voxel_network.py", "logits[maps.voxels.inverse]", "logits[maps.voxels.inverse.sort().values]"
    ),
    "B4.8": Edit("layers/row_norm.py", "ordered_sum(wide, num_rows) / max(1, num_rows)", "wide.mean(dim=0)"),
    "B4.9": Edit(
        "published/translation.py",
        "weight.reshape(1, in_channels, out_channels)",
        "weight.reshape(out_channels, in_channels).T[None]",
    ),
    "B4.10": Edit("parts/models/voxel_unet.py", "eps=1e-3", "eps=1e-5"),
}
