"""Data set `cloud_folder`: the user's own labelled point clouds, from a folder per class or a list of files."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sightline.areas.clouds.sets.cloud_listing import LAYOUTS, ListedCloud, list_clouds, name_clouds, split_clouds
from sightline.areas.clouds.sets.labelled_clouds import LabelledClouds, count_labels
from sightline.config.yaml_writer import format_inline
from sightline.contract import registry
from sightline.contract.arguments import Count, LengthUnit, PositiveFraction, Seed, UpAxis
from sightline.contract.errors import ConfigError, DataError, join_some
from sightline.contract.types import CloudInputSpec, UnitSphere
from sightline.ops.views.rendering import Background
from sightline.store.cloud_preparation import Normals, Zeros, cloud_radius, prepare_cloud
from sightline.store.files.cloud_files import (
    CLOUD_SUFFIXES,
    PointCloud,
    Withheld,
    check_columns,
    list_skipped_files,
    read_cloud,
)
from sightline.store.files.cloud_values import note_mixed_scales, note_mixed_units
from sightline.store.files.column_names import NORMALS, POINTS
from sightline.store.files.input_files import natural_sort_key
from sightline.store.prepared.config_bases import ConfigBase
from sightline.store.prepared.prepared_data import SetSpec
from sightline.store.prepared.prepared_set import PreparedSet
from sightline.store.prepared.prepared_writer import (
    ColumnSpec,
    PreparationPlan,
    SampleRow,
    Shard,
    digest_json,
)
from sightline.store.prepared.splits import SPLITS

_GEOMETRY = (*POINTS, *NORMALS, "_")
_PRESET_POINTS = 256
"""Points of a cloud in the preset, which samples them first in training and evaluation."""


@registry.data.add("cloud_folder")
class CloudFolder(LabelledClouds):
    """Labelled point clouds of the user, prepared by `data prepare cloud_folder` (docs/manual/data_clouds.md).

    `num_points` takes the first stored points of each cloud. `normals` adds the stored (`file`) or `estimated` ones,
    `channels` stored values by name, such as intensity. `fraction` trains on that share of every class, seeded by
    `fraction_seed`. Source: the user's files.
    """

    config_bases = (ConfigBase("classify/own_clouds"),)
    spec = SetSpec(
        name="cloud_folder",
        what=f"clouds: {LAYOUTS}",
        kind="file or folder",
        is_own=True,
        entries=lambda: {"files": ", ".join(CLOUD_SUFFIXES)},
    )

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        num_points: Count | None = None,
        normals: Normals = "none",
        channels: tuple[str, ...] = (),
        fraction: PositiveFraction = 1.0,
        fraction_seed: Seed = 0,
        views: str | None = None,
        background: Background | None = None,
    ) -> None:
        super().__init__(
            split=split,
            root=root,
            num_points=num_points,
            normals=normals,
            fraction=fraction,
            fraction_seed=fraction_seed,
            views=views,
            background=background,
        )
        stored = tuple(self._prepared.manifest["channels"])
        unknown = [name for name in channels if name not in stored]
        if unknown or len(set(channels)) < len(channels):
            fault = f"'{unknown[0]}' is not stored" if unknown else "one is named twice"
            raise ConfigError(
                f"channels: {fault}; {self._prepared.root} holds {', '.join(stored) or 'none'}; name others in columns "
                "when preparing"
            )
        self._channels = channels
        self._channel_index = [stored.index(name) for name in channels]
        self._features = (*self._features, *(["channels"] if channels else []))

    def _read(self, name: str, index: np.ndarray) -> np.ndarray:
        values = super()._read(name, index)
        return np.ascontiguousarray(values[..., self._channel_index]) if name == "channels" else values

    def _list_doubts(self) -> Sequence[str]:
        """Return doubts on channels that are the same at every point of all clouds."""
        constant = self._prepared.manifest.get("constant_channels", {})
        return [
            f"data.channels: {name} is {constant[name]:g} at every point of all clouds, a constant input; leave it out"
            for name in self._channels
            if name in constant
        ]

    def _width(self, name: str) -> int:
        return len(self._channels) if name == "channels" else super()._width(name)

    def _preparation(self, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
        return {
            **manifest["preparation"],
            "channels": list(self._channels),
            "with_normals": "normals" in self._stored_features,  # a file needs only the features that the run reads
        }

    def _make_input_spec(self) -> CloudInputSpec:
        """Add the smallest number of distinct points and the range of radii, if the manifest has them."""
        manifest = self._prepared.manifest  # manifests of older versions lack both entries
        radii = manifest.get("radii")
        return dataclasses.replace(
            super()._make_input_spec(),
            fewest_points=manifest.get("fewest_points"),
            withheld=manifest["options"].get("withheld", "drop"),
            radii=None if radii is None else (radii[0], radii[1]),
        )

    def _unit_sphere(self, manifest: Mapping[str, Any]) -> UnitSphere:
        return "applied" if manifest["normalisation"] == "unit_sphere" else "none"

    @classmethod
    def propose(cls, prepared: PreparedSet, base: Mapping[str, Any]) -> list[str]:
        """Return the further columns that are stored, as channels, and the points of clouds that have few."""
        preparation = prepared.manifest["preparation"]
        channels, count = preparation["channels"], preparation["num_points"]
        words = [f"data.channels={format_inline(channels)}"] if channels else []
        parts = ("train", "evaluate") if count < _PRESET_POINTS else ()
        return words + [f"transforms.{part}.0.num_points={count}" for part in parts]

    @classmethod
    def plan(
        cls,
        root: Path,
        *,
        target: Path,
        up_axis: UpAxis,
        num_points: Count = 1024,
        columns: tuple[str, ...] | None = None,
        normalisation: Literal["unit_sphere", "none"] = "unit_sphere",
        unit: LengthUnit | None = None,
        choice: Literal["random", "farthest"] = "random",
        faces: Literal["sample", "ignore"] = "sample",
        zeros: Zeros = "keep",
        withheld: Withheld = "drop",
        test_share: PositiveFraction = 0.2,
        validation_share: PositiveFraction = 0.1,
        seed: Seed = 0,
    ) -> PreparationPlan:
        """Plan to write the clouds of a folder or list in native form.

        `columns` names the columns of files without a header, and the values to store besides points and normals.
        Points that a file flags as `withheld` are dropped unless they are to be kept. The other arguments are those of
        `prepare_cloud` and `split_clouds`; `seed` splits the clouds if the source names no splits. Raises DataError for
        a source that is damaged, empty or of one class, with file and position; ConfigError for options that do not fit
        each other.
        """
        if normalisation == "none" and unit is None:
            raise ConfigError(
                "normalisation: none keeps the unit of the files, which must be named: unit=m, cm, mm, ft, us_ft, or a "
                "number of metres"
            )
        names = None if columns is None else check_columns(columns)
        columns_list = None if names is None else list(names)  # lists, as JSON returns them
        if target.resolve().is_relative_to(root):
            raise ConfigError(
                f"--to {target}: lies in {root}, whose folders are the classes; give a folder outside of it"
            )
        unit_name = unit if unit is None or isinstance(unit, str) else f"{unit:g} m"
        layout, clouds = list_clouds(root)
        split_text = "as given" if clouds[0].split else _describe_split(test_share, validation_share, seed)
        clouds = split_clouds(clouds, test_share=test_share, validation_share=validation_share, seed=seed)
        channels = _channels(names)
        class_names = sorted({cloud.label for cloud in clouds}, key=natural_sort_key)
        sample_names = name_clouds(clouds, root)
        preparation = {
            "num_points": num_points,
            "choice": choice,
            "faces": faces,
            "zeros": zeros,
            "normalisation": normalisation,
            "with_normals": _with_normals(clouds, names, faces),
            "channels": list(channels),
        }
        about = {
            "up_axis": up_axis,
            "unit": unit_name if normalisation == "none" else None,
            "file_unit": unit_name,
            "orientation": f"{up_axis} up, as the files have it",
            "normalisation": normalisation,
            "class_names": class_names,
            "channels": list(channels),
            "source_columns": columns_list,
            "preparation": preparation,
            "split": split_text,
        }
        return PreparationPlan(
            cls.set_name,
            layout,
            root,
            _columns(preparation),
            tuple(
                _make_shards(
                    clouds, class_names, partial(_read_row, names, withheld, preparation, class_names, sample_names)
                )
            ),
            about,
            partial(_summary, passed_over=list_skipped_files(root) if root.is_dir() else ""),
            {
                **preparation,
                **({"withheld": withheld} if withheld != "drop" else {}),
                "columns": columns_list,
                "up_axis": up_axis,
                "unit": unit,
                "clouds": _digest(clouds, root),
            },
        )


def _read_row(
    columns: tuple[str, ...] | None,
    withheld: Withheld,
    preparation: Mapping[str, Any],
    class_names: Sequence[str],
    sample_names: Mapping[Path, str],
    cloud: ListedCloud,
) -> SampleRow:
    used = (*preparation["channels"], *(NORMALS if preparation["with_normals"] else ()))
    points = read_cloud(cloud.path, columns=columns, used=used, withheld=withheld)
    if columns is None and not preparation["with_normals"] and _has_normals(points, preparation["faces"]):
        raise DataError(
            f"{cloud.path}: has normals or faces, which the first file has not; take the points alone with "
            "'columns=[x, y, z]', or write nx, ny, nz into every file"
        )
    values = prepare_cloud(points, **preparation, where=str(cloud.path))
    label = class_names.index(cloud.label)
    return SampleRow(sample_names[cloud.path], str(cloud.path), {**values, "label": label}, notes=points.notes)


def _make_shards(
    clouds: Sequence[ListedCloud], class_names: Sequence[str], read: Callable[[ListedCloud], SampleRow]
) -> Iterator[Shard]:
    """Yield one shard per split and class."""
    for split in SPLITS:
        for name in class_names:
            members = tuple(cloud for cloud in clouds if (cloud.split, cloud.label) == (split, name))
            if members:
                paths = tuple(cloud.path for cloud in members)
                yield Shard(split, f"{split}/{name}", len(members), paths, partial(map, read, members))


def _channels(columns: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the names of the columns that are neither points nor normals."""
    return tuple(name for name in columns or () if name not in _GEOMETRY)


