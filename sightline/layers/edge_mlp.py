"""Edge convolution with an MLP of several layers per edge, as in the segmentation form of DGCNN."""

from __future__ import annotations

from torch import Tensor, nn

from sightline.layers.grouped_mlp import GroupedMLP, PlainGroupedMLP

__all__ = ["EdgeMLP", "PlainEdgeMLP"]


class PlainEdgeMLP(nn.Module):
    """EdgeConv with an MLP over every edge (x_j - x_i, x_i), and the maximum over the edges of a point. Plain form.

    `forward(features (B, N, in_channels), index (B, N, K)) -> (B, N, widths[-1])`; at least two layers, without
    biases, LeakyReLU 0.2. One layer is `PlainEdgeConv`. Source: Wang et al. 2019, equations 5 to 8 and figure 3.
    """

    network_type: type[PlainGroupedMLP] = PlainGroupedMLP

    def __init__(self, *, in_channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.network = self.network_type(in_channels=2 * in_channels, widths=widths, has_bias=False, negative_slope=0.2)

    def forward(self, features: Tensor, index: Tensor) -> Tensor:
        """Map features (B, N, in_channels), index (B, N, K) -> (B, N, widths[-1])."""
        return self.network.over_edges(features, features, index)


class EdgeMLP(PlainEdgeMLP):
    """Fused `PlainEdgeMLP` with its first linear map applied to points: same state, same numbers, same gradients.

    Source: as the plain form.
    """

    network_type = GroupedMLP
