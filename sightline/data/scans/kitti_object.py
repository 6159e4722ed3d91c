"""KITTI object detection scans as a segmentation set: each point has the type of its labelled box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le

from sightline import registry
from sightline.arguments import Count, FractionBelowOne
from sightline.data.scans.kitti_object_files import PointsInBoxRule, image_size_px, read_frame
from sightline.data.scans.label_maps import read_label_map
from sightline.data.scans.labelled_scans import LabelledScans, ScanSampling
from sightline.data.scans.scan_preparation import ListedScan, read_name_lists, scan_plan
from sightline.data.scans.scan_samples import RawScan
from sightline.data.scans.scan_survey import survey_scans
from sightline.data.scans.sensors import SensorBlock, make_sensor
from sightline.data.store.columns import ColumnSpec
from sightline.data.store.location import prepared_root
from sightline.data.store.prepared_set import open_prepared, prepare_command, summarise_folder
from sightline.data.store.prepared_writer import Progress, write_prepared_set
from sightline.data.store.splits import make_splits
from sightline.errors import DataError

__all__ = ["KittiObject"]

LABEL_MAPS = {"kitti_object": "kitti_object.yaml"}
_SUFFIX_BY_FOLDER = {"velodyne": ".bin", "label_2": ".txt", "calib": ".txt", "image_2": ".png"}
_MAX_NAMED = 10
Margin = Annotated[float, Ge(0.0), Le(1.0)]


@registry.data.add("kitti_object")
class KittiObject(LabelledScans):
    """Scans of KITTI's object data set with the classes of SqueezeSeg, by the boxes that contain the points.

    `crop: camera` leaves out points outside the image, where nothing is labelled. `tested` are beginnings of frame
    numbers; without them the lists of the source decide, or the last `test_share` of the frames. Points in DontCare
    regions are neither trained on nor scored; background is.
    Scans with less than `min_labelled` of labels are not trained on; `balanced` draws rare classes more often.
    Source: Geiger et al. 2012; the classes of Wu et al. 2018.
    """

    set_name = "kitti_object"
    _value_columns = ("image_size_px",)

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        crop: Literal["camera", "none"] = "camera",
        tested: tuple[str, ...] = (),
        label_map: str = "kitti_object",
        sensor: SensorBlock | None = None,
        test_share: FractionBelowOne = 0.2,
        validation_share: FractionBelowOne = 0.1,
        min_labelled: FractionBelowOne = 0.0,
        balanced: bool = False,
    ) -> None:
        prepared = open_prepared(prepared_root(root, self.set_name), set_names=(self.set_name,))
        front: SensorBlock = {"azimuth_deg": (45.0, -45.0)} if crop == "camera" else {}
        self._crop = crop
        super().__init__(
            prepared=prepared,
            split=split,
            parts=make_splits(
                prepared, test_names=tested, test_share=test_share, validation_share=validation_share, what="scan"
            ),
            label_map=read_label_map(label_map, LABEL_MAPS),
            sensor=make_sensor({**front, **(sensor or {})}, preset="hdl64", owner=self.set_name),
            frames=ScanSampling(min_labelled, balanced),
        )

    @classmethod
    def prepare(
        cls,
        *,
        source: Path,
        target: Path,
        name: str,
        progress: Progress,
        image_px: tuple[Count, Count] | None = None,
        margin_m: Margin = 0.0,
        ground_m: Margin = 0.0,
    ) -> dict[str, Any]:
        """List scans, labels and calibrations in place, and count the points of each type; returns the manifest.

        Boxes are widened by `margin_m`; points less than `ground_m` above a box's bottom count as background.
        `image_px` (width, height) replaces missing images. Incomplete frames are left out, with a note. Raises
        DataError for damaged files and if no frame is complete.
        """
        assert name == cls.set_name, f"{cls.__name__} prepares '{cls.set_name}', not '{name}'"
        root = source.expanduser().resolve()
        folder = _find_frame_folder(root)
        frames, incomplete = _find_complete_frames(folder, needs_image=image_px is None)
        lists = next((path for path in (root / "ImageSets", root.parent / "ImageSets") if path.is_dir()), root)
        parts, notes = read_name_lists(lists, list(frames))
        box_rule = PointsInBoxRule(margin_m, ground_m)
        scans = [
            _list_scan(part, frame, frames[frame], image_px, box_rule)
            for part, names in parts.items()
            for frame in names
        ]
        plan = scan_plan(
            set_name=name,
            layout="object",
            root=root,
            scans=scans,
            columns={"image_size_px": ColumnSpec((2,), "int64")},
            about={
                "split": "by data.tested, by lists, or by the order of frames, whose neighbours in time may be apart"
            },
            options={"margin_m": margin_m, "ground_m": ground_m, "image_px": list(image_px) if image_px else None},
            notes=[*notes, *incomplete],
        )
        return write_prepared_set(plan, target, progress=progress)

    @classmethod
    def survey(cls, source: Path) -> dict[str, Any]:
        """Survey point types and the sensor, and compare it with an HDL-64E's front view. Raises as `prepare`.

        Frames without an image are assumed to have 1242 x 375 pixels.
        """
        root = source.expanduser().resolve()
        frames, _ = _find_complete_frames(_find_frame_folder(root), needs_image=False)
        scans = [_list_scan("", name, paths, (1242, 375), PointsInBoxRule()) for name, paths in frames.items()]
        readers = {
            scan.files[0]: partial(
                read_frame,
                *scan.files,
                size_px=scan.values["image_size_px"],
                box_rule=PointsInBoxRule(),
                visible_only=True,
            )
            for scan in scans
        }
        sensor = make_sensor({"azimuth_deg": (45.0, -45.0)}, preset="hdl64", owner=cls.set_name)
        return survey_scans(readers, source=root, label_map=read_label_map("kitti_object", LABEL_MAPS), sensor=sensor)

    @classmethod
    def card(cls) -> dict[str, Any]:
        """Description, accepted layouts, download page and licence."""
        return {
            "set": cls.set_name,
            "classes": ", ".join(read_label_map("kitti_object", LABEL_MAPS).class_names),
            "layouts": {
                "object": "training/velodyne/<nnnnnn>.bin, label_2/<nnnnnn>.txt, calib/<nnnnnn>.txt, "
                "image_2/<nnnnnn>.png; lists of frames in ImageSets/train.txt and val.txt, if there"
            },
            "home": "https://www.cvlibs.net/datasets/kitti/eval_object.php?obj_benchmark=3d",
            "terms": "CC BY-NC-SA 3.0; nothing is downloaded for you",
            "cite": "Geiger et al. 2012, Are we ready for autonomous driving? The KITTI vision benchmark suite",
            "prepare": prepare_command(cls.set_name, "DIR"),
        }

    def _read_files(self, files: tuple[Path, ...], values: Mapping[str, np.ndarray]) -> RawScan:
        options = self._prepared.manifest["options"]
        width, height = values["image_size_px"].tolist()
        box_rule = PointsInBoxRule(options["margin_m"], options["ground_m"])
        return read_frame(*files, size_px=(width, height), box_rule=box_rule, visible_only=self._crop == "camera")


def _find_frame_folder(root: Path) -> Path:
    """Find the folder with the frames of a tree. Raises DataError if there is none."""
    for folder in (root / "training", root):
        if (folder / "velodyne").is_dir():
            return folder
    contents = f"holds {summarise_folder(root)}" if root.is_dir() else "there is no such folder"
    raise DataError(f"{root}: {contents}; velodyne, label_2, calib and image_2 are needed, in it or in training")


def _find_complete_frames(folder: Path, *, needs_image: bool) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """Return the files of every complete frame, and a note that names the incomplete frames."""
    files_by_part = {
        part: {path.stem: path for path in sorted((folder / part).glob(f"*{end}"))}
        for part, end in _SUFFIX_BY_FOLDER.items()
    }
    needed = [part for part in _SUFFIX_BY_FOLDER if part != "image_2" or needs_image]
    frames = sorted(set().union(*files_by_part.values()))
    missing_by_frame = {frame: [part for part in needed if frame not in files_by_part[part]] for frame in frames}
    complete = {
        frame: {part: paths[frame] for part, paths in files_by_part.items() if frame in paths}
        for frame, missing in missing_by_frame.items()
        if not missing
    }
    lines = [f"{frame} lacks {', '.join(parts)}" for frame, parts in missing_by_frame.items() if parts]
    if not complete:
        first = f"; {lines[0]}" if lines else ""
        advice = "; if there are no images, give their size: image_px=[1242, 375]" if needs_image else ""
        raise DataError(f"{folder}: no frame has all of {', '.join(needed)}{first}{advice}")
    more = f", and {len(lines) - _MAX_NAMED} more" if len(lines) > _MAX_NAMED else ""
    return complete, [f"{len(lines)} frames left out: {'; '.join(lines[:_MAX_NAMED])}{more}"] if lines else []


def _list_scan(
    part: str, frame: str, paths: Mapping[str, Path], image_px: Sequence[int] | None, box_rule: PointsInBoxRule
) -> ListedScan:
    width, height = image_size_px(paths["image_2"]) if "image_2" in paths else image_px or (0, 0)
    files = (paths["velodyne"], paths["label_2"], paths["calib"])
    read = partial(read_frame, *files, size_px=(width, height), box_rule=box_rule)
    return ListedScan(part, frame, files, read, {"image_size_px": (width, height)})
