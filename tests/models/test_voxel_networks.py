"""SpUNet and MinkUNet against the numbers of the authors' code, and what they claim of batches, capacities, threads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.contract.types import PREPARED
from sightline.layers.voxel_levels import build_voxel_levels, choose_capacities
from sightline.ops.voxels.cells import sparse_voxels
from sightline.parts.models.voxel_unet import MinkUNet, SpUNet, VoxelUNet
from sightline.parts.tasks.windows import TileWindows
from sightline.published.translation import convert_state_dict, find_layouts, translate_key
from tests.golden_parity import (
    BUFFER_BOUND,
    GRADIENT_BOUND,
    OUTPUT_BOUND,
    Golden,
    assert_near_largest,
    each_mode,
    load_golden,
)

SPUNET = {
    "stem_width": 8,
    "encoder_widths": (8, 16, 24, 32),
    "encoder_blocks": (1, 2, 1, 1),
    "decoder_widths": (32, 24, 16, 16),
    "decoder_blocks": (1, 1, 1, 1),
}
MINKUNET = {**SPUNET, "encoder_blocks": (1, 1, 1, 1), "decoder_widths": (24, 16, 12, 12)}
SPVNAS = {
    "stem_width": 8,
    "stem_sizes": (3, 3),
    "encoder_widths": (8, 16, 32, 64),
    "encoder_blocks": (2, 2, 2, 2),
    "decoder_widths": (64, 32, 24, 24),
}
GOLDEN = [
    ("spunet_small", "pointcept_spunet", SpUNet, SPUNET),
    ("minkunet_small", "minkowski_minkunet34c", MinkUNet, MINKUNET),
    ("minkunet_spvnas_small", "spvnas_minkunet", MinkUNet, SPVNAS),
]


# --- the authors' numbers ---------------------------------------------------------------------------------------------


def golden_inputs(golden: Golden) -> dict[str, Tensor]:
    """Voxels as points, with the file's own cells; the file's features are all that the network is given."""
    feature = golden.tensor("in.feat").double()
    offsets = F.pad(golden.tensor("in.offset").long(), (1, 0))
    points = torch.zeros(len(feature), 3, dtype=torch.float64)
    return {
        "points": points,
        "features": feature.requires_grad_(),
        "offsets": offsets,
        "cells": golden.tensor("in.grid_coord").long(),
    }


def kept(golden: Golden, label: str, value: Tensor) -> Tensor:
    stride = golden.info["arrays"][label]["flat_stride"]
    return value if stride is None else value.flatten()[::stride]


@pytest.mark.shared
@pytest.mark.parametrize(("name", "layout", "kind", "sizes"), GOLDEN, ids=[row[0] for row in GOLDEN])
def test_network_is_that_of_the_authors(
    shared: Path, name: str, layout: str, kind: type[VoxelUNet], sizes: dict[str, Any]
) -> None:
    """Logits, loss, every gradient, under the names and in the shapes of the authors, and running statistics."""
    golden = load_golden(shared, name, area="voxels")
    theirs = {key: value.requires_grad_(value.is_floating_point()) for key, value in golden.state().items()}
    num_classes = golden.tensor("eval.out.logits").shape[-1]
    model = kind(num_classes=num_classes, in_channels=7, inputs="features", **sizes).double()
    for mode in each_mode(model):
        given = golden_inputs(golden)
        ours = convert_state_dict(theirs, layout)
        buffers = {key: ours[key].detach().clone() for key, _ in model.named_buffers()}
        weights = {key: ours[key] for key, _ in model.named_parameters()}
        assert ours.keys() == buffers.keys() | weights.keys()
        logits = torch.func.functional_call(model, {**weights, **buffers}, (), given)["logits"]
        loss = F.cross_entropy(logits, golden.tensor("in.label").long(), ignore_index=-1)
        label = f"{mode}.out.logits"
        assert_near_largest(kept(golden, label, logits), golden.tensor(label), OUTPUT_BOUND, label)
        assert_near_largest(loss, golden.tensor(f"{mode}.loss"), OUTPUT_BOUND, "loss")
    loss.backward()
    assert_gradients(golden, theirs, given["features"])
    assert_running_statistics(golden, buffers, layout)


def assert_gradients(golden: Golden, theirs: Mapping[str, Tensor], features: Tensor) -> None:
    """Those of the features and of every tensor of the authors, in the order of their file's names."""
    assert features.grad is not None
    to_features = kept(golden, "train.g_feat", features.grad)
    assert_near_largest(to_features, golden.tensor("train.g_feat"), GRADIENT_BOUND, "inputs")
    norms, firsts = golden.tensor("train.grad_norm"), golden.tensor("train.grad_first8")
    largest = norms[~norms.isnan()].max().item()
    zeros = set(golden.info["zero_gradient_names"])
    for key, norm, first in zip(golden.info["grad_names"], norms, firsts, strict=True):
        gradient = theirs[key].grad
        assert (gradient is None) == bool(norm.isnan()), key
        if gradient is not None:
            bound = GRADIENT_BOUND * (largest if key in zeros else norm.item())
            assert gradient.norm().item() == pytest.approx(norm.item(), abs=bound), key
            first = first[~first.isnan()]
            assert (gradient.flatten()[:8] - first).abs().max().item() <= bound, key


