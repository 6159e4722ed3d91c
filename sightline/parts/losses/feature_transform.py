"""Orthogonality penalty of learned feature transforms (T-Net of PointNet)."""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.loss import Loss


@registry.losses.add("feature_transform_penalty")
class FeatureTransformPenalty(Loss):
    """T-Net orthogonality penalty: the sum over samples of the Frobenius norm of A A^T - I.

    Zero, with zero gradient, if A is exactly orthogonal. PointNet uses weight 0.001.

    >>> import torch
    >>> from sightline.parts.losses.feature_transform import FeatureTransformPenalty
    >>> transforms = torch.stack([torch.eye(2), 2 * torch.eye(2)])
    >>> FeatureTransformPenalty()(feature_transform=transforms)  # 0, and the norm of 3 I: 3 times the root of 2
    tensor(4.2426)

    Source: Qi et al. 2017, equation 2, without the square, as in yanx27/Pointnet_Pointnet2_pytorch.
    """

    def count(self, *, sample_index: Tensor) -> Tensor:
        """Count the samples; `sample_index` (B,)."""
        return torch.tensor(len(sample_index))

    def forward(self, *, feature_transform: Tensor) -> Tensor:
        """Compute the sum over samples from `feature_transform` (B, K, K)."""
        identity = torch.eye(
            feature_transform.shape[-1], dtype=feature_transform.dtype, device=feature_transform.device
        )
        with torch.autocast(feature_transform.device.type, enabled=False):  # bf16 would round by the size of the excess
            excess = feature_transform @ feature_transform.mT - identity
        return torch.linalg.vector_norm(excess, dim=(1, 2)).sum()
