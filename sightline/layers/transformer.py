"""Multi-head attention, the pre-norm transformer block, and the encoder."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from sightline.contract.errors import ConfigError
from sightline.layers.stochastic_depth import StochasticDepth

_WEIGHT_STD = 0.02


class MultiHeadAttention(nn.Module):
    """Multi-head self-attention: tokens (B, T, width) -> (B, T, width).

    Raises ConfigError for a width that the heads do not divide.
    Source: Vaswani et al. 2017, Attention Is All You Need, section 3.2.
    """

    def __init__(self, *, width: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        if width % num_heads:
            raise ConfigError(f"num_heads: {num_heads} heads do not divide a width of {width}; give another number")
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.project = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Attend among tokens (B, T, width) -> (B, T, width)."""
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        received_BHTC = F.scaled_dot_product_attention(query, key, value)
        return self.project(received_BHTC.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Pre-norm transformer block: attention, then an MLP over each token, with residuals.

    (B, T, width) -> (B, T, width).
    Both branches are dropped at random with probability `drop_path`. `norm_eps` is the epsilon of the layer norms.
    Source: Dosovitskiy et al. 2021, An Image Is Worth 16x16 Words, equations 2 and 3.
    """

    def __init__(
        self, *, width: int, num_heads: int, qkv_bias: bool, drop_path: float = 0.0, norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.attend_norm = nn.LayerNorm(width, eps=norm_eps)
        self.attend = MultiHeadAttention(width=width, num_heads=num_heads, qkv_bias=qkv_bias)
        self.change_norm = nn.LayerNorm(width, eps=norm_eps)
        self.change = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, T, width) -> (B, T, width)."""
        tokens = tokens + self.drop_path(self.attend(self.attend_norm(tokens)))
        return tokens + self.drop_path(self.change(self.change_norm(tokens)))


class TransformerEncoder(nn.Module):
    """Transformer encoder: blocks with the positions added before each, and a layer norm.

    (B, T, width) -> (B, T, width).
    The probability of dropping a branch grows linearly from 0 in the first block to `drop_path` in the last.
    Source: Yu et al. 2022, Point-BERT, section 3.1, and its code for the positions.
    """

    def __init__(self, *, width: int, depth: int, num_heads: int, drop_path: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width=width, num_heads=num_heads, qkv_bias=False, drop_path=drop_path * number / max(1, depth - 1)
            )
            for number in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_trunc_normal(module)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Map tokens (B, T, width), positions (B, T, width) -> (B, T, width)."""
        for block in self.blocks:
            tokens = block(tokens + positions)
        return self.norm(tokens)


def init_trunc_normal(layer: nn.Linear | nn.Conv2d) -> None:
    """Initialise weights as in transformers: truncated normal with deviation 0.02, no bias.

    Source: Devlin et al. 2019.
    """
    nn.init.trunc_normal_(layer.weight, std=_WEIGHT_STD)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
