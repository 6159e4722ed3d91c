"""nuScenes lidarseg: key frames of an HDL-32E in 1,000 scenes, and the sixteen classes of its benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sightline.areas.scans.sets.labelled_scans import NamedScans, ScanSpec, map_every_id
from sightline.areas.scans.sets.scan_preparation import ListedScan, scan_plan
from sightline.contract import registry
from sightline.contract.arguments import FractionBelowOne
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import ScanInputSpec
from sightline.store.files.scan_files import read_label_ids
from sightline.store.files.scan_reading import SCAN_COLUMNS, read_scan, to_raw_scan
from sightline.store.files.scan_samples import RawScan
from sightline.store.files.sensors import Sensor, SensorBlock
from sightline.store.label_maps import LabelMap, map_names, read_label_map
from sightline.store.prepared.name_lists import describe_split
from sightline.store.prepared.prepared_set import PreparedSet
from sightline.store.prepared.prepared_writer import PreparationPlan
from sightline.store.prepared.python_literals import read_literals
from sightline.store.scans.nuscenes_tables import COLUMNS, find_tables, list_labelled_files

CLASSES = {
    "barrier": ("movable_object.barrier",),
    "bicycle": ("vehicle.bicycle",),
    "bus": ("vehicle.bus.bendy", "vehicle.bus.rigid"),
    "car": ("vehicle.car",),
    "construction_vehicle": ("vehicle.construction",),
    "motorcycle": ("vehicle.motorcycle",),
    "pedestrian": tuple(
        f"human.pedestrian.{kind}" for kind in ("adult", "child", "construction_worker", "police_officer")
    ),
    "traffic_cone": ("movable_object.trafficcone",),
    "trailer": ("vehicle.trailer",),
    "truck": ("vehicle.truck",),
    "driveable_surface": ("flat.driveable_surface",),
    "other_flat": ("flat.other",),
    "sidewalk": ("flat.sidewalk",),
    "terrain": ("flat.terrain",),
    "manmade": ("static.manmade",),
    "vegetation": ("static.vegetation",),
}
"""Classes of the benchmark, and the categories of each; the number of a class there is its index here plus 1."""
IGNORED = (
    *("noise", "animal", "static.other", "vehicle.ego", "static_object.bicycle_rack"),
    *(f"human.pedestrian.{kind}" for kind in ("personal_mobility", "stroller", "wheelchair")),
    *("movable_object.debris", "movable_object.pushable_pullable"),
    *("vehicle.emergency.ambulance", "vehicle.emergency.police"),
)
"""Categories whose points are neither trained on nor scored, class 0 of the benchmark."""
_NUM_BEAMS = 32
_BENCHMARK, _ALL = "lidarseg", "all"
_SPLITS = "splits.py"
_SPLITS_ADVICE = "get python-sdk/nuscenes/utils/splits.py of github.com/nutonomy/nuscenes-devkit again"


def benchmark_map() -> LabelMap:
    """Return the map of the benchmark's files of predictions: a class is its index plus 1, and 0 is not allowed."""
    numbers = {index + 1: index for index in range(len(CLASSES))}
    tables: dict[str, Any] = {"labels": dict(zip(numbers, CLASSES, strict=True)), "learning_map": numbers}
    tables["learning_map_inv"] = {index: number for number, index in numbers.items()}
    advice = f"predictions are 1 to {len(CLASSES)}, the class's index and 1"
    return LabelMap(tables, where="of nuScenes lidarseg's predictions", advice=advice)