def _with_normals(clouds: Sequence[ListedCloud], columns: tuple[str, ...] | None, faces: str) -> bool:
    """Return True if normals are stored: if `columns` names them, by default if the first file has them, or faces."""
    if columns is not None:
        return "nx" in columns
    for cloud in clouds:
        with contextlib.suppress(DataError):  # unreadable files are reported later, all together
            return _has_normals(read_cloud(cloud.path, used=()), faces)
    return False


def _has_normals(cloud: PointCloud, faces: str) -> bool:
    return set(NORMALS) <= {*cloud.column_names} or (faces == "sample" and cloud.faces is not None)


def _describe_split(test_share: float, validation_share: float, seed: int) -> str:
    return (
        f"dealt by a hash of seed {seed} and the names: of every class {test_share:g} to test, {validation_share:g} to "
        "validation, rounded, at least one; the rest to training"
    )


def _columns(preparation: Mapping[str, Any]) -> dict[str, ColumnSpec]:
    """Return the columns of a row: points, label, and normals and channels if they are stored."""
    num_points, channels = preparation["num_points"], preparation["channels"]
    vectors = ("points", "normals") if preparation["with_normals"] else ("points",)
    return {
        **{name: ColumnSpec((num_points, 3), "float32") for name in vectors},
        **({"channels": ColumnSpec((num_points, len(channels)), "float32")} if channels else {}),
        "label": ColumnSpec((), "int64"),
    }


