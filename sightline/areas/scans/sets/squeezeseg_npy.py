"""SqueezeSeg range images of KITTI: 10,848 labelled front views, read as points in file order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sightline.areas.scans.sets.labelled_scans import AHEAD, NamedScans, ScanSpec
from sightline.areas.scans.sets.scan_preparation import ListedScan, scan_plan
from sightline.contract import registry
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import ScanInputSpec
from sightline.store.files.array_files import read_npy
from sightline.store.files.scan_reading import range_image_shape, read_range_image
from sightline.store.files.scan_samples import RawScan
from sightline.store.files.sensors import Sensor
from sightline.store.prepared.name_lists import describe_split, read_name_lists
from sightline.store.prepared.prepared_set import PreparedSet, describe_contents
from sightline.store.prepared.prepared_writer import PreparationPlan


@registry.data.add("squeezeseg_npy")
class SqueezeSegNpy(NamedScans):
    """Range images of SqueezeSeg as scans: the filled pixels, row by row, with `ring` (the row) and `column`.

    `tested` are beginnings of names, such as drives, whose images are tested on; without them the lists of the source
    decide, or the last `test_share` of the images in the order of their names. The last `validation_share` of the rest
    chooses the checkpoint. Background is a class that is scored.
    Source: Wu et al. 2018 (SqueezeSeg).
    """

    spec = ScanSpec(
        name="squeezeseg_npy",
        label_maps={"squeezeseg_npy": Path(__file__).with_name("squeezeseg.yaml")},
        sensor=AHEAD,
    )
    has_rings = True
    has_columns = True

    @classmethod
    def plan(cls, root: Path) -> PreparationPlan:
        """Plan to list the images in place, and to count the labels of each.

        Raises DataError for files of different shapes, for channels in another order, and for invalid labels.
        """
        folder = next((path for path in (root / "lidar_2d", root) if any(path.glob("*.npy"))), None)
        if folder is None:
            raise DataError(
                f"{root}: {describe_contents(root)}; files <date>_<drive>_<frame>.npy are needed, in it or in lidar_2d"
            )
        paths = {path.stem: path for path in sorted(folder.glob("*.npy"))}
        height, width = range_image_shape(read_npy(next(iter(paths.values()))), next(iter(paths.values())))
        parts, notes = read_name_lists(root / "ImageSet", list(paths))
        scans = [ListedScan(part, stem, (paths[stem],)) for part, names in parts.items() for stem in names]
        return scan_plan(
            cls,
            layout="npy",
            root=root,
            scans=scans,
            about={"image_size_px": [height, width], "split": describe_split(parts, "lists of names")},
            notes=notes,
        )

    def _check_sensor(self, prepared: PreparedSet, sensor: Sensor) -> None:
        height = prepared.manifest["image_size_px"][0]
        if sensor.num_beams != height:
            raise ConfigError(
                f"sensor: num_beams is {sensor.num_beams}, the images of {prepared.root} have {height} rows"
            )

    def _input_spec(self) -> ScanInputSpec:
        height, width = self._prepared.manifest["image_size_px"]
        return replace(super()._input_spec(), image_px=(height, width))

    @classmethod
    def read_files(
        cls, files: Sequence[Path], values: Mapping[str, np.ndarray], manifest: Mapping[str, Any]
    ) -> RawScan:
        """Read the filled pixels of an image."""
        height, width = manifest["image_size_px"]
        return read_range_image(files[0], height=height, width=width)