@registry.data.add("nuscenes_lidarseg")
class NuScenesLidarseg(NamedScans):
    """Key frames of nuScenes with a class at every point, in the sensor's frame: x to the right, y ahead, z up.

    `label_map` is `lidarseg`, the benchmark's 16 classes by the names of categories; `all`, every category that occurs;
    or the user's, a file or the names of the ids. `tested` are beginnings of names, such as `scene-0003`; without them
    the validation scenes of the development kit decide, if they were there when the set was prepared, or the last
    `test_share` of the frames by name. `sensor` replaces values of the HDL-32E.
    Source: Caesar et al. 2020; Fong et al. 2022 (the benchmark).
    """

    spec = ScanSpec(
        name="nuscenes_lidarseg",
        what="samples, lidarseg and the tables of a version",
        sensor={"preset": "hdl32"},
        entries=lambda: {"classes": ", ".join(CLASSES)},
    )
    has_rings = True

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        tested: tuple[str, ...] = (),
        label_map: str | tuple[str | None, ...] = _BENCHMARK,
        sensor: SensorBlock | None = None,
        test_share: FractionBelowOne = 0.2,
        validation_share: FractionBelowOne = 0.1,
    ) -> None:
        self._predictions = benchmark_map() if label_map == _BENCHMARK else None
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
    def plan(cls, root: Path) -> PreparationPlan:
        """Plan to list the key frames and labels that the tables name in place, and to count the ids of every frame.

        The validation scenes are those of the user's copy of the development kit's `splits.py`, which is parsed and not
        run, beside the tables or in their folder. Raises DataError for damaged tables, and for a file that is missing.
        """
        tables = find_tables(root)
        files, id_names, notes = list_labelled_files(tables)
        part_of, split_notes = _divide(tables, [*files])
        parts = sorted({*part_of.values()}, reverse=True)
        return scan_plan(
            cls,
            layout="nuscenes_lidarseg",
            root=tables.parent,
            scans=[ListedScan(part, name, files[name]) for part in parts for name in files if part_of[name] == part],
            about={
                "split": describe_split(parts, f"the validation scenes of {_SPLITS}"),
                "id_names": {str(raw): name for raw, name in id_names.items()},  # as JSON has them
                "version": tables.name,
            },
            notes=[*notes, *split_notes],
        )

    @classmethod
    def read_files(
        cls, files: Sequence[Path], values: Mapping[str, np.ndarray], manifest: Mapping[str, Any]
    ) -> RawScan:
        """Read a key frame and its ids."""
        points_path, labels_path = files
        cloud = read_scan(points_path, columns=COLUMNS, used=SCAN_COLUMNS)
        ids = read_label_ids(labels_path, num_points=len(cloud.points), points_path=points_path)
        return to_raw_scan(cloud, ids, ring_order="bottom_first", num_beams=_NUM_BEAMS, path=points_path)

    @property
    def label_map(self) -> LabelMap:
        """Label map between the ids of files of predicted labels and classes: the benchmark's, or the set's own."""
        return self._label_map if self._predictions is None else self._predictions

    def _read_label_map(self, prepared: PreparedSet, label_map: str | tuple[str | None, ...] | None) -> LabelMap:
        if label_map == _ALL:
            return map_every_id(prepared)
        if label_map is not None and label_map != _BENCHMARK:
            return read_label_map(label_map, {})
        categories = {int(raw): name for raw, name in prepared.manifest["id_names"].items()}
        return map_names(categories, CLASSES, ignored=IGNORED, where=f"category.json of {prepared.root}")

    def _check_sensor(self, prepared: PreparedSet, sensor: Sensor) -> None:
        if sensor.num_beams != _NUM_BEAMS:
            raise ConfigError(
                f"sensor: num_beams is {sensor.num_beams}, the rings of nuScenes are 0 to {_NUM_BEAMS - 1}"
            )

    def _input_spec(self) -> ScanInputSpec:
        form = replace(super()._input_spec(), columns=COLUMNS, num_beams=_NUM_BEAMS, ring_order="bottom_first")
        return form if self._predictions is None else replace(form, label_form="nuscenes")


def _divide(tables: Path, names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the part of every frame, `all` without the development kit's list, and notes."""
    path = next((path for path in (tables / _SPLITS, tables.parent / _SPLITS) if path.is_file()), None)
    if path is None:
        note = f"which scenes validate is not stated: put the development kit's {_SPLITS} beside {tables.name}, or "
        return dict.fromkeys(names, "all"), [f"{note}name scenes with data.tested"]
    key = "mini_val" if tables.name.endswith("mini") else "val"
    scenes = read_literals(path, (key,), advice=_SPLITS_ADVICE)[key]
    if not isinstance(scenes, list | tuple) or not all(isinstance(scene, str) for scene in scenes):
        raise DataError(f"{path}: {key} is not a list of names; {_SPLITS_ADVICE}")
    found = {name.partition("/")[0] for name in names}
    tested, notes = found & {*scenes}, []
    if not tested or tested == found:
        fault = "none" if not tested else "all"
        raise DataError(
            f"{path}: {key} names {fault} of the {len(found)} scenes of {tables.name}; {_SPLITS_ADVICE}, or move it "
            "away and name scenes with data.tested"
        )
    if len(tested) < len({*scenes}):
        notes.append(f"{len(tested)} of the {len({*scenes})} scenes of {key} are there")
    return {name: "test" if name.partition("/")[0] in tested else "train" for name in names}, notes
