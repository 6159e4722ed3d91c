"""Multi-head attention, the pre-norm transformer block, and the encoder.

Stochastic depth: branches dropped at random, sample by sample.

Patch tokens of a cloud: sampled centres, a mini-PointNet over each patch, and position embeddings.

Self-attention and offset attention of the Point Cloud Transformer (PCT).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.contract.errors import ConfigError
from sightline.layers.mlp import JoinedLinearNorm, LinearNorm
from sightline.layers.set_abstraction import gather_rows, sample_centres
from sightline.ops import gather_points, nearest_neighbours


class StochasticDepth(nn.Dropout):
    """Stochastic depth (DropPath).

    A branch (B, ...) is zero for a sample with probability `p`, else scaled by 1/(1 - p).
    In evaluation it is unchanged. Apply it to a branch before the residual is added. It is a dropout, and counts as one
    wherever dropout is counted: its draws are torch's own, one per sample, and change from step to step.
    Source: Huang et al. 2016, Deep Networks with Stochastic Depth, equation 2; scaled in training, as dropout is.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop samples of a branch (B, ...) -> (B, ...)."""
        if not self.training or self.p == 0:
            return input
        each_B = input.new_ones(len(input), *[1] * (input.ndim - 1))
        return input * F.dropout(each_B, self.p)


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


_FIRST, _EACH, _JOINED = 128, 256, 512
_POSITION_HIDDEN = 128


def group_points(
    points: Tensor, *, num_groups: int, group_size: int, min_squared_norm: float | None = None
) -> tuple[Tensor, Tensor]:
    """Sample centres (B, num_groups, 3) by FPS and return the rows (B, num_groups, group_size) of their nearest points.

    The members of a group are in the order of (distance, index), the centre itself among them. Sampling starts at the
    first point; `min_squared_norm` as in `farthest_points`.
    Raises ValueError for clouds of fewer points than either number, and for values that are not finite.
    Source: Yu et al. 2022, Point-BERT, section 3.1 (point tokenization).
    """
    if group_size > points.shape[1]:
        raise ValueError(
            f"points: found clouds of {points.shape[1]} points, of which {group_size} are to form a group; give clouds "
            f"of at least {group_size} points or lower group_size"
        )
    chosen = sample_centres(points, num_groups, min_squared_norm=min_squared_norm, argument="num_groups")
    centres = gather_rows(points, chosen)
    return centres, nearest_neighbours(points, num_neighbours=group_size, queries=centres)


class MiniPointNet(nn.Module):
    """Mini-PointNet: one vector for each group of points, (M, K, in_channels) -> (M, out_channels).

    An MLP over each member, concatenation with the group's maximum, a second MLP, the maximum.
    `fused=False` repeats the maximum at every member, the tested reference; else it is mapped once per group: the same
    numbers. Source: Yu et al. 2022, Point-BERT, section 3.1, after Qi et al. 2017, PointNet.
    """

    def __init__(self, *, in_channels: int, out_channels: int, fused: bool = True) -> None:
        super().__init__()
        self.enter = LinearNorm(in_channels=in_channels, out_channels=_FIRST, has_bias=True, activation=nn.ReLU())
        self.widen = nn.Linear(_FIRST, _EACH)
        self.join = JoinedLinearNorm(
            in_channels=2 * _EACH, out_channels=_JOINED, has_bias=True, activation=nn.ReLU(), first="whole", fused=fused
        )
        self.leave = nn.Linear(_JOINED, out_channels)

    def forward(self, groups: Tensor) -> Tensor:
        """Map groups (M, K, in_channels) -> (M, out_channels)."""
        each_MKC = self.widen(self.enter(groups))
        joined_MKC = self.join(each_MKC.max(dim=1).values, each_MKC)
        return self.leave(joined_MKC).max(dim=1).values


class PatchEmbedding(nn.Module):
    """Patch embedding: a class token and a token for each group of a cloud, with position embeddings.

    `forward(points (B, N, 3), channels (B, N, in_channels)) -> (tokens, positions, centres)`, the first two of shape
    (B, 1 + num_groups, width), the centres (B, num_groups, 3). A member of a group has its position relative to the
    centre and its channels after the third. Raises ValueError as `group_points` does.
    Source: Yu et al. 2022, Point-BERT, section 3.1.
    """

    def __init__(
        self, *, in_channels: int, width: int, num_groups: int, group_size: int, min_squared_norm: float | None
    ) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.group_size = group_size
        self.min_squared_norm = min_squared_norm
        patch_width = max(1, 2 * width // 3)
        self.patches = MiniPointNet(in_channels=in_channels, out_channels=patch_width)
        self.reduce = nn.Linear(patch_width, width)
        hidden, out = nn.Linear(3, _POSITION_HIDDEN), nn.Linear(_POSITION_HIDDEN, width)
        self.position = nn.Sequential(hidden, nn.GELU(), out)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.class_position = nn.Parameter(torch.empty(1, 1, width))
        for linear in (self.reduce, hidden, out):
            init_trunc_normal(linear)
        for parameter in (self.class_token, self.class_position):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, points: Tensor, channels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map points (B, N, 3), channels (B, N, C) -> tokens and positions (B, 1 + G, width), centres (B, G, 3)."""
        centres, index = group_points(
            points,
            num_groups=self.num_groups,
            group_size=self.group_size,
            min_squared_norm=self.min_squared_norm,
        )
        members_BGKC = gather_points(channels, index)
        relative_BGK3 = members_BGKC[..., :3] - centres[:, :, None]
        groups_BGKC = torch.cat([relative_BGK3, members_BGKC[..., 3:]], dim=-1)
        patches_BGC = self.patches(groups_BGKC.flatten(0, 1)).unflatten(0, centres.shape[:2])
        tokens = torch.cat([self.class_token.expand(points.shape[0], -1, -1), self.reduce(patches_BGC)], dim=1)
        positions = torch.cat([self.class_position.expand(points.shape[0], -1, -1), self.position(centres)], dim=1)
        return tokens, positions, centres


