"""Data set `kitti_boxes3d`: KITTI's object data with its 3D boxes, in the frame of the scanner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from sightline.areas.boxes3d.scored_frames import truth_rows
from sightline.areas.boxes3d.sets.box_listing import ListedFrame
from sightline.areas.boxes3d.sets.box_planning import plan_boxes, plan_frames
from sightline.areas.boxes3d.sets.labelled_boxes3d import CloudReader, LabelledBoxes3d
from sightline.contract import registry
from sightline.contract.arguments import Count, FractionBelowOne
from sightline.contract.types import Sample, SampleKey
from sightline.store.boxes3d.box_sample import CAMERA_FIELDS, make_camera_fields
from sightline.store.boxes3d.box_table import BoxTable, ImageBoxes
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
from sightline.store.boxes3d.kitti_rows import KITTI_READING, move_to_scanner
from sightline.store.boxes3d.label_rows import Form, LabelFile, StatedBox
from sightline.store.boxes3d.survey import FramePoints
from sightline.store.prepared.columns import ColumnSpec
from sightline.store.prepared.name_lists import BY_NAME, describe_split, read_name_lists
from sightline.store.prepared.prepared_data import SetSpec
from sightline.store.prepared.prepared_writer import PreparationPlan
from sightline.store.prepared.splits import make_splits

_CLOUD_COLUMNS = ("x", "y", "z", "remission")
_SIZE = {"image_size_px": ColumnSpec((2,), "int64")}
Crop = Literal["camera", "none"]


@registry.data.add("kitti_boxes3d")
class KittiBoxes3d(LabelledBoxes3d):
    """Scans of KITTI's object data set with 3D boxes in the frame of the scanner, by the matrices' names.

    `crop: camera` leaves out points outside the image, where nothing is labelled. `classes` are those that samples
    have; a Van beside Car, and a Person_sitting beside Pedestrian, are neither targets nor background. DontCare regions
    have no 3D box, and are no box of a sample. Samples have the camera of their frame and the labels of its file, as
    KITTI's AP takes them. `tested` are beginnings of frame numbers; without them the lists of the source decide, or the
    last `test_share` of the frames.
    Source: Geiger et al. 2012, Are we ready for autonomous driving?
    """

    spec = SetSpec(name="kitti_boxes3d")
    neighbours: ClassVar[Mapping[str, str]] = {"Van": "Car", "Person_sitting": "Pedestrian"}

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        crop: Crop = "camera",
        classes: tuple[str, ...] = ("Car", "Pedestrian", "Cyclist"),
        remission: bool = True,
        tested: tuple[str, ...] = (),
        test_share: FractionBelowOne = 0.2,
        validation_share: FractionBelowOne = 0.1,
    ) -> None:
        self._crop = crop
        prepared = self.open_root(root)
        parts = make_splits(
            prepared, test_names=tested, test_share=test_share, validation_share=validation_share, what="frame"
        )
        super().__init__(prepared=prepared, split=split, parts=parts, classes=classes, remission=remission)
        self.info = replace(self.info, fields={**self.info.fields, **CAMERA_FIELDS})

    def __getitem__(self, key: SampleKey) -> Sample:
        """Read one frame as new tensors, with the fields of its camera."""
        calibration = self.calibration(key.index)
        rows, image, _ = truth_rows(self.box_table(key.index), self._classes)
        assert calibration.image_px is not None
        camera = make_camera_fields(calibration, calibration.image_px, np.column_stack([rows, image]))
        return {**super().__getitem__(key), **camera}

    @classmethod
    def plan(cls, root: Path, *, image_px: tuple[Count, Count] | None = None) -> PreparationPlan:
        """Plan to list scans, labels and calibrations in place, and to store the boxes in the scanner's frame.

        `image_px` (width, height) replaces missing images. Incomplete frames are left out, with a note. Raises
        DataError for damaged files and if no frame is complete.
        """
        folder = find_frame_folder(root)
        complete, incomplete = find_complete_frames(folder, needs_image=image_px is None)
        lists = next((path for path in (root / "ImageSets", root.parent / "ImageSets") if path.is_dir()), root)
        parts, notes = read_name_lists(lists, list(complete))
        objects = {name: read_objects(paths["label_2"]) for name, paths in complete.items()}
        frames = [
            _list_frame(part, name, complete[name], objects[name]) for part, names in parts.items() for name in names
        ]
        sizes = {
            name: image_size_px(paths["image_2"]) if "image_2" in paths else image_px or (0, 0)
            for name, paths in complete.items()
        }
        reader = CloudReader(_CLOUD_COLUMNS)
        planned = plan_boxes(frames, reader, stated={}, crop=partial(_crop_frame, sizes=sizes))
        class_names = TYPES[1:DONT_CARE]
        tables = {
            frame.name: _add_regions(planned.tables[frame.name], objects[frame.name], class_names) for frame in frames
        }
        planned = replace(planned, tables=tables, class_names=class_names)
        split = describe_split(parts, "lists of names", otherwise=f"{BY_NAME}, which may be neighbours in time")
        return plan_frames(
            cls,
            root=root,
            layout="object",
            frames=frames,
            planned=planned,
            reader=reader,
            about={"split": split},
            options={"image_px": list(image_px) if image_px else None, "columns": list(_CLOUD_COLUMNS)},
            notes=[*notes, *incomplete],
            values={name: {"image_size_px": size} for name, size in sizes.items()},
            columns=_SIZE,
        )

    def calibration(self, index: int) -> Calibration:
        """Return the calibration of a frame, with the size of its image."""
        stored, row = self._locate(index)
        width, height = map(int, self._prepared.row(stored, "image_size_px", row))
        return read_calibration(self._prepared.listing(stored).paths(row)[2])._replace(image_px=(width, height))

    def _read_frame(self, files: Sequence[Path], stored: str, row: int) -> FramePoints:
        frame = super()._read_frame(files, stored, row)
        if self._crop == "none":
            return frame
        width, height = map(int, self._prepared.row(stored, "image_size_px", row))
        return crop_to_image(frame, read_calibration(files[2]), (width, height))


def crop_to_image(frame: FramePoints, calibration: Calibration, size_px: tuple[int, int]) -> FramePoints:
    """Return the points that are in the image: column and row from 0 to below its size, in front of the camera."""
    pixels = calibration.to_image(calibration.to_camera(frame.points))
    with np.errstate(invalid="ignore"):  # points behind the camera are NaN, and in no image
        is_visible = ((pixels >= 0) & (pixels < size_px)).all(axis=1)
    remission = None if frame.remission is None else frame.remission[is_visible]
    return FramePoints(frame.points[is_visible], remission)


def _crop_frame(frame: ListedFrame, points: FramePoints, *, sizes: Mapping[str, tuple[int, int]]) -> FramePoints:
    return crop_to_image(points, read_calibration(frame.files[2]), sizes[frame.name])


def _list_frame(split: str, name: str, paths: Mapping[str, Path], objects: KittiObjects) -> ListedFrame:
    """List a frame with the boxes of its objects, without DontCare regions."""
    stated = []
    for kind, corners, box, view in zip(*objects, strict=True):
        if kind != DONT_CARE:
            x, y, z, length, height, width, turn = box.tolist()
            image = (*corners.tolist(), *view.tolist())
            where = str(paths["label_2"])
            stated.append(StatedBox(TYPES[kind], (x, y, z, height, width, length, turn), where, image=image))
    calibration = read_calibration(paths["calib"])
    convert = partial(move_to_scanner, camera_of_velodyne=calibration.camera_of_velodyne)
    labels = LabelFile(paths["label_2"], "kitti", {"": stated}, {"kitti": Form(KITTI_READING, convert=convert)})
    return ListedFrame(split, name, (paths["velodyne"], paths["label_2"], paths["calib"]), labels)


def _add_regions(table: BoxTable, objects: KittiObjects, class_names: Sequence[str]) -> BoxTable:
    """Return the table of all rows of a file: DontCare regions have no class, and a box without extent."""
    is_region = objects.types == DONT_CARE
    boxes = np.zeros((len(is_region), 7))
    boxes[~is_region] = table.boxes
    truncated, occluded, alpha = objects.views.T
    rows = len(is_region)
    return BoxTable(
        boxes,
        np.where(is_region, -1, objects.types - 1),
        tuple(class_names),
        score=np.full(rows, np.nan),
        is_ignored=is_region,
        num_points=np.full(rows, -1),
        velocity=np.full((rows, 2), np.nan),
        track=np.full(rows, -1),
        frame=table.frame,
        image=ImageBoxes(objects.boxes_image_px.copy(), truncated.copy(), occluded.astype(np.int64), alpha.copy()),
    )