def _digest(clouds: Sequence[ListedCloud], root: Path) -> str:
    """Return the SHA-256 of the listed paths, relative to `root`, classes and splits."""
    entries = [[os.path.relpath(cloud.path, root), cloud.label, cloud.split] for cloud in clouds]
    return digest_json(entries)


def _summary(prepared: PreparedSet, *, passed_over: str) -> dict[str, Any]:
    """Manifest entries computed from the written arrays."""
    notes, doubts = [passed_over] if passed_over else [], list[str]()
    names = [name for split in prepared.splits for name in prepared.names(split)]
    clouds = [points for split in prepared.splits for points in prepared.array(split, "points")]
    distinct = np.array([len(np.unique(points, axis=0)) for points in clouds])
    sizes: dict[str, Any] = {"fewest_points": int(distinct.min())}
    num_points = prepared.manifest["preparation"]["num_points"]
    if num_repeated := int((distinct < num_points).sum()):
        notes.append(
            f"{num_repeated} of {len(clouds)} clouds have fewer different points than num_points={num_points}, the "
            f"smallest {distinct.min()}: points are repeated; num_points={distinct.min()} repeats none"
        )
    if prepared.manifest["normalisation"] == "none":
        radii = [cloud_radius(points) for points in clouds]
        sizes["radii"] = [min(radii), max(radii)]
        doubts += note_mixed_units(names, radii, "clouds")
    channels = prepared.manifest["channels"]
    constant = {}
    for index, name in enumerate(channels):
        values = [cloud[:, index] for split in prepared.splits for cloud in prepared.array(split, "channels")]
        doubts += note_mixed_scales(names, [float(np.abs(each).max()) for each in values], "clouds", values=name)
        if len({*map(float, map(np.min, values)), *map(float, map(np.max, values))}) == 1:
            constant[name] = float(values[0][0])
            notes.append(f"{name} is {constant[name]:g} at every point of all clouds: a network learns nothing from it")
    class_names = prepared.manifest["class_names"]
    splits = count_labels(prepared, len(class_names))
    counts = splits["train"]["class_counts"]
    if single := [name for name, count in zip(class_names, counts, strict=True) if count < 2]:
        doubts.append(
            f"{len(single)} of {len(class_names)} classes have at most one training cloud, too few to learn from: "
            f"{join_some(single, most=5)}; add some, or leave the class out"
        )
    return {
        "splits": splits,
        "doubts": doubts,
        "differences": [*notes, *doubts],
        **({"constant_channels": constant} if constant else {}),
        **sizes,
    }
