"""Image encoders against their published sizes, torchvision's networks, and a slow reading in NumPy."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sightline.areas.contrast.crosspoint import projection_head
from sightline.contract import registry
from sightline.contract.errors import ConfigError
from sightline.contract.types import ComponentConfig
from sightline.parts.models.darknet import Darknet53Encoder
from sightline.parts.models.resnet import ResNet18Encoder
from sightline.parts.models.vit import ViTEncoder
from sightline.published.translation import convert_state_dict

SIZES = {
    "darknet53": (40_584_928, 1024),
    "resnet18": (11_176_512, 512),
    "resnet34": (21_284_672, 512),
    "resnet50": (23_508_032, 2048),
    "resnet101": (42_500_160, 2048),
    "vit": (1_829_568, 192),
    "vit_base": (85_798_656, 768),
    "vit_small": (21_665_664, 384),
    "vit_tiny": (5_524_416, 192),
}
"""Parameters without a head, and the width of the feature."""


def build(name: str) -> nn.Module:
    encoder: nn.Module = registry.image_encoders.build(ComponentConfig(name), facts={})
    return encoder


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def small_vit() -> ViTEncoder:
    return ViTEncoder(size_px=16, patch_px=4, width=12, depth=2, num_heads=3).double().eval()


def images(batch: int = 2, size: int = 16) -> Tensor:
    return torch.randn(batch, 3, size, size, dtype=torch.float64)


def test_every_encoder_has_its_size_here() -> None:
    assert registry.image_encoders.names() == sorted(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        encoder = build(name)
    assert (num_parameters(encoder), encoder.feature_width) == SIZES[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet18", 394_240), ("resnet50", 1_180_672), ("vit_base", 525_312), ("vit_small", 328_704)],
)
def test_projection_heads_have_the_published_sizes(name: str, expected: int) -> None:
    assert num_parameters(projection_head(SIZES[name][1], 512, 256, has_bias=False)) == expected


@pytest.mark.parametrize("make", [ResNet18Encoder, small_vit], ids=["resnet", "vit"])
@pytest.mark.parametrize(
    ("image", "told"),
    [
        (torch.zeros(2, 16, 16, 3), r"found the shape \(2, 16, 16, 3\), expected \(B, 3, H, W\); .*normalize_image"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), r"found torch\.uint8, expected .*normalize_image"),
        (torch.zeros(2, 1, 16, 16), r"found the shape \(2, 1, 16, 16\), expected \(B, 3, H, W\)$"),
        (torch.zeros(2, 4, 16, 16), r"found the shape \(2, 4, 16, 16\), expected \(B, 3, H, W\)$"),
        (torch.zeros(3, 16, 16), r"found the shape \(3, 16, 16\), expected \(B, 3, H, W\)$"),
        (torch.zeros(2, 3, 16, 3), r".* may have three columns or three channels last"),
    ],
    ids=["channels last", "bytes", "grey", "with alpha", "one image", "three columns"],
)
def test_another_layout_is_refused_by_name(make: Callable[[], nn.Module], image: Tensor, told: str) -> None:
    with pytest.raises(ValueError, match=f"^image: {told}"):
        make().encode(image=image)


def test_the_feature_of_darknet_is_the_mean_of_its_last_map() -> None:
    encoder = Darknet53Encoder().eval()
    given = images(1, size=64).float()
    with torch.no_grad():
        last, feature = encoder(given)[-1].double().numpy(), encoder.encode(image=given)
    assert last.shape[2:] == (2, 2)
    assert np.allclose(feature, last.reshape(1, 1024, 4).sum(axis=2) / 4, atol=1e-5)


# --- residual networks -----------------------------------------------------------------------------------------------


def test_convolutions_start_with_the_deviation_of_the_paper() -> None:
    """2 / (3 * 3 * 512) is the variance; of 2.4 million draws the relative error of its root is 1 / sqrt(4.7e6)."""
    weight = ResNet18Encoder().stages[3][1].layers[0].conv.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 512)), rel=5 / math.sqrt(2 * weight.numel()))


# --- vision transformers ---------------------------------------------------------------------------------------------


def layer_norm(values: np.ndarray, norm: nn.LayerNorm) -> np.ndarray:
    centred = values - values.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    return scaled * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def linear(values: np.ndarray, layer: nn.Linear) -> np.ndarray:
    return values @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def read_slowly(vit: ViTEncoder, image: np.ndarray, patch: int, num_heads: int) -> np.ndarray:
    """One image (3, H, W) patch by patch, head by head, token by token, as equations 1 to 4 of the paper say it."""
    rows, columns = image.shape[1] // patch, image.shape[2] // patch
    kernels, bias = (getattr(vit.patches, part).detach().numpy() for part in ("weight", "bias"))
    tokens = [vit.class_token.detach().numpy()[0, 0]]
    for row in range(rows):
        for column in range(columns):
            piece = image[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            tokens.append(np.array([(kernel * piece).sum() for kernel in kernels]) + bias)
    values = np.stack(tokens) + vit.positions.detach().numpy()[0]
    for block in vit.blocks:
        normed = layer_norm(values, block.attend_norm)
        query, key, value = np.split(linear(normed, block.attend.qkv), 3, axis=-1)
        heads = []
        for part in np.split(np.arange(query.shape[1]), num_heads):
            likeness = query[:, part] @ key[:, part].T / np.sqrt(len(part))
            weights = np.exp(likeness - likeness.max(axis=1, keepdims=True))
            heads.append(weights / weights.sum(axis=1, keepdims=True) @ value[:, part])
        values = values + linear(np.concatenate(heads, axis=1), block.attend.project)
        hidden = linear(layer_norm(values, block.change_norm), block.change[0])
        erf = np.vectorize(math.erf)(hidden / math.sqrt(2))
        values = values + linear(hidden * (1 + erf) / 2, block.change[2])
    return layer_norm(values[0], vit.norm)


def test_transformer_equals_a_slow_reading_in_numpy() -> None:
    vit, given = small_vit(), images(2)
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.3)  # so that norms and biases take part
    expected = np.stack([read_slowly(vit, each.numpy(), 4, 3) for each in given])
    # Sums of at most 48 products and two blocks of order one: some hundred roundings of 1e-16.
    np.testing.assert_allclose(vit.encode(image=given).detach().numpy(), expected, rtol=0, atol=1e-12)


def test_another_size_of_image_is_refused_with_both() -> None:
    with pytest.raises(ValueError, match=r"image: found 32 x 16 pixels, this encoder was built for 16 x 16; bring"):
        small_vit().encode(image=torch.zeros(1, 3, 32, 16, dtype=torch.float64))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"size_px": 60, "patch_px": 8}, "patch_px: patches of 8 pixels do not tile images of 60; give a divisor"),
        ({"width": 192, "num_heads": 5}, "num_heads: 5 heads do not divide a width of 192; give another number"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments: dict[str, int], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ViTEncoder(**arguments)


# --- torchvision's ViT, read from its equations over torch's own attention -------------------------------------------


class TheirBlock(nn.Module):
    """A block of torchvision's encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(12, eps=1e-6), nn.LayerNorm(12, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(12, 48), nn.GELU(), nn.Identity(), nn.Linear(48, 12), nn.Identity())

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.ln_1(tokens)
        tokens = tokens + self.self_attention(normed, normed, normed, need_weights=False)[0]
        return tokens + self.mlp(self.ln_2(tokens))