def assert_running_statistics(
    golden: Golden, buffers: Mapping[str, Tensor], layout: str, rename: Callable[[str], str] = str
) -> None:
    """Those after the step; `rename` brings a name of the file's to one of the layout's."""
    expected = zip(golden.info["buffer_names"], golden.tensor("train.buffer_norm"), strict=True)
    for key, norm in expected:
        our_key = translate_key(rename(key), layout)
        if our_key is not None:  # norms of SPVCNN, which MinkUNet's file has and never updates
            assert buffers[our_key].double().norm().item() == pytest.approx(norm.item(), rel=BUFFER_BOUND), key


KEYS = [
    ("keys_spunet_scannet", "pointcept_spunet", SpUNet, {"in_channels": 9, "num_classes": 20, "inputs": "features"}),
    (
        "keys_minkunet34c",
        "minkowski_minkunet34c",
        MinkUNet,
        {"in_channels": 6, "num_classes": 20, "inputs": "features"},
    ),
    (
        "keys_spvnas_minkunet",
        "spvnas_minkunet",
        MinkUNet,
        {"in_channels": 4, "num_classes": 19, "stem_sizes": (3, 3), "encoder_blocks": (2, 2, 2, 2)},
    ),
]


@pytest.mark.shared
@pytest.mark.parametrize(("name", "layout", "kind", "sizes"), KEYS, ids=[row[0] for row in KEYS])
def test_published_files_are_read_whole(
    shared: Path, name: str, layout: str, kind: type[VoxelUNet], sizes: dict[str, Any]
) -> None:
    keys = json.loads((shared / "golden" / "voxels" / f"{name}.json").read_text(encoding="utf-8"))
    state = {key: torch.zeros(shape, device="meta") for key, shape in keys}
    assert find_layouts(state) == [layout]
    model = kind(**sizes)
    ours = convert_state_dict({f"module.{key}": value for key, value in state.items()}, layout)
    assert {key: value.shape for key, value in ours.items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.shared
def test_sizes_are_the_published_ones(shared: Path) -> None:
    counts = json.loads((shared / "golden" / "voxels" / "counts.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        decoders = {"A": (128, 128, 96, 96), "C": (192, 192, 128, 128), "D": (384,) * 4, "": (256, 128, 96, 96)}
        for name, blocks in (("14A", 1), ("14C", 1), ("18A", 2), ("18D", 2), ("14", 1), ("18", 2), ("34C", 0)):
            for facts in ({"in_channels": 3, "num_classes": 20}, {"in_channels": 4, "num_classes": 19}):
                sizes: dict[str, Any] = {"encoder_blocks": (blocks,) * 4, "decoder_blocks": (blocks,) * 4}
                decoder = {"decoder_widths": decoders[name[2:]]}
                model = MinkUNet(**facts, **({**sizes, **decoder} if blocks else {}))
                key = f"MinkUNet{name}_in{facts['in_channels']}_K{facts['num_classes']}"
                assert count_weights(model) == counts[key], key
        for num_classes in (16, 19, 22):
            assert count_weights(SpUNet(in_channels=4, num_classes=num_classes)) == counts[f"spunet_in4_K{num_classes}"]
        for ratio in (0.5, 0.64, 1.0):
            stem, *widths = (int(ratio * width) for width in (32, 32, 64, 128, 256, 256, 128, 96, 96))
            model = MinkUNet(
                in_channels=4,
                num_classes=19,
                stem_width=stem,
                stem_sizes=(3, 3),
                encoder_widths=tuple(widths[:4]),
                encoder_blocks=(2, 2, 2, 2),
                decoder_widths=tuple(widths[4:]),
            )
            assert count_weights(model) == counts[f"spvnas_minkunet_cr{ratio}_K19_used"]


def count_weights(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# --- what the networks claim ------------------------------------------------------------------------------------------


def small(kind: type[VoxelUNet] = SpUNet, **further: Any) -> VoxelUNet:
    torch.manual_seed(0)
    return kind(num_classes=5, in_channels=4, grid_m=0.1, **SPUNET, **further)


def clouds(*sizes: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(sum(sizes), 3, generator=generator) * torch.tensor([2.0, 1.5, 0.5])
    features = torch.randn(sum(sizes), 1, generator=generator)
    return {"points": points, "features": features, "offsets": torch.tensor([0, *sizes]).cumsum(0)}


@pytest.mark.parametrize("kind", [SpUNet, MinkUNet])
def test_cloud_alone_gives_the_bits_of_the_batch(kind: type[VoxelUNet]) -> None:
    model, batch = small(kind).eval(), clouds(400, 90, 1, 700)
    whole = model(**batch)["logits"]
    for first, last in pairwise(batch["offsets"].tolist()):
        alone = model(points=batch["points"][None, first:last], features=batch["features"][None, first:last])["logits"]
        assert torch.equal(alone[0], whole[first:last])


def run_step(
    model: VoxelUNet, batch: Mapping[str, Tensor], more: int, garbage: float, share: float = 0.0
) -> dict[str, Tensor]:
    """Compute a training step with tables of `more` rows than voxels, which begin as `garbage`."""
    model.train()
    voxels = sparse_voxels(batch["points"], batch["offsets"], side=model.grid_m)
    levels = build_voxel_levels(voxels.cells, voxels.offsets, sizes=[[3, 5], *[[3]] * 4])
    rows = [level.num_voxels + more + int(share * level.num_voxels) for level in levels]
    levels = [level.fill_up(*each) for level, each in zip(levels, pairwise([*rows, 0]), strict=True)]
    values = voxels.average(torch.cat([batch["points"], batch["features"]], dim=1)).requires_grad_()
    padded = F.pad(values, (0, 0, 0, rows[0] - len(values)), value=garbage)
    logits = model.compute(padded, levels)[: len(values)]
    (logits * torch.arange(5)).square().sum().backward()
    assert values.grad is not None
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"logits": logits.detach(), "values": values.grad, **gradients, **dict(model.named_buffers())}


@pytest.mark.parametrize("kind", [SpUNet, MinkUNet])
def test_rows_that_fill_tables_up_change_no_bit(kind: type[VoxelUNet]) -> None:
    """Outputs, gradients and running statistics of n, n + 1 and 2 n rows, whatever is in those after the n-th."""
    batch = clouds(600, 200, 900)
    plain = run_step(small(kind), batch, 0, 0.0)
    assert len(plain) > 100
    for more, garbage, share in ((1, torch.nan, 0.0), (0, torch.nan, 1.0), (64, 1e30, 0.0)):
        filled = run_step(small(kind), batch, more, garbage, share)
        assert [name for name, value in plain.items() if not torch.equal(value, filled[name])] == []


def test_number_of_threads_changes_no_bit() -> None:
    batch, before = clouds(600, 200, 900), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(run_step(small(), batch, 0, 0.0))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert [name for name, value in found[0].items() if not torch.equal(value, other[name])] == []


def test_translation_by_whole_coarse_voxels_changes_nothing() -> None:
    """By sixteen cells the levels fall into the same places; by one they do not (Pointcept's SpUNet: 14 %)."""
    model, batch = small(MinkUNet, inputs="features").double().eval(), clouds(500)
    cells = (batch["points"] / 0.1).floor().long()
    given = {"points": batch["points"].double(), "features": batch["features"].double(), "offsets": batch["offsets"]}
    corner = torch.zeros(1, 3, dtype=torch.int64)  # a cloud's cells count from its lowest: a voxel far away fixes it
    logits = []
    for shift in (0, 16, 1):
        moved = torch.cat([corner, cells + 64 + shift])
        padded = {name: F.pad(given[name], (0, 0, 1, 0)) for name in ("points", "features")}
        logits.append(model(**padded, offsets=torch.tensor([0, 501]), cells=moved)["logits"][1:])
    largest = logits[0].abs().max().item()
    assert (logits[1] - logits[0]).abs().max().item() <= 1e-12 * largest
    assert (logits[2] - logits[0]).abs().max().item() >= 0.01 * largest


def test_order_of_points_moves_rows_alone() -> None:
    model, batch = (
        small().double().eval(),
        {k: v.double() if v.is_floating_point() else v for k, v in clouds(500).items()},
    )
    order = torch.randperm(500, generator=torch.Generator().manual_seed(3))
    straight = model(**batch)["logits"]
    shuffled = model(points=batch["points"][order], features=batch["features"][order], offsets=batch["offsets"])
    assert torch.allclose(shuffled["logits"], straight[order], rtol=0, atol=1e-12)


def test_a_point_has_the_logits_of_its_voxel() -> None:
    model, batch = small().eval(), clouds(300)
    doubled = {**batch, "points": batch["points"].repeat(2, 1), "features": batch["features"].repeat(2, 1)}
    doubled["offsets"] = torch.tensor([0, 600])
    logits = model(**doubled)["logits"]
    assert torch.equal(logits[:300], logits[300:])
    assert torch.allclose(logits[:300], model(**batch)["logits"], atol=1e-5)


def test_a_form_holds_every_voxel_and_batches_of_one_size_share_it() -> None:
    for count in (1, 1000, 1024, 1025, 23112, 400_000):
        counts = [max(1, int(count * share)) for share in (1, 0.78, 0.55, 0.34, 0.19)]
        capacities = choose_capacities(counts)
        assert all(have <= room for have, room in zip(counts, capacities, strict=True))
        assert capacities[0] <= max(1024, 1.5 * count)
    forms = {tuple(choose_capacities([count, count // 3, count // 10])) for count in range(12_000, 16_000, 37)}
    assert len(forms) <= 2


def test_a_single_voxel_in_training_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"a single voxel of 0\.8 m is left at level 4 of 5 in the whole batch \(2 of 0\.1 m came in\)"
    ):
        small().train()(
            **{name: value[:2] if name != "offsets" else torch.tensor([0, 2]) for name, value in clouds(9).items()}
        )


# --- tiles ------------------------------------------------------------------------------------------------------------


def predict_by_tiles(model: VoxelUNet, batch: Mapping[str, Tensor], size_m: float, halo_m: float) -> Tensor:
    """Predict one cloud by tiles, as the task does: what its `inputs` selects reaches the model."""
    windows = TileWindows(size_m=size_m, halo_m=halo_m, up_axis="z")

    def forward(part: dict[str, Any]) -> Tensor:
        return model(**{name: part[name] for name in ("points", "features", "offsets")}, **part[PREPARED])["logits"]

    with torch.no_grad():
        return windows(forward, dict(batch))


@pytest.mark.parametrize("kind", [SpUNet, MinkUNet])
def test_tiles_with_a_wide_halo_have_the_bits_of_the_whole(kind: type[VoxelUNet]) -> None:
    """Two levels read at most 23 cells away (2 of the stem, 1 + 4 and 3 + 8 of the levels down, 4 + 1 and 2 up)."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {f"{part}_widths": (8, 16) for part in ("encoder", "decoder")}
    blocks: dict[str, Any] = {f"{part}_blocks": (1, 1) for part in ("encoder", "decoder")}
    model = kind(num_classes=5, in_channels=4, grid_m=0.1, stem_width=8, **sizes, **blocks).eval()
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(4000, 3, generator=generator) * torch.tensor([9.0, 8.0, 1.0]) - 3.33
    features = torch.randn(4000, 1, generator=generator)
    batch = {"points": points, "features": features, "offsets": torch.tensor([0, 4000])}
    with torch.no_grad():
        whole = model(**batch)["logits"]
    assert torch.equal(predict_by_tiles(model, batch, size_m=1.7, halo_m=2.6), whole)
    narrow = predict_by_tiles(model, batch, size_m=1.7, halo_m=0.3)
    assert narrow.isfinite().all()
    assert not torch.equal(narrow, whole)
