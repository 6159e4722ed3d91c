"""Point Transformer V3 against the numbers of the authors' code, and what it claims of batches, forms and shuffles."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.contract.errors import ConfigError
from sightline.layers.curve_levels import CurveRule, list_permutations
from sightline.layers.patch_transformer import PatchTransformerBlock, VoxelPooling, VoxelUnpooling
from sightline.layers.stochastic_depth import StochasticDepth
from sightline.layers.voxel_levels import VoxelLevel, build_voxel_levels
from sightline.ops.boxes.focal import lovasz_of_image
from sightline.ops.voxels.cells import group_cells, sparse_voxels
from sightline.ops.voxels.curves import curve_order
from sightline.parts.models.ptv3 import PatchTransformer, PTv3
from sightline.published.files import choose_layout
from sightline.published.translation import CHANGES, convert_state_dict, find_layouts
from tests.golden_parity import OUTPUT_BOUND, Golden, assert_near_largest, each_mode, load_golden
from tests.models.test_voxel_networks import (
    assert_gradients,
    assert_running_statistics,
    clouds,
    count_weights,
    kept,
)

SMALL: dict[str, Any] = {
    "in_channels": 7,
    "num_classes": 7,
    "grid_m": 0.02,
    "inputs": "features",
    "encoder_widths": (16, 32, 48),
    "encoder_blocks": (2, 1, 2),
    "decoder_widths": (40, 32),
    "decoder_blocks": (2, 1),
    "head_width": 8,
    "patch_size": 16,
    "drop_path": 0.3,
    "cpe_input": "main",
    "curve_depth": "extent",
    "patch_sizes": "segments",
    "has_table": False,
    "norm_first": True,
}
V151 = {"cpe_input": "v1.5.1", "curve_depth": "extent_v1.5.1"}
GOLDEN: list[tuple[str, str, dict[str, Any]]] = [
    ("ptv3_small_plain", "pointcept_ptv3", {}),
    ("ptv3_small_shuffle", "pointcept_ptv3", {}),
    ("ptv3_small_postnorm", "pointcept_ptv3", {"norm_first": False}),
    ("ptv3_small_fixed_rpe", "pointcept_ptv3_table", {"patch_sizes": "shared", "has_table": True}),
    ("ptv3_small_v151", "pointcept_ptv3", V151),
]


# --- the authors' numbers ---------------------------------------------------------------------------------------------


class Computed(nn.Module):
    """A network of which voxels and permutations are given."""

    def __init__(self, network: PatchTransformer) -> None:
        super().__init__()
        self.network = network

    def forward(self, values: Tensor, levels: Sequence[VoxelLevel], permutations: Sequence[Sequence[int]]) -> Tensor:
        return self.network.compute(values, levels, permutations)


def of_small(key: str) -> str:
    """Name a tensor of three stages as of the published five, whose decoder has two finer ones."""
    return re.sub(r"dec\.dec(\d)", lambda found: f"dec.dec{int(found[1]) + 2}", key)


def compose(draws: Sequence[Sequence[int]], num_levels: int) -> list[list[int]]:
    """Permutations of each level by the authors' draws; without shuffling their first level has none."""
    permutation, permutations = [0, 1, 2, 3], []
    for draw in [*[[0, 1, 2, 3]] * (num_levels - len(draws)), *draws]:
        permutation = [permutation[place] for place in draw]
        permutations.append(permutation)
    return permutations


def logits_of(golden: Golden, mode: str, model: PatchTransformer, tensors: Mapping[str, Tensor]) -> Any:
    """Logits of the file's rows, and its features, of a network with these tensors."""
    cells, offsets = golden.tensor("in.grid_coord").long(), F.pad(golden.tensor("in.offset").long(), (1, 0))
    voxels = group_cells(cells, offsets)
    levels = build_voxel_levels(cells[voxels.order], offsets, sizes=model.level_sizes, curves=model.curves)
    features = golden.tensor("in.feat").double().requires_grad_()
    permutations = compose(golden.tensor(f"{mode}.perm").tolist(), len(levels))
    given = {f"network.{name}": value for name, value in tensors.items()}
    logits = torch.func.functional_call(Computed(model), given, (features[voxels.order], levels, permutations))
    return logits[voxels.inverse], features


