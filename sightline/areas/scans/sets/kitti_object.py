"""KITTI object detection scans as a segmentation set: each point has the type of its labelled box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sightline.areas.scans.sets.labelled_scans import AHEAD, NamedScans, ScanSpec
from sightline.areas.scans.sets.scan_preparation import ListedScan, scan_plan
from sightline.contract import registry
from sightline.contract.arguments import Count, FractionBelowOne
from sightline.ops.boxes.points_in_boxes import points_in_boxes
from sightline.store.boxes3d.kitti_objects import (
    DONT_CARE,
    TYPES,
    Calibration,
    KittiObjects,
    find_complete_frames,
    find_frame_folder,
    image_size_px,
    read_calibration,
    read_objects,
)
from sightline.store.files.scan_files import read_bin
from sightline.store.files.scan_samples import RawScan
from sightline.store.files.sensors import SensorBlock
from sightline.store.prepared.columns import ColumnSpec
from sightline.store.prepared.name_lists import BY_NAME, describe_split, read_name_lists
from sightline.store.prepared.prepared_writer import PreparationPlan

OUTSIDE = len(TYPES)
"""Id of points outside the image, where nothing is labelled."""


def label_points_by_boxes(
    points: np.ndarray,
    objects: KittiObjects,
    calibration: Calibration,
    *,
    size_px: tuple[int, int],
) -> np.ndarray:
    """Compute the type (N,) int64 of every point (N, 3) of a scan: an index into `TYPES`, or OUTSIDE.

    The smallest of several boxes wins. A point in no box is DontCare if it projects into such a region, OUTSIDE if it
    is not in the image of `size_px` (width, height), else Background.
    """
    camera = calibration.to_camera(points)
    pixels = calibration.to_image(camera)
    with np.errstate(invalid="ignore"):  # points behind the camera are NaN, and in no region
        visible_mask = ((pixels >= 0) & (pixels < size_px)).all(axis=1)
        types = np.where(visible_mask, 0, OUTSIDE)
        for left, top, right, bottom in objects.boxes_image_px[objects.types == DONT_CARE]:
            in_region_mask = (pixels >= (left, top)) & (pixels <= (right, bottom))
            types[visible_mask & in_region_mask.all(axis=1)] = DONT_CARE
    box_indices = np.flatnonzero(objects.types != DONT_CARE)
    volumes = objects.boxes_camera[box_indices, 3:6].prod(axis=1)
    smallest_first = box_indices[np.argsort(-volumes, kind="stable")[::-1]]
    boxes = torch.from_numpy(objects.boxes_camera[smallest_first])
    box = points_in_boxes(torch.from_numpy(camera), boxes, frame="camera").numpy()
    types[box >= 0] = objects.types[smallest_first[box[box >= 0]]]
    return types


def read_frame(
    scan: Path,
    label: Path,
    calib: Path,
    *,
    size_px: tuple[int, int],
) -> RawScan:
    """Read a scan with the type of every point as its id."""
    table = read_bin(scan, num_columns=4)
    objects, calibration = read_objects(label), read_calibration(calib)
    ids = label_points_by_boxes(table[:, :3], objects, calibration, size_px=size_px)
    return RawScan(table[:, :3], table[:, 3], ids)


@registry.data.add("kitti_object")
class KittiObject(NamedScans):
    """Scans of KITTI's object data set with the classes of SqueezeSeg, by the boxes that contain the points.

    `crop: camera` leaves out points outside the image, where nothing is labelled. `tested` are beginnings of frame
    numbers; without them the lists of the source decide, or the last `test_share` of the frames. Points in DontCare
    regions are neither trained on nor scored; background is.
    Source: Geiger et al. 2012; the classes of Wu et al. 2018.
    """

    spec = ScanSpec(
        name="kitti_object",
        label_maps={"kitti_object": Path(__file__).with_name("kitti_object.yaml")},
        sensor=AHEAD,
    )
    _value_columns = ("image_size_px",)

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        crop: Literal["camera", "none"] = "camera",
        tested: tuple[str, ...] = (),
        label_map: str | None = None,
        sensor: SensorBlock | None = None,
        test_share: FractionBelowOne = 0.2,
        validation_share: FractionBelowOne = 0.1,
    ) -> None:
        self._crop = crop
        if crop == "none":
            full_turn: SensorBlock = {"azimuth_deg": (180.0, -180.0), **(sensor or {})}
            sensor = full_turn
        super().__init__(
            split=split,
            root=root,
            tested=tested,
            label_map=label_map,
            sensor=sensor,
            test_share=test_share,
            validation_share=validation_share,
        )

    @classmethod
    def plan(
        cls,
        root: Path,
        *,
        image_px: tuple[Count, Count] | None = None,
    ) -> PreparationPlan:
        """Plan to list scans, labels and calibrations in place, and to count the points of each type.

        `image_px` (width, height) replaces missing images. Incomplete frames are left out, with a note. Raises
        DataError for damaged files and if no frame is complete.
        """
        folder = find_frame_folder(root)
        frames, incomplete = find_complete_frames(folder, needs_image=image_px is None)
        lists = next((path for path in (root / "ImageSets", root.parent / "ImageSets") if path.is_dir()), root)
        parts, notes = read_name_lists(lists, list(frames))
        scans = [_list_scan(part, frame, frames[frame], image_px) for part, names in parts.items() for frame in names]
        return scan_plan(
            cls,
            layout="object",
            root=root,
            scans=scans,
            columns={"image_size_px": ColumnSpec((2,), "int64")},
            about={
                "split": describe_split(
                    parts, "lists of names", otherwise=f"{BY_NAME}, which may be neighbours in time"
                )
            },
            options={"image_px": list(image_px) if image_px else None},
            notes=[*notes, *incomplete],
        )

    @classmethod
    def read_files(
        cls, files: Sequence[Path], values: Mapping[str, np.ndarray], manifest: Mapping[str, Any]
    ) -> RawScan:
        """Read all points of a frame, with the type of each as its id."""
        width, height = map(int, values["image_size_px"])
        return read_frame(*files, size_px=(width, height))

    def _read_scan(self, files: Sequence[Path], values: Mapping[str, np.ndarray]) -> RawScan:
        scan = super()._read_scan(files, values)
        if self._crop == "none":
            return scan
        is_visible = scan.ids != OUTSIDE
        return RawScan(scan.points[is_visible], scan.remission[is_visible], scan.ids[is_visible])


def _list_scan(part: str, frame: str, paths: Mapping[str, Path], image_px: Sequence[int] | None) -> ListedScan:
    width, height = image_size_px(paths["image_2"]) if "image_2" in paths else image_px or (0, 0)
    files = (paths["velodyne"], paths["label_2"], paths["calib"])
    return ListedScan(part, frame, files, {"image_size_px": (width, height)})
