"""FRNet against the numbers of the authors' code, its sizes, and what it claims of points, pixels and batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.areas.scans.frustums import AssignPixels
from sightline.areas.scans.models.frnet import FRNet
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError
from sightline.published.files import choose_layout
from sightline.published.translation import convert_state_dict, published_name, translate_key
from tests.golden_parity import (
    GRADIENT_BOUND,
    OUTPUT_BOUND,
    Golden,
    assert_gradients_and_buffers,
    assert_near_largest,
    each_mode,
    load_golden,
)

SMALL: dict[str, Any] = {
    "encoder_widths": (8, 12, 16, 16),
    "pixel_width": 16,
    "width": 16,
    "blocks": (2, 2, 2, 2),
    "fused_widths": (16, 16),
}
"""The network of the golden file."""
HEIGHT, WIDTH = 16, 32
LAYOUT = "frnet_semantic_kitti"


def our_name(name: str) -> str:
    ours = translate_key(name, LAYOUT)
    assert ours is not None, name
    return ours


def golden_inputs(golden: Golden) -> tuple[dict[str, Tensor], Tensor]:
    feature = golden.tensor("in.feat").requires_grad_()
    scan, row, column = golden.tensor("in.coors").unbind(dim=1)
    counts = torch.bincount(scan)
    given = {
        "points": feature[:, :3],
        "features": feature[:, 3:],
        "pixel": row * WIDTH + column,
        "offsets": F.pad(counts.cumsum(0), (1, 0)),
    }
    return given, feature


@pytest.mark.shared
def test_network_is_that_of_the_authors(shared: Path) -> None:
    """Logits, maps on the way, loss, every gradient and running statistic."""
    golden = load_golden(shared, "frnet_small", area="voxels")
    model = FRNet(num_classes=5, in_channels=4, image_size_px=(WIDTH, HEIGHT), **SMALL).double()
    assert sum(parameter.numel() for parameter in model.parameters()) == golden.info["parameters"]
    model.load_state_dict({our_name(name): value for name, value in golden.state().items()})
    tapped: dict[str, Tensor] = {}
    for theirs, module in (
        ("voxel_encoder.pre_norm", model.encoder.norm),
        ("backbone.fusion_stem", model.backbone.to_pixels),
        ("decode_head.mlps.0", model.head.layers[0]),
    ):
        module.register_forward_hook(lambda _, __, output, theirs=theirs: tapped.update({theirs: output}))
    for mode in each_mode(model):
        given, feature = golden_inputs(golden)
        logits = model(**given)["logits"]
        loss = F.cross_entropy(logits, golden.tensor("in.label").long(), ignore_index=-1)
        label = f"{mode}.out.logits"
        assert_near_largest(logits, golden.tensor(label), OUTPUT_BOUND, label)
        assert_near_largest(loss, golden.tensor(f"{mode}.loss"), OUTPUT_BOUND, "loss")
        for theirs, output in tapped.items() if mode == "eval" else ():
            stride = golden.info["arrays"][f"eval.mid.{theirs}"]["flat_stride"] or 1
            kept = output.flatten()[::stride]
            assert_near_largest(kept, golden.tensor(f"eval.mid.{theirs}").flatten(), OUTPUT_BOUND, theirs)
    loss.backward()
    assert feature.grad is not None
    assert_near_largest(feature.grad, golden.tensor("train.g_feat"), GRADIENT_BOUND, "inputs")
    assert_gradients_and_buffers(golden, model, our_name)


@pytest.mark.shared
def test_sizes_are_the_published_ones(shared: Path) -> None:
    counts = json.loads((shared / "golden" / "voxels" / "counts.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        model = FRNet(num_classes=20, in_channels=4, image_size_px=(512, 64))
        of_nuscenes = FRNet(num_classes=17, in_channels=4, image_size_px=(480, 32))
        whole = FRNet(num_classes=20, in_channels=4, image_size_px=(512, 64), auxiliary_heads=True)
    assert count_weights(model) == counts["frnet_semkitti_K20_no_aux"]
    assert count_weights(of_nuscenes) == counts["frnet_nusc_K17_no_aux"]
    parts = {"voxel_encoder": model.encoder, "backbone": model.backbone, "decode_head": model.head}
    assert {name: count_weights(part) for name, part in parts.items()} == counts["frnet_parts"]
    assert count_weights(whole) - count_weights(model) == 4 * 129 * 20


def count_weights(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# --- what the network claims ------------------------------------------------------------------------------------------

VIEW: dict[str, Any] = {"fov_deg": (20.0, -20.0), "azimuth_deg": (180.0, -180.0)}


def small(**further: Any) -> FRNet:
    torch.manual_seed(0)
    model = FRNet(num_classes=5, in_channels=4, image_size_px=(WIDTH, HEIGHT), **SMALL, **further)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.running_mean = 0.1 * torch.randn_like(module.running_mean)  # type: ignore[arg-type]
    return model.eval()


def scans(*sizes: int) -> dict[str, Tensor]:
    """Scans of points of which many share a pixel."""
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(sum(sizes), 3, generator=generator) * torch.tensor([8.0, 8.0, 1.0])
    assign = AssignPixels(**VIEW, num_classes=5, ignore_index=0, height=HEIGHT, width=WIDTH)
    pixel = assign(Draws.from_seed(0), points=points[None])["pixel"][0]
    assert len(pixel.unique()) < 0.9 * len(pixel)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    return {
        "points": points,
        "features": torch.rand(sum(sizes), 1, generator=generator),
        "pixel": pixel,
        "offsets": offsets,
    }


def test_points_of_one_pixel_get_labels_of_their_own() -> None:
    given = scans(300)
    logits = small()(**given)["logits"]
    shared_pixel = int(given["pixel"].bincount().argmax())
    together = logits[given["pixel"] == shared_pixel]
    assert len(together) > 1
    assert torch.cdist(together, together)[0, 1:].min() > 1e-4


def test_a_scan_does_not_depend_on_others_nor_on_the_order_of_its_points() -> None:
    model, given = small().double(), scans(300, 200, 250)
    given = {name: value.double() if value.is_floating_point() else value for name, value in given.items()}
    logits = model(**given)["logits"]
    alone = {name: value[300:500] for name, value in given.items() if name != "offsets"}
    order = torch.randperm(200, generator=torch.Generator().manual_seed(3))
    mixed = {name: value[order] for name, value in alone.items()}
    found = model(**mixed, offsets=torch.tensor([0, 200]))["logits"]
    assert (found - logits[300:500][order]).abs().max() < 1e-12
    stacked = model(**{name: value[None] for name, value in alone.items()})["logits"]
    assert (stacked[0] - logits[300:500]).abs().max() < 1e-12


def test_an_empty_pixel_holds_nothing() -> None:
    """A pixel that no point falls into is zero, though the compression has a bias."""
    model, given = small(), scans(200)
    images: list[Tensor] = []
    model.backbone.stem.register_forward_hook(lambda _, inputs, __: images.append(inputs[0]))
    torch.nn.init.ones_(model.encoder.compress.bias)
    model(**given)
    is_filled = torch.zeros(HEIGHT * WIDTH, dtype=torch.bool)
    is_filled[given["pixel"]] = True
    assert torch.equal((images[0][0] != 0).any(dim=0).flatten(), is_filled)


def test_auxiliary_heads_predict_pixels() -> None:
    outputs = small(auxiliary_heads=True)(**scans(200, 100))
    assert outputs["auxiliary_logits"].shape == (2, 4, HEIGHT, WIDTH, 5)
    assert set(small()(**scans(200))) == {"logits"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size_px": None}, "add the transform 'assign_pixels'"),
        ({"image_size_px": (510, 64)}, "64 x 510 pixels .* multiples of 8"),
        ({"width": 15}, "must be even"),
    ],
)
def test_sizes_that_cannot_be_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FRNet(**{"num_classes": 5, "in_channels": 4, "image_size_px": (WIDTH, HEIGHT), **SMALL, **arguments})


def test_pixels_that_cannot_be_are_refused() -> None:
    given = scans(100)
    with pytest.raises(ValueError, match="has 0 to 511"):
        small()(**{**given, "pixel": given["pixel"] + 500})
    with pytest.raises(ValueError, match=r"expected \(100,\), one of each point"):
        small()(**{**given, "pixel": given["pixel"][:50]})


def test_published_files_are_read_whole() -> None:
    """Their heads of pixels are left out, and their last class, of ignored points, is the first one here."""
    torch.manual_seed(0)
    model = FRNet(num_classes=20, in_channels=4, image_size_px=(512, 64))
    state = {published_name(name, LAYOUT): value for name, value in model.state_dict().items()}
    heads = {f"auxiliary_head.{n}.conv_seg.{part}": torch.zeros(20) for n in range(4) for part in ("weight", "bias")}
    assert choose_layout({**state, **heads}, "frnet.pth", is_for_weights=False, advice="") == LAYOUT
    ours = convert_state_dict({**state, **heads}, LAYOUT)
    assert {name: value.shape for name, value in ours.items()} == {k: v.shape for k, v in model.state_dict().items()}
    before, after = model.state_dict()["head.logits.weight"], ours["head.logits.weight"]
    assert torch.equal(after[0], before[19])
    assert torch.equal(after[1:], before[:19])
