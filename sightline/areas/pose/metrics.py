"""Metrics of joints and key points, by numbers in slots of their own, so that any processes add up alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.arguments import NonNegativeFloat, PositiveFloat
from sightline.contract.errors import ConfigError
from sightline.contract.metric import Metric, SampleShares, SampleSums, State
from sightline.contract.schema import suggest

_CURVE_MM = range(81)
_CURVE_SHARES = [percent / 100 for percent in range(51)]
"""Shares of a length at which the PCK curve is given; its area ends at the last one."""
_OKS_LEVELS = [twentieths / 20 for twentieths in range(10, 20)]


def measure_distances(joints_mm: Tensor, joints: Tensor, visible: Tensor, sample_index: Tensor) -> Tensor:
    """Measure the distances (B, J) float64 of predicted and true joints (B, J, D); 0 where `visible` (B, J) is False.

    Raises ValueError for shapes that differ, and for visible joints whose prediction or label is not finite.
    """
    if joints_mm.shape != joints.shape or visible.shape != joints.shape[:2]:
        raise ValueError(
            f"joints_mm: found the shape {tuple(joints_mm.shape)} for joints {tuple(joints.shape)} of which "
            f"{tuple(visible.shape)} are the flags of visible ones; all are (B, J, 3) and (B, J)"
        )
    for name, positions in (("joints_mm", joints_mm), ("joints", joints)):
        bad = ~torch.isfinite(positions).all(dim=-1) & visible
        if bool(bad.any()):
            sample = int(sample_index[bad.any(dim=1)][0])
            raise ValueError(
                f"{name}: {int(bad.sum())} joints are not finite, first in sample {sample}; find where with "
                "`sightline check`"
            )
    return torch.where(visible, (joints_mm.double() - joints.double()).norm(dim=-1), 0.0)


class _DistanceMetric(Metric):
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

        Joints that are not `visible` (B, J) do not count. Raises ValueError as `measure_distances`.
        """
        distance = measure_distances(joints_mm, joints, visible.bool(), sample_index)
        device = state["distance_mm"].device
        state["distance_mm"][sample_index] += distance.to(device)
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

    def class_intervals(self, state: State) -> dict[str, SampleSums]:
        """Return the sums of the `error_mm` of each joint, of each frame."""
        return {"error_mm": SampleSums(state["distance_mm"], state["labelled"], bounds=(0.0, torch.inf))}

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

    def class_intervals(self, state: State) -> dict[str, SampleShares]:
        """Return the frames in which each joint is within the threshold."""
        sums = self.sums(state)["detection_rate"]
        right, total = sums.numerators.sum(dim=0), sums.denominators.sum(dim=0)
        return {"detection_rate": SampleShares(right, total, num_samples=sums.num_samples)}

    def _rates(self, state: State) -> Tensor:
        sums = self.sums(state)["detection_rate"]
        return sums.numerators.sum(dim=0).double() / sums.denominators.sum(dim=0)


