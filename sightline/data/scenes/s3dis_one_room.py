"""One room of S3DIS from a single archive, halved along y: one half to train on, the other to test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sightline import registry
from sightline.arguments import Count
from sightline.data.files.array_files import npz_array
from sightline.data.scenes.labelled_scenes import (
    LabelledScenes,
    SceneSplit,
    scene_columns,
    scene_values,
    summarise_scenes,
)
from sightline.data.store.location import prepared_root
from sightline.data.store.prepared_set import open_prepared, prepare_command
from sightline.data.store.prepared_writer import PreparationPlan, Progress, SampleRow, Shard, write_prepared_set
from sightline.errors import DataError

__all__ = ["S3disOneRoom"]

_KEYS = {"xyz": "f", "label": "iu", "classes": "U"}
_SPLIT = "points below the median y train, all others, those at it included, test; rows that come twice stay"


@registry.data.add("s3dis_one_room")
class S3disOneRoom(LabelledScenes):
    """Two halves of a real room as two scenes, coordinates alone, in metres: 1 trains, 1 tests.

    Both contain the same 11 of the 13 classes. No validation data is held out: most classes have one instance in a
    half, so a held-out part would lack classes. Hence `evaluate.select: test`, and the metric of the last checkpoint,
    which is not selected. An epoch draws `repeats` samples of the one half.
    Source: Armeni et al. 2016, one room resampled to 8,192 points an instance (WinerDeCoder).
    """

    baselines: ClassVar[dict[str, dict[str, float]]] = {
        "miou": {"the majority class everywhere": 0.020, "a random forest on height, normal and eigenvalues": 0.417}
    }
    """Metrics of simple baselines on the same half, shown next to the results of a run."""
    set_name = "s3dis_one_room"
    readable_sets = ("s3dis_one_room",)

    def __init__(self, *, split: str, root: str | None = None, repeats: Count = 1) -> None:
        prepared = open_prepared(prepared_root(root, self.set_name), set_names=self.readable_sets)
        sizes = {"train": 1, "validation": 0, "test": 1}
        if split not in sizes:
            raise DataError(f"{prepared.root}: has no part '{split}'; it has train and test")
        scenes = SceneSplit(((split, 0),) if sizes[split] else (), sizes)
        super().__init__(prepared=prepared, split=split, scenes=scenes, repeats=repeats)

    @classmethod
    def prepare(cls, *, source: Path, target: Path, name: str, progress: Progress) -> dict[str, Any]:
        """Write both halves in native form from one NPZ archive; returns the manifest with `root` and `outcome`.

        Raises DataError with the entry for an archive that is damaged or has other contents.
        """
        assert name == cls.set_name, f"{cls.__name__} prepares '{cls.set_name}', not '{name}'"
        root = source.expanduser().resolve()
        if not root.is_file():
            raise DataError(f"{source}: there is no such file (looked at {root}); give the archive s3dis_one_room.npz")
        class_names = [str(class_name) for class_name in _read_archive(root)["classes"]]
        about = {
            "up_axis": "z",
            "unit": "m",
            "orientation": "z up, the room's lowest corner at the origin",
            "class_names": class_names,
            "split": _SPLIT,
        }
        parts = tuple(Shard(split, split, 1, (root,), _HalfReader(root, split)) for split in ("train", "test"))
        plan = PreparationPlan(name, "npz", root, scene_columns(len(class_names)), parts, about, summarise_scenes)
        return write_prepared_set(plan, target, progress=progress)

    @classmethod
    def card(cls) -> dict[str, Any]:
        """Description, accepted layouts, download page and licence."""
        return {
            "set": cls.set_name,
            "split": _SPLIT,
            "layouts": {"npz": f"s3dis_one_room.npz with {', '.join(_KEYS)}: (points, 3), (points,) and the names"},
            "home": "http://buildingparser.stanford.edu/dataset.html",
            "terms": "academic use",
            "cite": "Armeni et al. 2016, 3D Semantic Parsing of Large-Scale Indoor Spaces",
            "prepare": prepare_command(cls.set_name, "DIR"),
        }


@dataclass(frozen=True)
class _HalfReader:
    """Picklable reader of the one row of a split."""

    path: Path
    split: str

    def __call__(self) -> Iterator[SampleRow]:
        arrays = _read_archive(self.path)
        is_low = arrays["xyz"][:, 1] < np.median(arrays["xyz"][:, 1])
        selected = is_low if self.split == "train" else ~is_low
        values = scene_values(arrays["label"][selected], len(arrays["classes"]))
        yield SampleRow(f"half/{self.split}", f"{self.path}: xyz", {"points": arrays["xyz"][selected], **values})


def _read_archive(path: Path) -> dict[str, np.ndarray]:
    """Read the entries of the archive. Raises DataError for a wrong dtype or shape, and for the first wrong label."""
    arrays = {key: npz_array(path, key, needed=", ".join(_KEYS)) for key in _KEYS}
    size = len(arrays["label"]) if arrays["label"].ndim else 0
    shapes = {"xyz": (size, 3), "label": (size,), "classes": arrays["classes"].shape[:1]}
    for key, kind in _KEYS.items():
        array = arrays[key]
        if array.dtype.kind not in kind or array.shape != shapes[key] or 0 in array.shape:
            raise DataError(
                f"{path}: {key} is {array.dtype} {array.shape}, {shapes[key]} is needed; get the file again"
            )
    outside = np.flatnonzero((arrays["label"] < 0) | (arrays["label"] >= len(arrays["classes"])))
    if len(outside):
        raise DataError(
            f"{path}: label[{outside[0]}] is {arrays['label'][outside[0]]}, classes names {len(arrays['classes'])}; "
            "get the file again"
        )
    if not np.isfinite(arrays["xyz"]).all():
        row = int(np.flatnonzero(~np.isfinite(arrays["xyz"]).all(axis=1))[0])
        raise DataError(f"{path}: xyz[{row}] is {arrays['xyz'][row].tolist()}; get the file again")
    return arrays
