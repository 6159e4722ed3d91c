"""B4.21 to B4.28: space-filling curves, patches, attention inside of them, and Point Transformer V3."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline import ops
from sightline.layers.stochastic_depth import StochasticDepth
from sightline.parts.models.ptv3 import PTv3
from sightline.published.rows import read_layout
from sightline.published.translation import convert_state_dict, find_layouts
from tests.mission.rows import row
from tests.mission.trial import Edit

_SIDE = 0.1


def _draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _draw_batch(*sizes: int) -> dict[str, Tensor]:
    points = torch.rand(sum(sizes), 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 1.5, 0.5])
    features = _draw(sum(sizes), 1, seed=1).float()
    return {"points": points, "features": features, "offsets": torch.tensor([0, *sizes]).cumsum(0)}


def _build_small(**further: Any) -> PTv3:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "encoder_widths": (16, 32),
        "encoder_blocks": (3, 1),
        "decoder_widths": (16,),
        "decoder_blocks": (2,),
        "patch_size": 32,
        "drop_path": 0.0,
    }
    return PTv3(num_classes=3, in_channels=4, grid_m=_SIDE, **{**sizes, **further})


# --- operators --------------------------------------------------------------------------------------------------------


@row(
    "B4.21",
    "number cells along z-order and Hilbert curves, and get the cells of numbers",
    '`ops.curve_codes(cells, curve="hilbert", depth=16)`, `ops.curve_cells`',
)
def _curves(work: Path) -> None:
    """A Hilbert curve goes through all cells in steps of one, and through an octant of a cube before the next."""
    numbers = torch.arange(8**3)
    for curve in ("hilbert", "hilbert-trans"):
        path = ops.curve_cells(numbers, curve=curve, depth=3)  # type: ignore[arg-type]
        assert path.diff(dim=0).abs().sum(dim=1).tolist() == [1] * 511
        assert torch.equal(ops.curve_codes(path, curve=curve, depth=3), numbers)  # type: ignore[arg-type]
        for bits in (1, 2):
            cubes = (path >> bits).view(-1, 8**bits, 3)
            assert bool((cubes == cubes[:, :1]).all())
            assert len(cubes[:, 0].unique(dim=0)) == 8 ** (3 - bits)
    cells = torch.randint(0, 2**16, (50, 3), generator=torch.Generator().manual_seed(0))
    expected = []
    for x, y, z in cells.tolist():
        bits = [(each >> place & 1) << (3 * place + axis) for place in range(16) for axis, each in enumerate((z, y, x))]
        expected.append(sum(bits))
    assert ops.curve_codes(cells, curve="z").tolist() == expected
    assert torch.equal(ops.curve_cells(ops.curve_codes(cells, curve="hilbert"), curve="hilbert"), cells)


@row(
    "B4.22",
    "attend inside of patches of clouds of any sizes, as flash attention would, without a compiled extension",
    "`ops.patch_attention(query_key_value, ops.cut_patches(offsets, num_rows, size=1024))`",
)
def _attention(work: Path) -> None:
    sizes, size = (7, 8, 21, 1, 16), 8
    offsets, values = torch.tensor([0, *sizes]).cumsum(0), _draw(53, 3, 2, 4, seed=2)
    found = ops.patch_attention(values, ops.cut_patches(offsets, 53, size=size))
    for first, last in pairwise(offsets.tolist()):
        for start in range(first, last, size):
            own = list(range(start, min(start + size, last)))
            keys = own if last - first <= size else [*own, *range(start - size + len(own), start)]
            query, key, value = values[own, 0], values[keys, 1], values[keys, 2]
            weights = (torch.einsum("ihd,jhd->hij", query, key) / 2).softmax(dim=-1)
            expected = torch.einsum("hij,jhd->ihd", weights, value).flatten(1)
            assert (found[own] - expected).abs().max() < 1e-12


@row(
    "B4.23",
    "add learned terms for relative positions to the scores, as the published network for S3DIS does",
    "`model: {name: ptv3, patches: shared_with_positions, patch_size: 128}`",
)
def _relative_positions(work: Path) -> None:
    """A table that favours what lies one cell higher makes a voxel read that one alone."""
    cells = torch.tensor([[0, 0, height] for height in range(6)])
    values, reach = torch.zeros(6, 3, 1, 6, dtype=torch.float64), 2
    values[:, 2, 0] = torch.eye(6, dtype=torch.float64)
    table = torch.zeros(3 * (2 * reach + 1), 1, dtype=torch.float64)
    table[2 * (2 * reach + 1) + reach - 1] = 100.0  # z less by one than that of the key
    patches = ops.cut_patches(torch.tensor([0, 6]), 6, size=8)
    found = ops.patch_attention(values, patches, table=table, cells=cells)
    assert found[:5].argmax(dim=1).tolist() == [1, 2, 3, 4, 5]
    assert bool((found[:5].amax(dim=1) > 0.99).all())


# --- the network ------------------------------------------------------------------------------------------------------


@row(
    "B4.24",
    "train Point Transformer V3 in its published size, with its rates of stochastic depth",
    "`model: {name: ptv3}`",
)
def _sizes(work: Path) -> None:
    with torch.device("meta"):
        model = PTv3(in_channels=9, num_classes=20, inputs="features")
    assert sum(parameter.numel() for parameter in model.parameters()) == 46_167_572
    rates = {
        name: [each.p for each in half.modules() if isinstance(each, StochasticDepth)]
        for name, half in (("encoder", model.encoder), ("decoder", model.decoder))
    }
    assert rates["encoder"] == sorted(rates["encoder"])
    assert rates["decoder"] == sorted(rates["decoder"], reverse=True)
    assert [rates["encoder"][0], rates["encoder"][-1], rates["decoder"][0], rates["decoder"][-1]] == [0, 0.3, 0.3, 0]


@row(
    "B4.25",
    "evaluate twice and get equal labels: curves are shuffled in training alone",
    "`sightline evaluate RUN`",
)
def _shuffles(work: Path) -> None:
    model, batch = _build_small().eval(), _draw_batch(400, 150)
    torch.manual_seed(1)
    found = [model(**batch)["logits"] for _ in range(3)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    model.train()
    steps = [model(**batch)["logits"] for _ in range(4)]
    assert not all(torch.equal(steps[0], other) for other in steps[1:])


@row(
    "B4.26",
    "rely on the prediction of Point Transformer V3 for a cloud, whatever is beside it, even a point far away",
    "`sightline predict RUN FILE...`",
)
def _alone(work: Path) -> None:
    model, batch = _build_small().eval(), _draw_batch(400, 150, 1)
    batch["points"][-2] += 20_000.0
    together = model(**batch)["logits"]
    for first, last in pairwise(batch["offsets"].tolist()):
        alone = model(points=batch["points"][None, first:last], features=batch["features"][None, first:last])
        assert torch.equal(alone["logits"][0], together[first:last])


def _note_inputs(read: dict[Any, Any], name: Any, module: Any, inputs: Any) -> None:
    read[name] = inputs[0]


def _note_outputs(made: dict[Any, Any], name: Any, module: Any, inputs: Any, outputs: Any) -> None:
    made[name] = outputs


@row(
    "B4.27",
    "compute with published weights as the version of Pointcept did that trained them, whose convolutions read less",
    "`model: {name: ptv3, data_flow: v1.5.1}`",
)
def _data_flow(work: Path) -> None:
    batch = _draw_batch(300)
    for flow in ("consistent", "main", "v1.5.1"):
        model, read, made = _build_small(data_flow=flow).eval(), {}, {}
        for number, stage in enumerate([*model.encoder, *model.decoder]):
            for place, block in enumerate(stage.blocks):
                block.position_conv.register_forward_pre_hook(partial(_note_inputs, read, (number, place)))
                block.register_forward_hook(partial(_note_outputs, made, (number, place)))
        model.unpools[0].register_forward_hook(partial(_note_outputs, made, "unpooled"))
        model(**batch)
        total, skipped = made["unpooled"]
        assert torch.equal(read[2, 0], total if flow == "consistent" else skipped)
        for number, place in ((0, 1), (0, 2), (2, 1)):
            values, branch = made[number, place - 1]
            assert torch.equal(read[number, place], branch if flow == "v1.5.1" else values)


@row(
    "B4.28",
    "take published weights of Point Transformer V3, and be told what no tensor of them shows",
    "`sightline weights convert FILE --to DIR`",
)
def _published(work: Path) -> None:
    block = "backbone.enc.enc0.block0."
    kernel, linear, head = _draw(4, 3, 3, 3, 4, seed=3), _draw(12, 4, seed=4), _draw(3, 4, seed=5)
    tensors = {f"{block}cpe.0.weight": kernel, f"{block}attn.qkv.weight": linear, "seg_head.weight": head}
    ours = convert_state_dict(tensors, "pointcept_ptv3")
    assert torch.equal(ours["encoder.0.blocks.0.attend.qkv.weight"], linear)
    assert torch.equal(ours["head.weight"], head)
    assert torch.equal(ours["encoder.0.blocks.0.position_conv.weight"], kernel.view(4, 27, 4).permute(1, 2, 0))
    layout = read_layout("pointcept_ptv3")
    assert layout.assumed["data_flow"] == "v1.5.1"
    assert {"name": "center_colors"} in layout.evaluate
    assert any("model.data_flow=main" in said for said in layout.unseen)
    names = [*layout.names]
    assert find_layouts([f"{name}.weight" for name in names]) == ["pointcept_ptv3", "pointcept_ptv3_nuscenes"]


MUTANTS = {
    "B4.21": Edit("ops/voxels/curves.py", "^ (is_set & low), other ^ changed", "^ (is_set & low), other"),
    "B4.22": Edit("ops/voxels/patches.py", "torch.where(is_own, place, place - size)", "torch.where(is_own, place, 0)"),
    "B4.23": Edit(
        "ops/voxels/patch_attention.py",
        "(places[:, :, None] - places[:, None])",
        "(places[:, None] - places[:, :, None])",
    ),
    "B4.24": Edit("parts/models/ptv3.py", "sum(decoder_blocks))[::-1]", "sum(decoder_blocks))"),
    "B4.25": Edit("parts/models/ptv3.py", "is_shuffled=self.training", "is_shuffled=True"),
    "B4.26": Edit("layers/curve_levels.py", "cells >> times[cloud, None]", "cells >> times.max()"),
    "B4.27": Edit("parts/models/ptv3.py", 'source = branch if self.source == "v1.5.1" else values', "source = values"),
    "B4.28": Edit("published/translation.py", ' and library == "torchsparse"', ""),
}
