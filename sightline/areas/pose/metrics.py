"""Metrics of joints, keypoints and centres, by distances in slots of their own, so that any processes add up alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.arguments import NonNegativeFloat, PositiveFloat
from sightline.contract.metric import SampleSums, State

_CURVE_MM = range(81)


def distance_slots(num_samples: int, num_joints: int) -> State:
    """Allocate a slot for every joint of every frame: its distance in mm, and if it is labelled."""
    return {
        "distance_mm": torch.zeros(num_samples, num_joints, dtype=torch.float64),
        "labelled": torch.zeros(num_samples, num_joints, dtype=torch.int64),
        "seen": torch.zeros(num_samples, dtype=torch.int64),
    }


def record_distances(state: State, joints_mm: Tensor, joints: Tensor, visible: Tensor, sample_index: Tensor) -> None:
    """Record the distances of joints_mm and joints (B, J, 3), visible (B, J), in their slots.

    Raises ValueError for shapes that differ and for NaN.
    """
    if joints_mm.shape != joints.shape or visible.shape != joints.shape[:2]:
        raise ValueError(
            f"joints_mm: found the shape {tuple(joints_mm.shape)} for joints {tuple(joints.shape)} of which "
            f"{tuple(visible.shape)} are the flags of visible ones; all are (B, J, 3) and (B, J)"
        )
    bad = ~torch.isfinite(joints_mm).all(dim=-1) & visible
    if bool(bad.any()):
        sample = int(sample_index[bad.any(dim=1)][0])
        raise ValueError(
            f"joints_mm: {int(bad.sum())} joints are not finite, first in sample {sample}; find where with "
            "`sightline check`"
        )
    distance = (joints_mm.double() - joints.double()).norm(dim=-1)
    device = state["distance_mm"].device
    state["distance_mm"][sample_index] += torch.where(visible, distance, 0.0).to(device)
    state["labelled"][sample_index] += visible.long().to(device)
    state["seen"][sample_index] += 1


class _DistanceMetric:
    """Base of metrics of joint distances, with a state of slots."""

    slots = frozenset({"distance_mm", "labelled", "seen"})

    def __init__(self, *, num_joints: int, joint_names: Sequence[str]) -> None:
        self.num_joints = num_joints
        self.joint_names = tuple(joint_names)

    def new_state(self, *, num_samples: int = 0) -> State:
        return distance_slots(num_samples, self.num_joints)

    def update(self, state: State, *, joints_mm: Tensor, joints: Tensor, visible: Tensor, sample_index: Tensor) -> None:
        """Add a batch: `joints_mm` predicted and `joints` true (B, J, 3), in mm.

        Joints that are not `visible` (B, J) do not count.
        """
        record_distances(state, joints_mm, joints, visible.bool(), sample_index)


@registry.metrics.add("joint_error")
class JointError(_DistanceMetric):
    """Mean joint error in mm over the visible joints of all frames, its median and maximum; frames within a limit.

    `frames_within` is the share of frames whose worst joint is within `threshold_mm`; the curve over 0 to 80 mm, by the
    worst and by the mean joint of a frame and by single joints, is in the tables. A distance at a threshold is within
    it.

    >>> import torch
    >>> from sightline.parts.metrics import Meter
    >>> from sightline.areas.pose.metrics import JointError
    >>> joints, visible = torch.zeros(2, 2, 3), torch.tensor([[True, True], [True, False]])
    >>> joints_mm = joints + torch.tensor([[[3.0, 4, 0]], [[0, 24, 7]]])  # off by 5 and 25 mm
    >>> meter = Meter(JointError(num_joints=2, joint_names=("wrist", "thumb")))
    >>> meter.update(joints_mm=joints_mm, joints=joints, visible=visible, sample_index=torch.arange(2))
    >>> meter.compute()
    {'mean_error_mm': 11.666666666666666, 'median_error_mm': 5.0, 'max_error_mm': 25.0, 'frames_within': 0.5}

    Source: Oberweger et al. 2015, Hands deep in deep learning, section 5.1.
    """

    higher_is_better: Mapping[str, bool] = {
        **dict.fromkeys(("mean_error_mm", "median_error_mm", "max_error_mm", "error_mm"), False),
        "frames_within": True,
    }

    def __init__(self, *, num_joints: int, joint_names: tuple[str, ...], threshold_mm: NonNegativeFloat = 20.0) -> None:
        super().__init__(num_joints=num_joints, joint_names=joint_names)
        self.threshold_mm = threshold_mm

    def compute(self, state: State) -> dict[str, float]:
        every = state["distance_mm"][state["labelled"] > 0]
        if not len(every):
            return dict.fromkeys(("mean_error_mm", "median_error_mm", "max_error_mm", "frames_within"), torch.nan)
        worst, _ = _frame_distances(state)
        return {
            "mean_error_mm": every.mean().item(),
            "median_error_mm": every.median().item(),
            "max_error_mm": every.max().item(),
            "frames_within": _share(worst, self.threshold_mm),
        }

    def per_class(self, state: State) -> dict[str, dict[str, Any]]:
        """Return, by joint name, `error_mm`, the mean over the frames in which it is visible, and their `count`."""
        counts = state["labelled"].sum(dim=0)
        means = state["distance_mm"].sum(dim=0) / counts
        return {
            name: {"error_mm": mean, "count": count}
            for name, mean, count in zip(self.joint_names, means.tolist(), counts.tolist(), strict=True)
        }

    def per_sample(self, state: State) -> Tensor:
        """Return the mean distance (num_samples,) float64 of each frame; NaN if none of its joints counts."""
        return state["distance_mm"].sum(dim=1) / state["labelled"].sum(dim=1)

    def sums(self, state: State) -> dict[str, SampleSums]:
        """Return the sums of `mean_error_mm`, of each frame."""
        distance, labelled = (state[name].sum(dim=1, keepdim=True) for name in ("distance_mm", "labelled"))
        return {"mean_error_mm": SampleSums(distance, labelled)}

    def tables(self, state: State) -> dict[str, Any]:
        """Return `error_curve`: the shares within 0 to 80 mm, of frames by worst and mean joint, and of joints."""
        worst, mean = _frame_distances(state)
        every = state["distance_mm"][state["labelled"] > 0]
        curves = {"frames_by_worst": worst, "frames_by_mean": mean, "joints": every}
        shares = {name: [_share(values, float(mm)) for mm in _CURVE_MM] for name, values in curves.items()}
        return {"error_curve": {"threshold_mm": list(_CURVE_MM), **shares}}


@registry.metrics.add("detection_rate")
class DetectionRate(_DistanceMetric):
    """Detection rate (mAP at 10 cm): the share of frames with a joint error below `threshold_mm`, mean over joints.

    Published as mAP, though nothing is ranked.

    >>> import torch
    >>> from sightline.parts.metrics import Meter
    >>> from sightline.areas.pose.metrics import DetectionRate
    >>> joints, visible = torch.zeros(2, 2, 3), torch.tensor([[True, True], [True, False]])
    >>> joints_mm = joints + torch.tensor([[[30.0, 40, 0]], [[0, 240, 70]]])  # off by 50 and 250 mm
    >>> meter = Meter(DetectionRate(num_joints=2, joint_names=("head", "foot")))
    >>> meter.update(joints_mm=joints_mm, joints=joints, visible=visible, sample_index=torch.arange(2))
    >>> meter.compute()
    {'detection_rate': 0.75}

    Source: Haque et al. 2016, Towards viewpoint invariant 3D human pose estimation, section 5.
    """

    higher_is_better: Mapping[str, bool] = {"detection_rate": True}

    def __init__(self, *, num_joints: int, joint_names: tuple[str, ...], threshold_mm: PositiveFloat = 100.0) -> None:
        super().__init__(num_joints=num_joints, joint_names=joint_names)
        self.threshold_mm = threshold_mm

    def compute(self, state: State) -> dict[str, float]:
        return {"detection_rate": self._rates(state).nanmean().item()}

    def per_class(self, state: State) -> dict[str, dict[str, Any]]:
        """Return the `detection_rate` by joint name."""
        rates = self._rates(state).tolist()
        return {name: {"detection_rate": rate} for name, rate in zip(self.joint_names, rates, strict=True)}

    def sums(self, state: State) -> dict[str, SampleSums]:
        """Return the sums of `detection_rate`, of each frame."""
        is_labelled = state["labelled"] > 0
        return {"detection_rate": SampleSums((state["distance_mm"] < self.threshold_mm) & is_labelled, is_labelled)}

    def _rates(self, state: State) -> Tensor:
        sums = self.sums(state)["detection_rate"]
        return sums.numerators.sum(dim=0).double() / sums.denominators.sum(dim=0)


def _frame_distances(state: State) -> tuple[Tensor, Tensor]:
    """Return the largest and the mean distance (F,) of every frame with a visible joint."""
    counts = state["labelled"].sum(dim=1)
    shown = counts > 0
    return state["distance_mm"][shown].amax(dim=1), (state["distance_mm"].sum(dim=1) / counts)[shown]


def _share(values: Tensor, threshold: float) -> float:
    return (values <= threshold).double().mean().item()


@registry.metrics.add("keypoints")
class Keypoints:
    """PCK and OKS: joints off by at most `share` of a length of the subject, and the mean keypoint similarity.

    `pck` is the share of joints, `oks` the mean similarity. The length joins two joints of the true pose: wrist and
    middle knuckle of a hand, neck and torso of a body. OKS is exp(-d^2 / (2 s^2 (2 sigma)^2)), the mean over the
    visible joints of a frame, with s^2 = 0.53 e1 max(e2, e1 / 4) of the extents e1 >= e2 of the true joints: our form
    for three dimensions, not a published one. `oks_ap` is the share of frames above 0.50 to 0.95.

    >>> import torch
    >>> from sightline.parts.metrics import Meter
    >>> from sightline.areas.pose.metrics import Keypoints
    >>> joints = torch.tensor([[[0.0, 0, 0], [100, 0, 0], [100, 50, 0]]])
    >>> joints_mm = joints + torch.tensor([[[0.0, 0, 0], [0, 0, 0], [0, 0, 999]]])  # the last one far off
    >>> meter = Meter(Keypoints(num_joints=3, pck_joints=(0, 1), keypoint_sigmas=(0.1, 0.1, 0.1)))
    >>> meter.update(joints_mm=joints_mm, joints=joints, visible=torch.ones(1, 3), sample_index=torch.tensor([0]))
    >>> meter.compute()
    {'pck': 0.6666666666666666, 'oks': 0.6666666666666666, 'oks_ap': 0.4}

    Source: Yang and Ramanan 2013 (PCK); Lin et al. 2014, COCO (OKS and its sigmas).
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
        distances = distance_slots(len(joints), self.num_joints)
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