class TheirViT(nn.Module):
    """torchvision's vision transformer of the depth of vit_b_16, 12 channels wide."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_proj = nn.Conv2d(3, 12, 4, stride=4)
        self.class_token = nn.Parameter(torch.randn(1, 1, 12))
        self.encoder = nn.Module()
        self.encoder.pos_embedding = nn.Parameter(torch.randn(1, 17, 12))
        self.encoder.layers = nn.Sequential(OrderedDict((f"encoder_layer_{i}", TheirBlock()) for i in range(12)))
        self.encoder.ln = nn.LayerNorm(12, eps=1e-6)
        self.heads = nn.Sequential(OrderedDict(head=nn.Linear(12, 5)))

    def forward(self, image: Tensor) -> Tensor:
        patches = self.conv_proj(image).flatten(2).permute(0, 2, 1)
        tokens = torch.cat([self.class_token.expand(len(image), -1, -1), patches], dim=1) + self.encoder.pos_embedding
        return self.encoder.ln(self.encoder.layers(tokens))[:, 0]


def test_torchvision_s_vit_is_ours() -> None:
    torch.manual_seed(0)
    theirs, image = TheirViT().double().eval(), images()
    weights = convert_state_dict(theirs.state_dict(), "torchvision_vit_base")
    ours = ViTEncoder(size_px=16, patch_px=4, width=12, depth=12, num_heads=3).double().eval()
    ours.load_state_dict({name.removeprefix("images."): value for name, value in weights.items() if "head" not in name})
    torch.testing.assert_close(ours.encode(image=image), theirs(image), rtol=0, atol=1e-12)
    assert weights["head.weight"].shape == (5, 12)
