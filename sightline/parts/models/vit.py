"""Vision transformers. Source: Dosovitskiy et al. 2021, An Image is Worth 16x16 Words."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.arguments import Count, Width
from sightline.contract.errors import ConfigError
from sightline.contract.model import Encoder
from sightline.layers.images import assert_images
from sightline.layers.transformer import TransformerBlock, init_trunc_normal

_NORM_EPS = 1e-6
"""Epsilon of the layer norms of published vision transformers; torch's own default is ten times as much."""
_INITIAL_STD = 0.02


@registry.image_encoders.add("vit")
class ViTEncoder(Encoder):
    """Vision transformer (ViT) of any size: self-attention among patch tokens and a class token.

    The feature (B, width) is the final class token. Images are squares of `size_px`, cut into patches of
    `patch_px`; positions are learnt, one for each patch. By default it is a small one for images of 64 pixels; the
    sizes of the papers are `vit_tiny`, `vit_small` and `vit_base`.
    Source: Dosovitskiy et al. 2021, eq. 1 to 4; weights start as in Touvron et al. 2021, DeiT (a deviation of 0.02).
    """

    def __init__(
        self,
        *,
        size_px: Count = 64,
        patch_px: Count = 8,
        width: Width = 192,
        depth: Count = 4,
        num_heads: Count = 3,
    ) -> None:
        super().__init__()
        if size_px % patch_px:
            raise ConfigError(f"patch_px: patches of {patch_px} pixels do not tile images of {size_px}; give a divisor")
        self.size_px = size_px
        self.feature_width = width
        self.patches = nn.Conv2d(3, width, patch_px, stride=patch_px)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + (size_px // patch_px) ** 2, width))
        self.blocks = nn.ModuleList(
            TransformerBlock(width=width, num_heads=num_heads, qkv_bias=True, norm_eps=_NORM_EPS) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                init_trunc_normal(module)
        for parameter in (self.class_token, self.positions):
            nn.init.trunc_normal_(parameter, std=_INITIAL_STD)

    def encode(self, *, image: Tensor) -> Tensor:
        """Encode `image` (B, 3, size_px, size_px), normalised -> (B, width).

        Raises ValueError for any other layout, and for images of another size.
        """
        assert_images(image)
        if image.shape[2:] != (self.size_px, self.size_px):
            height, width = image.shape[2:]
            raise ValueError(
                f"image: found {height} x {width} pixels, this encoder was built for {self.size_px} x {self.size_px}; "
                "bring the images to that size in the transforms, or set size_px of the encoder"
            )
        patches_BTC = self.patches(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(image.shape[0], -1, -1), patches_BTC], dim=1) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        return cast(Tensor, self.norm(tokens[:, 0]))


@registry.image_encoders.add("vit_tiny")
class ViTTinyEncoder(ViTEncoder):
    """ViT-Ti: 12 blocks of 192 channels and 3 heads; features (B, 192). Images are squares of `size_px`.

    Source: Touvron et al. 2021, Training data-efficient image transformers, table 1 (DeiT-Ti).
    """

    def __init__(self, *, size_px: Count = 224, patch_px: Count = 16) -> None:
        super().__init__(size_px=size_px, patch_px=patch_px, width=192, depth=12, num_heads=3)


@registry.image_encoders.add("vit_small")
class ViTSmallEncoder(ViTEncoder):
    """ViT-S: 12 blocks of 384 channels and 6 heads; features (B, 384). Images are squares of `size_px`.

    Source: Touvron et al. 2021, Training data-efficient image transformers, table 1 (DeiT-S).
    """

    def __init__(self, *, size_px: Count = 224, patch_px: Count = 16) -> None:
        super().__init__(size_px=size_px, patch_px=patch_px, width=384, depth=12, num_heads=6)


@registry.image_encoders.add("vit_base")
class ViTBaseEncoder(ViTEncoder):
    """ViT-B: 12 blocks of 768 channels and 12 heads; features (B, 768). Images are squares of `size_px`.

    Source: Dosovitskiy et al. 2021, table 1 (ViT-Base).
    """

    def __init__(self, *, size_px: Count = 224, patch_px: Count = 16) -> None:
        super().__init__(size_px=size_px, patch_px=patch_px, width=768, depth=12, num_heads=12)