@pytest.mark.shared
@pytest.mark.parametrize(("name", "layout", "changed"), GOLDEN, ids=[row[0] for row in GOLDEN])
def test_network_is_that_of_the_authors(shared: Path, name: str, layout: str, changed: dict[str, Any]) -> None:
    """Logits, loss, every gradient, under the names and in the shapes of the authors, and running statistics."""
    golden = load_golden(shared, name, area="voxels")
    theirs = {key: value.requires_grad_(value.is_floating_point()) for key, value in golden.state().items()}
    model, label = PatchTransformer(**{**SMALL, **changed}).double(), golden.tensor("in.label").long()
    for mode in each_mode(model):
        ours = convert_state_dict({of_small(key): value for key, value in theirs.items()}, layout)
        buffers = {key: ours[key].detach().clone() for key, _ in model.named_buffers()}
        tensors = {**{key: ours[key] for key, _ in model.named_parameters()}, **buffers}
        assert ours.keys() == tensors.keys()
        logits, features = logits_of(golden, mode, model, tensors)
        is_counted = label >= 0
        loss = F.cross_entropy(logits, label, ignore_index=-1)
        loss = loss + lovasz_of_image(logits[is_counted].softmax(dim=1), label[is_counted])
        key = f"{mode}.out.logits"
        assert_near_largest(kept(golden, key, logits), golden.tensor(key), OUTPUT_BOUND, key)
        assert_near_largest(loss, golden.tensor(f"{mode}.loss"), OUTPUT_BOUND, "loss")
    loss.backward()
    assert_gradients(golden, theirs, features)
    assert_running_statistics(golden, buffers, layout, of_small)


@pytest.mark.shared
@pytest.mark.parametrize("without", ["cpe_input", "curve_depth"])
def test_published_weights_need_their_version(shared: Path, without: str) -> None:
    """Each half of the preset is needed: without it logits are off by 10 % and more, though all keys match."""
    golden = load_golden(shared, "ptv3_small_v151", area="voxels")
    model = PatchTransformer(**{**SMALL, **V151, without: SMALL[without]}).double().eval()
    ours = convert_state_dict({of_small(key): value for key, value in golden.state().items()}, "pointcept_ptv3")
    with torch.no_grad():
        logits, _ = logits_of(golden, "eval", model, ours)
    expected = golden.tensor("eval.out.logits")
    assert (logits - expected).abs().max() > 0.1 * expected.abs().max()


BLOCKS: list[tuple[str, str, bool]] = [
    ("varlen", "segments", False),
    ("fixed", "shared", False),
    ("fixed_rpe", "shared", True),
]


@pytest.mark.shared
@pytest.mark.parametrize(("name", "sizes", "has_table"), BLOCKS, ids=[row[0] for row in BLOCKS])
def test_block_is_that_of_the_authors(shared: Path, name: str, sizes: Any, has_table: bool) -> None:
    golden = load_golden(shared, f"ptv3_block_{name}", area="voxels")
    block = PatchTransformerBlock(
        width=24, num_heads=3, patch_size=16, drop_path=0.0, has_table=has_table, norm_first=True
    ).double()
    theirs = {key: value.requires_grad_() for key, value in golden.state().items()}
    layout = "pointcept_ptv3_table" if has_table else "pointcept_ptv3"
    named = {key.replace("block.", "backbone.enc.enc0.block0."): value for key, value in theirs.items()}
    tensors = {key.removeprefix("encoder.0.blocks.0."): v for key, v in convert_state_dict(named, layout).items()}
    cells, offsets = golden.tensor("in.grid_coord").long(), F.pad(golden.tensor("in.offset").long(), (1, 0))
    rule = CurveRule(16, "extent", sizes)
    (level,) = build_voxel_levels(cells, offsets, sizes=[(3,)], curves=rule)
    for mode in each_mode(block):
        features = golden.tensor("in.feat").double().requires_grad_()
        values, _ = torch.func.functional_call(block, tensors, (features, features, level, 2))
        logits, label = values[:, :6], golden.tensor("in.label").long()
        loss = F.cross_entropy(logits, label, ignore_index=-1)
        loss = loss + lovasz_of_image(logits[label >= 0].softmax(dim=1), label[label >= 0])
        assert_near_largest(logits, golden.tensor(f"{mode}.out.logits"), OUTPUT_BOUND, mode)
        assert_near_largest(loss, golden.tensor(f"{mode}.loss"), OUTPUT_BOUND, "loss")
    loss.backward()
    assert_gradients(golden, theirs, features)


