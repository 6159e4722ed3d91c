"""Keypoint metrics relative to the subject's size: PCK, and object keypoint similarity (OKS)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from sightline import registry
from sightline.arguments import PositiveFloat
from sightline.metrics.base import State
from sightline.metrics.joint_errors import distance_slots, record_distances

__all__ = ["Keypoints", "keypoint_similarity"]


@registry.metrics.add("keypoints")
class Keypoints:
    """PCK and OKS: joints off by at most `share` of a length of the subject, and the mean keypoint similarity.

    `pck` is the share of joints, `oks` the mean similarity. The length joins two joints of the true pose: wrist and
    middle knuckle of a hand, neck and torso of a body. OKS is exp(-d^2 / (2 s^2 (2 sigma)^2)), the mean over the
    visible joints of a frame, with s^2 = 0.53 e1 max(e2, e1 / 4) of the extents e1 >= e2 of the true joints: our form
    for three dimensions, not a published one. `oks_ap` is the share of frames above 0.50 to 0.95. Source: Yang and
    Ramanan 2013 (PCK); Lin et al. 2014, COCO (OKS and its sigmas).
    """

    slots = frozenset({"near", "labelled", "similarity", "seen"})
    higher_is_better: Mapping[str, bool] = {"pck": True, "oks": True, "oks_ap": True}

    def __init__(
        self,
        *,
        num_joints: int,
        pck_joints: tuple[int, int],
        keypoint_sigmas: tuple[float, ...],
        share: PositiveFloat = 0.2,
    ) -> None:
        self.num_joints = num_joints
        self.pck_joints = pck_joints
        self.keypoint_sigmas = torch.tensor(keypoint_sigmas, dtype=torch.float64)
        self.share = share

    def new_state(self, *, num_samples: int = 0) -> State:
        return {
            "near": torch.zeros(num_samples, dtype=torch.int64),
            "labelled": torch.zeros(num_samples, dtype=torch.int64),
            "similarity": torch.zeros(num_samples, dtype=torch.float64),
            "seen": torch.zeros(num_samples, dtype=torch.int64),
        }

    def update(self, state: State, *, joints_mm: Tensor, joints: Tensor, visible: Tensor, sample_index: Tensor) -> None:
        """Add a batch: `joints_mm` predicted and `joints` true (B, J, 3), in mm; `visible` (B, J).

        A frame in which one of the two joints of the length is not labelled does not count for PCK.
        """
        distances = distance_slots(0, self.num_joints)
        distances = {name: value.new_zeros((len(joints), *value.shape[1:])) for name, value in distances.items()}
        rows = torch.arange(len(joints))
        record_distances(distances, joints_mm.cpu(), joints.cpu(), visible.bool().cpu(), rows)
        distance, is_labelled, true = distances["distance_mm"], distances["labelled"] > 0, joints.cpu().double()
        first, second = self.pck_joints
        length = (true[:, first] - true[:, second]).norm(dim=-1)
        has_length = is_labelled[:, first] & is_labelled[:, second]
        is_near = (distance <= self.share * length[:, None]) & is_labelled & has_length[:, None]
        slots = sample_index.to(state["seen"].device)
        state["near"][slots] += is_near.sum(dim=1).to(slots.device)
        state["labelled"][slots] += (is_labelled & has_length[:, None]).sum(dim=1).to(slots.device)
        state["similarity"][slots] += self._similarity(distance, true, is_labelled).to(slots.device)
        state["seen"][slots] += is_labelled.any(dim=1).long().to(slots.device)

    def compute(self, state: State) -> dict[str, float]:
        is_seen = state["seen"] > 0
        similarity = state["similarity"][is_seen]
        levels = torch.arange(10, 20, dtype=torch.float64) / 20
        above = (similarity[:, None] > levels).double().mean() if len(similarity) else torch.tensor(torch.nan)
        return {
            "pck": (state["near"].sum().double() / state["labelled"].sum()).item(),
            "oks": similarity.mean().item(),
            "oks_ap": above.item(),
        }

    def _similarity(self, distance: Tensor, true: Tensor, is_labelled: Tensor) -> Tensor:
        shown = is_labelled[..., None]
        high = torch.where(shown, true, -torch.inf).amax(dim=1)
        low = torch.where(shown, true, torch.inf).amin(dim=1)
        extent = torch.nan_to_num(high - low, posinf=0.0, neginf=0.0).clamp_min(0).sort(dim=-1, descending=True).values
        area = 0.53 * extent[:, 0] * torch.maximum(extent[:, 1], extent[:, 0] / 4)
        return keypoint_similarity(distance, area, self.keypoint_sigmas, is_labelled)


def keypoint_similarity(distance: Tensor, area: Tensor, sigmas: Tensor, is_labelled: Tensor) -> Tensor:
    """Compute the OKS (B,): exp(-d^2 / (2 s^2 (2 sigma)^2)), the mean over labelled joints; 0 without any joint.

    `distance` and `is_labelled` (B, J), `area` s^2 (B,) in the square of the same unit, `sigmas` (J,). Source: Lin et
    al. 2014, COCO, whose evaluation adds the smallest step of a float64 to the area.
    """
    widths = 2 * (area[:, None] + np.spacing(1)) * (2 * sigmas) ** 2
    similarities = torch.where(is_labelled, torch.exp(-(distance**2) / widths), 0.0)
    return similarities.sum(dim=1) / is_labelled.sum(dim=1).clamp_min(1)
