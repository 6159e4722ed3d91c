"""Orthogonality penalty of learned feature transforms (T-Net)."""

from __future__ import annotations

import torch
from torch import Tensor

from sightline import registry
from sightline.losses.base import Loss

__all__ = ["FeatureTransformPenalty"]


@registry.losses.add("feature_transform_penalty")
class FeatureTransformPenalty(Loss):
    """T-Net orthogonality penalty: the sum over samples of the Frobenius norm of A A^T - I.

    Zero, with zero gradient, if A is exactly orthogonal. PointNet uses weight 0.001. Source: Qi et al. 2017, equation
    2, without the square, as in yanx27/Pointnet_Pointnet2_pytorch.
    """

    def count(self, *, sample_index: Tensor) -> Tensor:
        """Count the samples; `sample_index` (B,)."""
        return torch.full((), len(sample_index), dtype=torch.int64, device=sample_index.device)

    def forward(self, *, feature_transform: Tensor) -> Tensor:
        """Compute the sum over samples from `feature_transform` (B, K, K)."""
        identity = torch.eye(
            feature_transform.shape[-1], dtype=feature_transform.dtype, device=feature_transform.device
        )
        excess = feature_transform @ feature_transform.mT - identity
        return torch.linalg.vector_norm(excess, dim=(1, 2)).sum()
