"""Pose estimation: joint positions decoded from one heat map per joint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sightline.areas.pose.pictures import draw_joints
from sightline.contract import registry
from sightline.contract.binding import AvailableKeys
from sightline.contract.loss import Loss
from sightline.contract.types import Batch
from sightline.draw.pictures import Picture
from sightline.ops.voxels.cubes import CubePlacement, permute_axes, to_camera
from sightline.ops.voxels.heat_maps import Decoding, decode_heatmaps, heatmap_peaks
from sightline.parts.tasks.supervised import Decoder, Supervised
from sightline.view.skeletons import READ, TRUE, JointFigure

MIN_PEAK = 0.1
"""Peak of a heat map below which its joint counts as not found."""
_NUM_SHOWN = 4


@registry.tasks.add("pose")
class Pose(Supervised):
    """Predicts `joints_mm` (B, J, 3), camera frame, and each map's `peaks` (B, J) from `likelihood`.

    `decoding` is how a coordinate is read from a heat map: `parabola` around the largest cell, its middle (`argmax`),
    `soft` or `centroid`. Votes are averaged in camera coordinates, each pass converted by its own placement.
    Source: Moon et al. 2018, section 4 (heat maps of joints in a volume).
    """

    predicts = frozenset({"joints_mm", "peaks"})

    def __init__(
        self,
        *,
        model: nn.Module,
        losses: Mapping[str, Loss],
        batch_keys: AvailableKeys,
        output_keys: AvailableKeys,
        decoding: Decoding = "parabola",
        bones: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__(model=model, losses=losses, batch_keys=batch_keys, output_keys=output_keys)
        self.decoding: Decoding = decoding
        self._bones = tuple((first, last) for first, last in bones)

    def postprocess(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Any]:
        """Add `joints_mm` (B, J, 3), camera frame, and `peaks` (B, J), decoded from the heat maps."""
        likelihood = outputs["likelihood"]
        joints_mm = decode_joints(likelihood, CubePlacement.from_rows(batch["placement"]), decoding=self.decoding)
        return {**outputs, "joints_mm": joints_mm, "peaks": heatmap_peaks(likelihood).float()}

    def make_decoding(self, example: Batch) -> Decoder:
        """Make the decoding of an exported file: `joints_mm` (B, J, 3) and `peaks` (B, J), in the example's grid."""
        grid = CubePlacement.from_rows(example["placement"])

        def decode(outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
            rows, likelihood = batch["placement"].double(), outputs["likelihood"]
            placement = replace(
                grid, reference_mm=rows[:, :3], scale=rows[:, 3], angle_rad=rows[:, 4], shift=rows[:, 5:8]
            )
            joints_mm = decode_joints(likelihood, placement, decoding=self.decoding)
            return {"joints_mm": joints_mm.to(likelihood.dtype), "peaks": heatmap_peaks(likelihood)}

        return decode

    def vote(self, passes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Average joints (B, J, 3) and peaks (B, J) of several passes over varied input."""
        joints, peaks = zip(*((predictions["joints_mm"], predictions["peaks"]) for predictions in passes), strict=True)
        return {"joints_mm": torch.stack(joints).mean(dim=0), "peaks": torch.stack(peaks).mean(dim=0)}

    def show(self, batch: Batch, predictions: Mapping[str, Any]) -> list[Picture]:
        """Draw the first depth images of a batch at their cubes: true joints green, predicted ones red.

        Joints that were not found are hollow.
        """
        if not {"depth", "camera", "joints", "visible"} <= batch.keys():
            return []
        pictures = []
        for index in range(min(_NUM_SHOWN, len(predictions["joints_mm"]))):
            depth, camera = batch["depth"][index].float().cpu().numpy(), batch["camera"][index].double().cpu().numpy()
            joints, predicted = (x[index].double().cpu() for x in (batch["joints"], predictions["joints_mm"]))
            visible, is_found = batch["visible"][index].bool().cpu(), (predictions["peaks"][index] >= MIN_PEAK).cpu()
            figures = [
                JointFigure("true joints", joints.numpy(), visible.numpy(), self._bones, TRUE),
                JointFigure(
                    "predicted joints", predicted.numpy(), visible.numpy(), self._bones, READ, is_sure=is_found.numpy()
                ),
            ]
            panel = draw_joints(depth, camera, CubePlacement.from_rows(batch["placement"][index, None].cpu()), figures)
            error_mm = (predicted - joints).norm(dim=1)[visible]
            caption = f"{error_mm.mean():.1f} mm off on average" if len(error_mm) else "no joint is labelled"
            caption += "; true joints green, predicted ones red"
            pictures.append(Picture(f"joints_{index}", panel.pixels, caption))
        return pictures


def decode_joints(likelihood: Tensor, placement: CubePlacement, *, decoding: Decoding) -> Tensor:
    """Decode heat maps (B, J, V, V, V) to joints (B, J, 3) float64, in mm, camera frame.

    The authors' release reads the index of the largest cell alone, for any `decoding`, and adds half a voxel.
    """
    maps = permute_axes(likelihood.detach(), placement.axes)
    pooling = placement.size / maps.shape[-1]
    if placement.compat == "release":
        return to_camera((decode_heatmaps(maps, decoding="argmax", axes="xyz") - 0.5) * pooling, placement)
    return to_camera(decode_heatmaps(maps, decoding=decoding, axes="xyz") * pooling, placement)