@registry.metrics.add("centre_error")
class CentreError:
    """Centre error: the mean distance of refined points from the middle joint, its median and maximum.

    `centre_error_mm` is the mean, `reference_error_mm` that of the points which were refined: a refiner that does not
    get below it is of no use. Frames without a label of this joint do not count.

    >>> import torch
    >>> from sightline.parts.metrics import Meter
    >>> from sightline.areas.pose.metrics import CentreError
    >>> batch = {  # the joint at the origin, refined to be off by 5 instead of 10 mm
    ...     "centre_mm": torch.tensor([[3.0, 4, 0]]),
    ...     "reference": torch.tensor([[0.0, 0, 10]]),
    ...     "joints": torch.zeros(1, 1, 3),
    ...     "visible": torch.ones(1, 1),
    ...     "sample_index": torch.tensor([0]),
    ... }
    >>> meter = Meter(CentreError(centre_joint=0))
    >>> meter.update(**batch)
    >>> meter.compute()
    {'centre_error_mm': 5.0, 'median_centre_error_mm': 5.0, 'max_centre_error_mm': 5.0, 'reference_error_mm': 10.0}

    Source: Oberweger and Lepetit 2017, DeepPrior++.
    """

    slots = frozenset({"distance_mm", "labelled", "seen"})
    higher_is_better = False

    def __init__(self, *, centre_joint: int) -> None:
        self.centre_joint = centre_joint

    def new_state(self, *, num_samples: int = 0) -> State:
        return distance_slots(num_samples, 2)

    def update(
        self,
        state: State,
        *,
        centre_mm: Tensor,
        reference: Tensor,
        joints: Tensor,
        visible: Tensor,
        sample_index: Tensor,
    ) -> None:
        """Add a batch: `centre_mm` refined and `reference` (B, 3), `joints` true (B, J, 3), all in mm.

        `visible` (B, J).
        """
        estimates = torch.stack([centre_mm, reference.to(centre_mm)], dim=1)
        middle = joints[:, self.centre_joint, None].expand(-1, 2, -1)
        record_distances(
            state, estimates, middle, visible[:, self.centre_joint, None].bool().expand(-1, 2), sample_index
        )

    def compute(self, state: State) -> dict[str, float]:
        is_labelled = state["labelled"][:, 0] > 0
        refined, unrefined = state["distance_mm"][is_labelled].unbind(dim=1)
        names = ("centre_error_mm", "median_centre_error_mm", "max_centre_error_mm", "reference_error_mm")
        if not len(refined):
            return dict.fromkeys(names, torch.nan)
        figures = (refined.mean(), refined.median(), refined.max(), unrefined.mean())
        return {name: figure.item() for name, figure in zip(names, figures, strict=True)}

    def sums(self, state: State) -> dict[str, SampleSums]:
        """Return the sums of `centre_error_mm`, of each frame."""
        return {"centre_error_mm": SampleSums(state["distance_mm"][:, :1], state["labelled"][:, :1])}

    def per_sample(self, state: State) -> Tensor:
        """Return the distance (num_samples,) float64 of each frame's refined point.

        NaN if its joint is not labelled.
        """
        return state["distance_mm"][:, 0] / state["labelled"][:, 0]
