"""Metrics of joints, by distances in slots of their own, so that any processes add up alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.arguments import NonNegativeFloat, PositiveFloat
from sightline.contract.metric import SampleSums, State

_CURVE_MM = range(81)


class _DistanceMetric:
    """Base of metrics of joint distances, with a state of slots: a joint's distance in mm, and if it is labelled."""

    slots = frozenset({"distance_mm", "labelled"})

    def __init__(self, *, num_joints: int, joint_names: Sequence[str]) -> None:
        self.num_joints = num_joints
        self.joint_names = tuple(joint_names)

    def new_state(self, *, num_samples: int = 0) -> State:
        return {
            "distance_mm": torch.zeros(num_samples, self.num_joints, dtype=torch.float64),
            "labelled": torch.zeros(num_samples, self.num_joints, dtype=torch.int64),
        }

    def update(self, state: State, *, joints_mm: Tensor, joints: Tensor, visible: Tensor, sample_index: Tensor) -> None:
        """Add a batch: `joints_mm` predicted and `joints` true (B, J, 3), in mm.

        Joints that are not `visible` (B, J) do not count. Raises ValueError for shapes that differ and for NaN.
        """
        if joints_mm.shape != joints.shape or visible.shape != joints.shape[:2]:
            raise ValueError(
                f"joints_mm: found the shape {tuple(joints_mm.shape)} for joints {tuple(joints.shape)} of which "
                f"{tuple(visible.shape)} are the flags of visible ones; all are (B, J, 3) and (B, J)"
            )
        visible = visible.bool()
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
