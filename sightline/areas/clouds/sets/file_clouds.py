"""Sets of clouds with one file each: a row, and a function that reads a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sightline.areas.clouds.sets.labelled_clouds import LabelledClouds, count_labels
from sightline.contract.arguments import UpAxis
from sightline.contract.errors import DataError
from sightline.contract.types import UnitSphere
from sightline.store.prepared.columns import ColumnSpec
from sightline.store.prepared.prepared_data import SetSpec
from sightline.store.prepared.prepared_set import PreparedSet
from sightline.store.prepared.prepared_writer import PreparationPlan, SampleRow, Shard, normalize_to_unit_sphere
from sightline.store.prepared.source_files import SourceFile, find_files
from sightline.store.prepared.splits import SPLITS


@dataclass(frozen=True, kw_only=True)
class CloudSpec(SetSpec):
    """Row of a set of clouds with one file each.

    `files` is the pattern of their paths, with {split} (train, validation or test), {label} and {name} in it. `read`
    returns `points` (N, 3) of a file, and `normals` (N, 3) of all files or of none; all files have as many points.
    """

    files: str
    class_names: Sequence[str]
    read: Callable[[Path], Mapping[str, np.ndarray]]
    up_axis: UpAxis = "z"


class FileClouds(LabelledClouds):
    """Base of sets of clouds with one file each: a set is the row `spec`. Clouds get the radius 1."""

    spec: ClassVar[CloudSpec]

    @classmethod
    def plan(cls, root: Path, *, up_axis: UpAxis | None = None) -> PreparationPlan:
        """Plan to write the clouds in native form; `up_axis` is that of the files, if it is not the usual one.

        Raises DataError with the file for another class or split, and for a file that cannot be read.
        """
        spec = cls.spec
        axis = up_axis or spec.up_axis
        files = find_files(root, spec.files, allowed={"split": SPLITS, "label": spec.class_names})
        first = _read_row(spec, files[0]).values
        columns = {name: ColumnSpec((len(first["points"]), 3), "float32") for name in first if name != "label"}
        shards = []
        for (split, label), members in groupby(files, key=lambda file: (file.parts["split"], file.parts["label"])):
            shard_files = [*members]
            rows = partial(map, partial(_read_row, spec), shard_files)
            paths = tuple(file.path for file in shard_files)
            shards.append(Shard(split, f"{split}/{label}", len(paths), paths, rows))
        about = {
            "up_axis": axis,
            "orientation": f"{axis} up, as the files have it",
            "normalisation": "by prepare: about the mean of the points, the farthest at distance 1",
            "class_names": list(spec.class_names),
        }
        return PreparationPlan(
            set_name=cls.set_name,
            layout="files",
            source=root,
            columns={**columns, "label": ColumnSpec((), "int64")},
            shards=tuple(shards),
            manifest_extra=about,
            summarise=_summarise,
            options={"up_axis": axis},
        )

    def _unit_sphere(self, manifest: Mapping[str, Any]) -> UnitSphere:
        return "applied"


def _read_row(spec: CloudSpec, file: SourceFile) -> SampleRow:
    where, values = str(file.path), spec.read(file.path)
    if values["points"].ndim != 2 or values["points"].shape[1] != 3:
        raise DataError(f"{where}: its points are {values['points'].shape}, (points, 3) is needed; export it again")
    points = normalize_to_unit_sphere(values["points"], where=where)
    label = spec.class_names.index(file.parts["label"])
    return SampleRow(f"{file.parts['label']}/{file.path.stem}", where, {**values, "points": points, "label": label})


def _summarise(prepared: PreparedSet) -> dict[str, Any]:
    return {"splits": count_labels(prepared, len(prepared.manifest["class_names"]))}