@registry.metrics.add("keypoints")
class Keypoints(Metric):
    """PCK and OKS: joints off by at most `share` of a length of the figure, and the similarity of key points.

    `pck` is the share of joints whose distance is at most `share` of the length between two joints of the true pose:
    wrist and middle knuckle of a hand, neck and torso of a body, or the joints that `length` names. `pck_auc` is the
    area below the curve of PCK from 0 to 0.5, divided by 0.5. Frames without a label of both joints do not count here.

    `oks` is the mean over frames of exp(-d^2 / (2 s^2 (2 sigma)^2)), the mean over the visible joints of a frame. s^2
    is the `area` of the figure where a batch has it (B,), as COCO has; else 0.53 e1 max(e2, e1 / 4) by the two largest
    extents of the visible true joints, our form for three dimensions: no standard is published. The deviations are
    those of the data set, or `sigmas`, one a joint. `oks_ap` is the share of frames whose OKS is at least a level, the
    mean over the levels 0.50, 0.55 to 0.95: there is one prediction a frame, and none is ranked.

    With `dimensions: 2` only x and y are compared. Where the length or the deviations are not known, its figures are
    left out. Raises ConfigError if neither is known, and for names and counts that do not fit the joints.

    >>> import torch
    >>> from sightline.parts.metrics import Meter
    >>> from sightline.areas.pose.metrics import Keypoints
    >>> joints = torch.tensor([[[0.0, 0, 0], [100, 0, 0], [100, 50, 0]]])
    >>> joints_mm = joints + torch.tensor([[[0.0, 0, 0], [0, 0, 0], [0, 0, 999]]])  # the last one far off
    >>> metric = Keypoints(joint_names=("wrist", "knuckle", "tip"), length=("wrist", "knuckle"), sigmas=(0.1, 0.1, 0.1))
    >>> meter = Meter(metric)
    >>> meter.update(joints_mm=joints_mm, joints=joints, visible=torch.ones(1, 3), sample_index=torch.tensor([0]))
    >>> {name: round(figure, 3) for name, figure in meter.compute().items()}
    {'pck': 0.667, 'pck_auc': 0.667, 'oks': 0.667, 'oks_ap': 0.4}

    Source: Yang and Ramanan 2013 (PCK); Lin et al. 2014, COCO (OKS).
    """

    slots = frozenset({"relative_distance", "similarity", "labelled", "has_length"})
    higher_is_better: Mapping[str, bool] = dict.fromkeys(("pck", "pck_auc", "oks", "oks_ap"), True)

    def __init__(
        self,
        *,
        joint_names: tuple[str, ...],
        pck_joints: tuple[int, int] | None = None,
        keypoint_sigmas: tuple[float, ...] = (),
        length: tuple[str, str] | None = None,
        sigmas: tuple[PositiveFloat, ...] = (),
        share: PositiveFloat = 0.2,
        dimensions: Literal[2, 3] = 3,
    ) -> None:
        self.joint_names = tuple(joint_names)
        for name in length or ():
            if name not in joint_names:
                raise ConfigError(f"length: there is no joint '{name}'{suggest(name, joint_names)}")
        if length and length[0] == length[1]:
            raise ConfigError(f"length: joins '{length[0]}' to itself; name two joints")
        if sigmas and len(sigmas) != len(joint_names):
            raise ConfigError(f"sigmas: found {len(sigmas)} for {len(joint_names)} joints; give one a joint")
        self.length_joints = tuple(map(joint_names.index, length)) if length else pck_joints
        self.sigmas = torch.tensor(sigmas or keypoint_sigmas, dtype=torch.float64)
        if self.length_joints is None and not len(self.sigmas):
            raise ConfigError(
                "metric 'keypoints': the data set states neither a length nor deviations of its joints; name two "
                f"joints by whose distance PCK measures, as in length: [{', '.join(joint_names[:2])}], or give sigmas"
            )
        self.share = share
        self.dimensions = dimensions

    def new_state(self, *, num_samples: int = 0) -> State:
        shape = (num_samples, len(self.joint_names))
        return {
            "relative_distance": torch.zeros(shape, dtype=torch.float64),
            "similarity": torch.zeros(shape, dtype=torch.float64),
            "labelled": torch.zeros(shape, dtype=torch.int64),
            "has_length": torch.zeros(num_samples, 1, dtype=torch.int64),
        }

    def update(
        self,
        state: State,
        *,
        joints_mm: Tensor,
        joints: Tensor,
        visible: Tensor,
        sample_index: Tensor,
        area: Tensor | None = None,
    ) -> None:
        """Add a batch: `joints_mm` predicted and `joints` true (B, J, D), D at least `dimensions`, in the same unit.

        Joints that are not `visible` (B, J) do not count; `area` (B,) is s^2 of OKS, in the square of that unit. Raises
        ValueError as `measure_distances`, and for joints of fewer coordinates.
        """
        if joints.shape[-1] < self.dimensions:
            raise ValueError(f"joints: have {joints.shape[-1]} coordinates; give the metric dimensions: 2")
        joints_mm, joints, is_visible = (
            joints_mm[..., : self.dimensions],
            joints[..., : self.dimensions],
            visible.bool(),
        )
        distance = measure_distances(joints_mm, joints, is_visible, sample_index)
        true, device = joints.double(), state["labelled"].device
        state["labelled"][sample_index] += is_visible.long().to(device)
        if self.length_joints is not None:
            first, second = self.length_joints
            length = (true[:, first] - true[:, second]).norm(dim=-1)[:, None]
            has_length = (is_visible[:, first] & is_visible[:, second])[:, None] & (length > 0)
            relative = torch.where(has_length, distance / torch.where(has_length, length, 1.0), 0.0)
            state["relative_distance"][sample_index] += relative.to(device)
            state["has_length"][sample_index] += has_length.long().to(device)
        if len(self.sigmas):
            area = _figure_area(true, is_visible) if area is None else area.double()
            similarity = keypoint_similarity(distance, area, self.sigmas.to(distance.device), is_visible)
            state["similarity"][sample_index] += similarity.to(device)

    def compute(self, state: State) -> dict[str, float]:
        figures = {}
        if self.length_joints is not None:
            relative = state["relative_distance"][self._is_counted(state)]
            area = (1 - relative / _CURVE_SHARES[-1]).clamp_min(0).mean()
            figures = {"pck": _share(relative, self.share), "pck_auc": area.item()}
        if len(self.sigmas):
            similarity, levels = self._frame_similarity(state), torch.tensor(_OKS_LEVELS, dtype=torch.float64)
            precision = (similarity[:, None] >= levels).double().mean()
            figures |= {"oks": similarity.mean().item(), "oks_ap": precision.item()}
        return figures

    def per_class(self, state: State) -> dict[str, dict[str, Any]]:
        """Return, by joint name, the figures of the joint alone, `pck` and `oks`, and the `count` of its frames."""
        counts = state["labelled"].sum(dim=0)
        figures: dict[str, Tensor] = {}
        if self.length_joints is not None:
            counted = self._is_counted(state)
            near = counted & (state["relative_distance"] <= self.share)
            figures["pck"] = near.sum(dim=0).double() / counted.sum(dim=0)
        if len(self.sigmas):
            figures["oks"] = state["similarity"].sum(dim=0) / counts
        return {
            name: {**{key: values[joint].item() for key, values in figures.items()}, "count": int(counts[joint])}
            for joint, name in enumerate(self.joint_names)
        }

    def sums(self, state: State) -> dict[str, SampleSums]:
        """Return the sums of `pck` and `oks`, of each frame."""
        sums = {}
        if self.length_joints is not None:
            counted = self._is_counted(state)
            near = counted & (state["relative_distance"] <= self.share)
            sums["pck"] = SampleSums(near.sum(dim=1, keepdim=True), counted.sum(dim=1, keepdim=True))
        if len(self.sigmas):
            has_joint = (state["labelled"] > 0).any(dim=1, keepdim=True)
            frames = torch.nan_to_num(_mean_over_labelled(state["similarity"], state["labelled"]))[:, None]
            sums["oks"] = SampleSums(frames, has_joint)
        return sums

    def class_intervals(self, state: State) -> dict[str, SampleSums | SampleShares]:
        """Return the frames in which each joint is near, and the sums of its similarity, of each frame."""
        sums: dict[str, SampleSums | SampleShares] = {}
        if self.length_joints is not None:
            counted = self._is_counted(state)
            near, num_frames = counted & (state["relative_distance"] <= self.share), int(counted.any(dim=1).sum())
            sums["pck"] = SampleShares(near.sum(dim=0), counted.sum(dim=0), num_samples=num_frames)
        if len(self.sigmas):
            sums["oks"] = SampleSums(state["similarity"], state["labelled"], bounds=(0.0, 1.0))
        return sums

    def tables(self, state: State) -> dict[str, Any]:
        """Return `pck_curve`, PCK at 0 to 0.5 of the length, of all joints and by joint; `oks_curve`, by level."""
        tables: dict[str, Any] = {}
        if self.length_joints is not None:
            counted, relative = self._is_counted(state), state["relative_distance"]
            by_joint = {
                name: [_share(relative[:, joint][counted[:, joint]], share) for share in _CURVE_SHARES]
                for joint, name in enumerate(self.joint_names)
            }
            joints = [_share(relative[counted], share) for share in _CURVE_SHARES]
            tables["pck_curve"] = {"share": _CURVE_SHARES, "joints": joints, "by_joint": by_joint}
        if len(self.sigmas):
            similarity = self._frame_similarity(state)
            frames = [(similarity >= level).double().mean().item() for level in _OKS_LEVELS]
            tables["oks_curve"] = {"level": _OKS_LEVELS, "frames": frames}
        return tables

    def _is_counted(self, state: State) -> Tensor:
        """Return which joints (F, J) count for PCK."""
        return (state["labelled"] > 0) & (state["has_length"] > 0)

    def _frame_similarity(self, state: State) -> Tensor:
        """Return the OKS of every frame with a visible joint."""
        similarity = _mean_over_labelled(state["similarity"], state["labelled"])
        return similarity[~similarity.isnan()]


