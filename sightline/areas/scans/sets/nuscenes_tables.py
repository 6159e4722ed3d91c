"""Tables of nuScenes lidarseg: labels of scans, names of scenes and categories."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sightline.contract.errors import DataError
from sightline.store.files.input_files import parse_json_content, read_file

COLUMNS = ("x", "y", "z", "intensity", "ring")
"""Columns of the set's `.pcd.bin` files, float32."""
_SCAN_SUFFIX = ".pcd.bin"
_ADVICE = "the tables are damaged or of different versions: get nuScenes and its lidarseg labels again"


class LabelledFiles(NamedTuple):
    """Files of scans and of their labels by name, SCENE/FILE, in order; `id_names` are names of categories by id."""

    files: dict[str, tuple[Path, ...]]
    id_names: dict[int, str]
    notes: list[str]


def find_tables(root: Path) -> Path | None:
    """Find the folder with `lidarseg.json`: `root` itself, or one in it. Raises DataError for several."""
    folders = [path.parent for path in (root / "lidarseg.json", *sorted(root.glob("*/lidarseg.json"))) if path.exists()]
    if len(folders) > 1:
        raise DataError(f"{root}: has {len(folders)} sets of tables; give one: {', '.join(map(str, folders))}")
    return folders[0] if folders else None


def list_labelled_files(tables: Path) -> LabelledFiles:
    """List the scans that `lidarseg.json` names labels of; the files are below the parent of the folder of tables.

    Raises DataError for a damaged table, a key frame without labels, and a file that is missing.
    """
    labels = _read_table(tables, "lidarseg", key="sample_data_token", values=("filename",))
    scans = _read_table(tables, "sample_data", key="token", values=("filename", "sample_token"))
    samples = _read_table(tables, "sample", key="token", values=("scene_token",))
    scenes = _read_table(tables, "scene", key="token", values=("name",))
    files = {}
    for token, label in labels.items():
        scan = _get_row(scans, token, tables / "sample_data.json")
        sample = _get_row(samples, scan["sample_token"], tables / "sample.json")
        scene = _get_row(scenes, sample["scene_token"], tables / "scene.json")
        name = f"{scene['name']}/{PurePosixPath(scan['filename']).name.removesuffix(_SCAN_SUFFIX)}"
        files[name] = tuple(_locate(tables, row["filename"]) for row in (scan, label))
    unlabelled = [row for token, row in scans.items() if token not in labels and row["filename"].endswith(_SCAN_SUFFIX)]
    frames = [row["filename"] for row in unlabelled if row.get("is_key_frame")]
    missing = [path for paths in files.values() for path in paths if not path.is_file()]
    if not files or frames:
        fault = f"of {len(frames)} key frames, first {frames[0]}" if frames else "at all"
        raise DataError(f"{tables / 'lidarseg.json'}: has no labels {fault}; get the lidarseg labels of {tables.name}")
    if missing:
        raise DataError(
            f"{missing[0]}: there is no such file, and {len(missing) - 1} more of {2 * len(files)} are missing; get "
            f"all parts of {tables.name}"
        )
    categories = _read_table(tables, "category", key="token", values=("name",)).values()
    id_names = {row["index"]: row["name"] for row in categories if type(row.get("index")) is int}
    notes = [f"{len(unlabelled)} sweeps between key frames have no labels, and are left out"] if unlabelled else []
    return LabelledFiles(dict(sorted(files.items())), id_names, notes)


def _read_table(tables: Path, name: str, *, key: str, values: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Read the rows of a table by their `key`. Raises DataError for rows without text there or in `values`."""
    path = tables / f"{name}.json"
    rows = parse_json_content(read_file(path), where=str(path), advice=_ADVICE)
    if not isinstance(rows, list):
        raise DataError(f"{path}: is no list of rows; {_ADVICE}")
    table: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(rows):
        wrong = [
            column for column in (key, *values) if not isinstance(row, dict) or not isinstance(row.get(column), str)
        ]
        if wrong or row[key] in table:
            fault = f"has no text '{wrong[0]}'" if wrong else f"repeats the {key} {row[key][:40]}"
            raise DataError(f"{path}: row {number} {fault}; {_ADVICE}")
        table[row[key]] = row
    return table


def _get_row(table: dict[str, dict[str, Any]], token: str, path: Path) -> dict[str, Any]:
    if token not in table:
        raise DataError(f"{path}: has no row '{token[:40]}', which another table names; {_ADVICE}")
    return table[token]


def _locate(tables: Path, filename: str) -> Path:
    """Return the path of a file of the set. Raises DataError for one that leads out of the set."""
    if PurePosixPath(filename).is_absolute() or ".." in PurePosixPath(filename).parts:
        raise DataError(f"{tables}: the file {filename[:80]!r} lies outside {tables.parent}; {_ADVICE}")
    return tables.parent / filename