class SelfAttention(nn.Module):
    """Self-attention (PCT): a layer applied to the attended values of all points, plus a residual.

    `forward((B, N, channels)) -> (B, N, channels)`. Queries and keys are one map, as in the authors' code, so that the
    similarity of two points is symmetric. Source: Guo et al. 2021 (PCT), equations 2 to 5.
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels // 4, bias=False)
        self.value = nn.Linear(channels, channels)
        self.change = LinearNorm(in_channels=channels, out_channels=channels, has_bias=True, activation=nn.ReLU())

    def forward(self, values: Tensor) -> Tensor:
        """Map values (B, N, channels) -> (B, N, channels)."""
        return values + self.change(self.attention(values) @ self.value(values))

    def attention(self, values: Tensor) -> Tensor:
        """Return the attention weights (B, M, N) of each point m over the points n; their sum over n is 1."""
        return torch.softmax(self._likeness(values) / math.sqrt(self.query.out_features), dim=-1)

    def _likeness(self, values: Tensor) -> Tensor:
        query = self.query(values)
        return query @ query.mT


class OffsetAttention(SelfAttention):
    """Offset attention (PCT): the layer is applied to x - attention(x) instead of attention(x).

    The attention is a softmax over the receiving points, then divided by its sum over the source points, without the
    square root. Source: Guo et al. 2021 (PCT), equations 6 to 9.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Map values (B, N, channels) -> (B, N, channels)."""
        return values + self.change(values - self.attention(values) @ self.value(values))

    def attention(self, values: Tensor) -> Tensor:
        """Return the attention weights (B, M, N) of each point m over the points n; their sum over n is 1."""
        likeness = self._likeness(values)
        is_half = likeness.dtype == torch.float16  # whose smallest number is above the guard: 0 / 0 for an idle point
        given_BNM = torch.softmax(likeness.float() if is_half else likeness, dim=-1)
        attention_BMN = (given_BNM / (1e-9 + given_BNM.sum(dim=1, keepdim=True))).mT
        return attention_BMN.to(values.dtype) if is_half else attention_BMN


class AttentionStack(nn.Module):
    """Stacked attention layers with concatenated outputs: (B, N, channels) -> (B, N, layers * channels).

    With `codes_positions` a linear map of the coordinates, `points` (B, N, 3), is added before every layer.
    Source: Guo et al. 2021 (PCT), figure 2; the codes, model_new of Strawberry-Eat-Mango/PCT_Pytorch.
    """

    def __init__(self, *, layer: type[SelfAttention], channels: int, num_layers: int, codes_positions: bool) -> None:
        super().__init__()
        self.position = nn.Linear(3, channels) if codes_positions else None
        self.layers = nn.ModuleList(layer(channels=channels) for _ in range(num_layers))

    def forward(self, values: Tensor, points: Tensor) -> Tensor:
        """Map values (B, N, channels), points (B, N, 3) -> (B, N, layers * channels)."""
        code: Tensor | float = 0.0 if self.position is None else self.position(points)
        results = []
        for layer in self.layers:
            values = layer(values + code if self.position is not None else values)
            results.append(values)
        return torch.cat(results, dim=-1)
