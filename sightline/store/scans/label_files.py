"""Files of labels as benchmarks read them: the path of each, and what a submission has besides."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from sightline.contract.types import LabelForm
from sightline.store.scans.nuscenes_tables import find_tokens


@dataclass(frozen=True)
class LabelFiles:
    """Form of a benchmark's files of labels, as `read_label_ids` reads them by their `ending`.

    `path_of` returns the path of a sample's file in a folder of predictions, by the sample's name, and `paths_of` those
    of scans by their own paths; both leave out what the benchmark does not name. Other files are called by their scan,
    with the `ending`. `extras_of` returns the further files, by path, of a submission that has this path.
    """

    ending: str
    path_of: Callable[[str], Path | None]
    paths_of: Callable[[Sequence[Path]], Mapping[Path, Path]]
    extras_of: Callable[[Path], Mapping[Path, bytes]] = lambda path: MappingProxyType({})


def collect_extras(form: LabelFiles, paths: Iterable[Path]) -> dict[Path, bytes]:
    """Return the further files, by path, of a submission of these label files."""
    return {extra: content for path in paths for extra, content in form.extras_of(path).items()}


# --- SemanticKITTI ----------------------------------------------------------------------------------------------------


def _kitti_path(name: str) -> Path | None:
    """Return `sequences/08/predictions/000000.label` for the scan `08/000000`."""
    match = re.fullmatch(r"(\d+)/(\d+)", name)
    return match and Path("sequences", match[1], "predictions", f"{match[2]}.label")


def _kitti_paths(files: Sequence[Path]) -> dict[Path, Path]:
    """Return the paths of scans `.../08/velodyne/000000.bin`."""
    paths = {}
    for file in files:
        sequence = file.absolute().parent.parent.name
        if file.parent.name == "velodyne" and (path := _kitti_path(f"{sequence}/{file.stem}")) is not None:
            paths[file] = path
    return paths


# --- nuScenes lidarseg ------------------------------------------------------------------------------------------------

_USES = {"use_camera": False, "use_lidar": True, "use_radar": False, "use_map": False, "use_external": False}
"""What predictions were made from, as submission.json says it."""


def _nuscenes_path(name: str) -> Path | None:
    """Return `lidarseg/val/TOKEN_lidarseg.bin` for the scan `scene-0003/007-TOKEN`."""
    match = re.fullmatch(r"[^/]+/\d{3,}-([^/]+)", name)
    return match and Path("lidarseg", "val", f"{match[1]}_lidarseg.bin")


def _nuscenes_paths(files: Sequence[Path]) -> dict[Path, Path]:
    tokens = find_tokens(files)
    return {file: Path("lidarseg", part, f"{token}_lidarseg.bin") for file, (part, token) in tokens.items()}


def _nuscenes_extras(path: Path) -> dict[Path, bytes]:
    return {Path(path.parent.name, "submission.json"): json.dumps({"meta": _USES}).encode()}


LABEL_FILES: Mapping[LabelForm, LabelFiles] = MappingProxyType(
    {
        "semantic_kitti": LabelFiles(".label", _kitti_path, _kitti_paths),
        "nuscenes": LabelFiles("_lidarseg.bin", _nuscenes_path, _nuscenes_paths, _nuscenes_extras),
    }
)
"""Form of label files by benchmark."""