@pytest.mark.shared
@pytest.mark.parametrize("case", ["plain", "shuf"])
def test_pooling_is_that_of_the_authors(shared: Path, case: str) -> None:
    """By the cells of voxels: the authors order the rows of coarse voxels by a curve, we by cloud, x, y, z."""
    golden = load_golden(shared, "fn_serialization", area="voxels")
    given = {name.removeprefix(f"{case}."): golden.tensor(name) for name in golden.arrays if name.startswith(case)}
    cells, offsets = golden.tensor("in.grid_coord").long(), F.pad(golden.tensor("in.offset").long(), (1, 0))
    fine, coarse = build_voxel_levels(cells, offsets, sizes=[(3,), (3,)], curves=CurveRule(16, "extent"))
    assert fine.curves is not None
    assert coarse.curves is not None
    pool, unpool = (
        layer.double().eval()
        for layer in (
            VoxelPooling(in_channels=6, out_channels=8),
            VoxelUnpooling(in_channels=8, skip_channels=6, out_channels=5),
        )
    )
    state = Golden({"state": golden.info[f"state_{case}."]}, {}).state()
    pairs = {"pool1.proj": "linear", "pool1.norm.0": "norm"}
    pool.load_state_dict({rename(key, pairs): v for key, v in state.items() if key.startswith("pool1")})
    pairs = {
        f"unpool1.{theirs}.{index}": f"{ours}.{layer}"
        for theirs, ours in (("proj", "raised"), ("proj_skip", "skipped"))
        for index, layer in enumerate(("linear", "norm"))
    }
    unpool.load_state_dict({rename(key, pairs): v for key, v in state.items() if key.startswith("unpool1")})
    features = golden.tensor("in.feat").requires_grad_()
    pooled = pool(features, fine, coarse)
    voxels = group_cells(given["pool1.grid_coord"].long(), F.pad(given["pool1.offset"].long(), (1, 0)))
    theirs = voxels.order  # the authors' row of each of our voxels
    assert torch.equal(given["pool1.grid_coord"].long()[theirs], coarse.curves.cells)
    assert torch.equal(voxels.inverse[given["pool1.pooling_inverse"].long()], fine.parents)
    assert torch.allclose(pooled, given["pool1.feat"][theirs], rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(pooled, features, given["pool1.cot"][theirs], retain_graph=True)
    assert torch.allclose(gradient, given["pool1.g_feat"], rtol=0, atol=1e-9)
    raised, skipped = unpool(pooled, features, fine, coarse)
    assert torch.allclose(raised, given["unpool1.feat"], rtol=0, atol=1e-12)
    assert torch.allclose(skipped, given["unpool1.sparse_conv_feat"], rtol=0, atol=1e-12)
    draws = golden.tensor("shuf.perm")[:2].tolist() if case == "shuf" else []
    permutation = compose(draws, 2)[1]
    assert int(given["pool1.depth"]) == int(given["depth"]) - 1
    theirs_of_ours = voxels.inverse[given["pool1.serialized_order"].long()]
    assert torch.equal(theirs_of_ours, coarse.curves.order[permutation])


def rename(key: str, pairs: Mapping[str, str]) -> str:
    module, _, leaf = key.rpartition(".")
    return f"{pairs[module]}.{leaf}"


@pytest.mark.shared
def test_sizes_are_the_published_ones(shared: Path) -> None:
    counts = json.loads((shared / "golden" / "voxels" / "counts.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        rooms = {num: PTv3(in_channels=9, num_classes=num, inputs="features") for num in (20, 13)}
        for num_classes, model in rooms.items():
            assert count_weights(model) == counts[f"ptv3m1_base_in6_K{num_classes}_with_head"]
        assert count_weights(PTv3(in_channels=4, num_classes=16)) == counts["nuscenes_K16"]
        assert count_weights(PTv3(in_channels=4, num_classes=22)) == counts["waymo_K22"]
        table = PTv3(in_channels=9, num_classes=20, inputs="features", patch_size=128, patches="shared_with_positions")
        assert count_weights(table) - count_weights(table.head) == counts["ptv3m1_base_rpe_patch128"]
    model = rooms[20]
    assert count_weights(model) - count_weights(model.head) == counts["ptv3m1_base_in6_backbone"]
    assert count_weights(model.stem) == counts["parts"]["embedding"]
    pools = [nn.Module(), *model.pools]
    for number, (pool, stage) in enumerate(zip(pools, model.encoder, strict=True)):
        assert count_weights(pool) + count_weights(stage) == counts["enc"][f"enc{number}"]
    for number, (unpool, stage) in enumerate(zip(model.unpools, model.decoder, strict=True)):
        assert count_weights(unpool) + count_weights(stage) == counts["dec"][f"dec{3 - number}"]
    rates = [module.p for module in model.encoder.modules() if isinstance(module, StochasticDepth)]
    assert [round(rate, 4) for rate in rates] == counts["drop_path_enc"]
    rates = [module.p for module in model.decoder.modules() if isinstance(module, StochasticDepth)]
    assert [round(rate, 4) for rate in rates] == [0.3, 0.2571, 0.2143, 0.1714, 0.1286, 0.0857, 0.0429, 0.0]


@pytest.mark.shared
def test_published_files_are_read_whole(shared: Path) -> None:
    keys = json.loads((shared / "golden" / "voxels" / "keys_ptv3_base_scannet.json").read_text(encoding="utf-8"))
    state = {key: torch.zeros(shape, device="meta") for key, shape in keys}
    assert choose_layout(state, "a.pth", is_for_weights=False, advice="") == "pointcept_ptv3"
    of_scans = {**state, "backbone.embedding.stem.conv.weight": torch.zeros(32, 5, 5, 5, 4, device="meta")}
    assert choose_layout(of_scans, "a.pth", is_for_weights=False, advice="") == "pointcept_ptv3_nuscenes"
    tables = {key.replace("attn.qkv.bias", "attn.rpe.rpe_table"): value for key, value in state.items()}
    assert find_layouts({**state, **tables}) == ["pointcept_ptv3_table"]
    ours = convert_state_dict({f"module.{key}": value for key, value in state.items()}, "pointcept_ptv3")
    model = PTv3(in_channels=9, num_classes=20, inputs="features")
    assert {key: value.shape for key, value in ours.items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_linear_layers_of_spconv_networks_stay_as_they_are() -> None:
    weights = {"a.weight": torch.rand(3, 4), "b.weight": torch.rand(5, 3, 3, 3, 2)}
    assert CHANGES["arrange_kernels"](weights, "spconv").keys() == {"b.weight"}


# --- what the network claims ------------------------------------------------------------------------------------------


def small(**further: Any) -> PTv3:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "encoder_widths": (16, 32, 32),
        "encoder_blocks": (1, 1, 2),
        "decoder_widths": (32, 16),
        "decoder_blocks": (1, 1),
        "patch_size": 64,
        "drop_path": 0.0,
    }
    return PTv3(num_classes=5, in_channels=4, grid_m=0.1, **{**sizes, **further})


def test_cloud_alone_gives_the_bits_of_the_batch() -> None:
    """And not where patches or curves depend on the batch."""
    batch = clouds(700, 90, 1, 400)
    batch["points"][batch["offsets"][1] : batch["offsets"][2]] *= 4  # a larger cloud has more bits
    hilbert = {"encoder_blocks": (3, 1, 1)}  # a third block in turn is the first along such a curve
    for arguments, is_equal in (({}, True), ({"patches": "shared"}, False), ({"data_flow": "main", **hilbert}, False)):
        model = small(**arguments).eval()
        whole = model(**batch)["logits"]
        bits = []
        for first, last in pairwise(batch["offsets"].tolist()):
            alone = model(points=batch["points"][None, first:last], features=batch["features"][None, first:last])
            bits.append(torch.equal(alone["logits"][0], whole[first:last]))
        assert all(bits) == is_equal, arguments


def run_step(
    model: PTv3, batch: Mapping[str, Tensor], more: int = 0, garbage: float = 0.0, share: float = 0.0
) -> dict[str, Tensor]:
    """Compute a training step with tables of `more` rows than voxels, which begin as `garbage`."""
    model.train()
    voxels = sparse_voxels(batch["points"], batch["offsets"], side=model.grid_m)
    levels = build_voxel_levels(voxels.cells, voxels.offsets, sizes=model.level_sizes, curves=model.curves)
    rows = [level.num_voxels + more + int(share * level.num_voxels) for level in levels]
    levels = [level.fill_up(*each) for level, each in zip(levels, pairwise([*rows, 0]), strict=True)]
    values = voxels.average(torch.cat([batch["points"], batch["features"]], dim=1)).requires_grad_()
    padded = F.pad(values, (0, 0, 0, rows[0] - len(values)), value=garbage)
    logits = model.compute(padded, levels, list_permutations(3, is_shuffled=False))[: len(values)]
    (logits * torch.arange(5)).square().sum().backward()
    assert values.grad is not None
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"logits": logits.detach(), "values": values.grad, **gradients, **dict(model.named_buffers())}


def test_rows_that_fill_tables_up_change_no_bit() -> None:
    """Outputs, gradients and running statistics of n, n + 1 and 2 n rows, whatever is in those after the n-th."""
    batch = clouds(600, 3, 500)
    plain = run_step(small(), batch)
    assert len(plain) > 100
    for more, garbage, share in ((1, torch.nan, 0.0), (0, torch.nan, 1.0), (64, 1e30, 0.0)):
        filled = run_step(small(), batch, more, garbage, share)
        assert [name for name, value in plain.items() if not torch.equal(value, filled[name])] == []


def test_number_of_threads_changes_no_bit() -> None:
    batch, before = clouds(600, 3, 500), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(run_step(small(), batch))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert [name for name, value in found[0].items() if not torch.equal(value, other[name])] == []


def test_a_form_of_fixed_sizes_gives_the_same_numbers() -> None:
    """Patches of one size, their number fixed, with empty slots, against those of their own lengths."""
    batch = clouds(600, 3, 500)
    model = small().double().eval()
    batch = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    voxels = sparse_voxels(batch["points"], batch["offsets"], side=model.grid_m)
    levels = build_voxel_levels(voxels.cells, voxels.offsets, sizes=model.level_sizes, curves=model.curves)
    values = voxels.average(torch.cat([batch["points"], batch["features"]], dim=1))
    rows = [level.num_voxels + 7 for level in levels]
    filled = [level.fill_up(*each) for level, each in zip(levels, pairwise([*rows, 0]), strict=True)]
    assert torch.allclose(model.compute(values, filled)[: len(values)], model.compute(values, levels), atol=1e-12)


def test_evaluation_never_shuffles_and_training_does() -> None:
    """Labels of evaluation are those of the first time; a step in training is another one, by torch's seed alone."""
    model, batch = small(), clouds(500, 200)
    model.eval()
    first, second = (model(**batch)["logits"] for _ in range(2))
    assert torch.equal(first, second)
    model.train()
    torch.manual_seed(3)
    steps = [model(**batch)["logits"] for _ in range(3)]
    torch.manual_seed(3)
    assert torch.equal(model(**batch)["logits"], steps[0])
    assert not torch.equal(steps[0], steps[1]) or not torch.equal(steps[1], steps[2])
    torch.manual_seed(0)
    found = list_permutations(4, is_shuffled=True)
    torch.manual_seed(0)
    assert found == compose([torch.randperm(4).tolist() for _ in range(4)], 4)


def test_order_of_points_moves_rows_alone() -> None:
    model = small().double().eval()
    batch = {k: v.double() if v.is_floating_point() else v for k, v in clouds(500).items()}
    order = torch.randperm(500, generator=torch.Generator().manual_seed(3))
    straight = model(**batch)["logits"]
    shuffled = model(points=batch["points"][order], features=batch["features"][order], offsets=batch["offsets"])
    assert torch.allclose(shuffled["logits"], straight[order], rtol=0, atol=1e-12)


def test_branches_are_dropped_voxel_by_voxel() -> None:
    block = PatchTransformerBlock(
        width=16, num_heads=1, patch_size=8, drop_path=0.5, has_table=False, norm_first=True
    ).train()
    cells = torch.cartesian_prod(*[torch.arange(5)] * 3)
    (level,) = build_voxel_levels(cells, torch.tensor([0, 125]), sizes=[(3,)], curves=CurveRule(8))
    torch.manual_seed(0)
    values = torch.randn(125, 16)
    _, branch = block(values, values, level, 0)
    dropped = (branch == 0).all(dim=1)
    assert 0.3 < dropped.float().mean().item() < 0.7
    assert bool((branch[~dropped] != 0).any(dim=1).all())


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"encoder_widths": (16, 40, 32)}, "head_width: 16 does not divide a width of 40"),
    ({"decoder_widths": (32,)}, r"1 decoder_widths, 2 decoder_blocks; give one of each for every stage"),
    (
        {"decoder_widths": (32,), "decoder_blocks": (1,)},
        "found 1 decoder_widths for 3 encoder_widths; the decoder has a stage less",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_sizes_that_do_not_go_together_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**arguments)


def test_a_point_far_away_changes_nothing_for_other_clouds() -> None:
    """Beyond the 65,536 cells of a curve, a cloud's own order is coarser; the others have their bits."""
    model, batch = small().eval(), clouds(300, 80)
    alone = model(points=batch["points"][:300], features=batch["features"][:300], offsets=torch.tensor([0, 300]))
    batch["points"][350] += 7000.0
    assert torch.equal(model(**batch)["logits"][:300], alone["logits"])
    cells = torch.tensor([[0, 0, 0], [70_000, 1, 2], [1, 0, 0], [140_000, 1, 1], [3, 4, 5]])
    ordered = CurveRule(8).order(cells, torch.tensor([0, 4, 5]), depth=16)
    expected = curve_order(torch.cat([cells[:4] >> 2, cells[4:]]), torch.tensor([0, 4, 5]))
    assert torch.equal(ordered.order, expected.order)