def keypoint_similarity(distance: Tensor, area: Tensor, sigmas: Tensor, is_labelled: Tensor) -> Tensor:
    """Compute the similarity (B, J) of each joint, exp(-d^2 / (2 s^2 (2 sigma)^2)); 0 where it is not labelled.

    `distance` and `is_labelled` (B, J), `area` s^2 (B,) in the square of the same unit, `sigmas` (J,). Source: Lin et
    al. 2014, COCO, whose evaluation adds the smallest step of a float64 above 1 to the area.
    """
    widths = 2 * (area[:, None] + np.spacing(1)) * (2 * sigmas) ** 2
    return torch.where(is_labelled, torch.exp(-(distance**2) / widths), 0.0)


def _figure_area(true: Tensor, is_visible: Tensor) -> Tensor:
    """Return 0.53 e1 max(e2, e1 / 4) (B,) by the two largest extents of the visible joints (B, J, D); 0 without any."""
    shown = is_visible[..., None]
    high = torch.where(shown, true, -torch.inf).amax(dim=1)
    low = torch.where(shown, true, torch.inf).amin(dim=1)
    extent = torch.where(is_visible.any(dim=1)[:, None], high - low, 0.0).sort(dim=-1, descending=True).values
    return 0.53 * extent[:, 0] * torch.maximum(extent[:, 1], extent[:, 0] / 4)


def _mean_over_labelled(values: Tensor, labelled: Tensor) -> Tensor:
    """Return the mean (F,) of the values (F, J) of labelled joints, which are 0 elsewhere; NaN without any."""
    return values.sum(dim=1) / labelled.sum(dim=1)


def _frame_distances(state: State) -> tuple[Tensor, Tensor]:
    """Return the largest and the mean distance (F,) of every frame with a visible joint."""
    counts = state["labelled"].sum(dim=1)
    shown = counts > 0
    return state["distance_mm"][shown].amax(dim=1), (state["distance_mm"].sum(dim=1) / counts)[shown]


def _share(values: Tensor, threshold: float) -> float:
    return (values <= threshold).double().mean().item()
