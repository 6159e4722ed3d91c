"""Tables of nuScenes lidarseg: labels of key frames, names of scenes and categories, tokens of scans."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sightline.contract.errors import DataError
from sightline.store.files.input_files import parse_json_content, read_file

COLUMNS = ("x", "y", "z", "intensity", "ring")
"""Columns of the set's `.pcd.bin` files, float32."""
_SCAN_SUFFIX = ".pcd.bin"
_ADVICE = "the tables are damaged or of different versions: get nuScenes and its lidarseg labels again"


class LabelledFiles(NamedTuple):
    """Files of scans and of their labels by name, SCENE/NUMBER-TOKEN, in order; names of categories by id; notes.

    The number is that of the key frame in its scene, in the order of time.
    """

    files: dict[str, tuple[Path, ...]]
    id_names: dict[int, str]
    notes: list[str]


def find_tables(root: Path) -> Path:
    """Find the folder with `lidarseg.json`: `root` itself, or one in it. Raises DataError for none, and for several."""
    folders = [path.parent for path in (root / "lidarseg.json", *sorted(root.glob("*/lidarseg.json"))) if path.exists()]
    if len(folders) > 1:
        raise DataError(f"{root}: has {len(folders)} sets of tables; give one: {', '.join(map(str, folders))}")
    if not folders:
        raise DataError(f"{root}: has no tables of labels; unpack nuScenes lidarseg into its folder v1.0-trainval")
    return folders[0]


def list_labelled_files(tables: Path) -> LabelledFiles:
    """List the scans that `lidarseg.json` names labels of; the files are below the parent of the folder of tables.

    Raises DataError for a damaged table, a key frame without labels, a file that is missing, and for categories without
    the ids of lidarseg.
    """
    labels = _read_table(tables, "lidarseg", key="sample_data_token", values=("filename",))
    scans = _read_table(tables, "sample_data", key="token", values=("filename", "sample_token"))
    samples = _read_table(tables, "sample", key="token", values=("scene_token",))
    scenes = _read_table(tables, "scene", key="token", values=("name",))
    frames_of: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for token in labels:
        scan = _get_row(scans, token, tables / "sample_data.json")
        sample = _get_row(samples, scan["sample_token"], tables / "sample.json")
        scene = _get_row(scenes, sample["scene_token"], tables / "scene.json")
        frames_of[scene["name"]].append((PurePosixPath(scan["filename"]).name, token))  # files are named by their time
    files = {
        f"{scene}/{number:03d}-{token}": tuple(_locate(tables, table[token]["filename"]) for table in (scans, labels))
        for scene in sorted(frames_of)
        for number, (_, token) in enumerate(sorted(frames_of[scene]))
    }
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
    notes = [f"{len(unlabelled)} sweeps between key frames have no labels, and are left out"] if unlabelled else []
    return LabelledFiles(files, _read_categories(tables), notes)


def _read_categories(tables: Path) -> dict[int, str]:
    """Read the names of categories by their ids in files of labels, which only lidarseg's own table has."""
    categories = _read_table(tables, "category", key="token", values=("name",)).values()
    path, id_names = tables / "category.json", dict[int, str]()
    for row in categories:
        index = row.get("index")
        if type(index) is not int or not 0 <= index < 256:
            found = "no index" if index is None else f"the index {str(index)[:40]}"
            raise DataError(
                f"{path}: '{row['name'][:80]}' has {found}; that is the table of nuScenes without lidarseg: unpack "
                "lidarseg's over it"
            )
        if index in id_names:
            raise DataError(f"{path}: '{id_names[index]}' and '{row['name'][:80]}' have the index {index}; {_ADVICE}")
        id_names[index] = row["name"]
    return id_names


class ScanToken(NamedTuple):
    """Token of a scan, and the part of the benchmark that it is in: `val`, or `test` for the tables of that part."""

    part: str
    token: str


def find_tokens(files: Sequence[Path]) -> dict[Path, ScanToken]:
    """Find the token of each scan `samples/LIDAR_TOP/*.pcd.bin` in the tables beside `samples`.

    Files in other places, and those that no table names, have none. Raises DataError for a damaged table.
    """
    by_root: defaultdict[Path, dict[str, Path]] = defaultdict(dict)
    for file in files:
        folder = file.absolute().parent
        if folder.parent.name == "samples" and file.name.endswith(_SCAN_SUFFIX):
            by_root[folder.parents[1]][f"samples/{folder.name}/{file.name}"] = file
    tokens: dict[Path, ScanToken] = {}
    for root, names in by_root.items():
        for table in sorted(root.glob("*/sample_data.json")):
            part = "test" if table.parent.name.endswith("test") else "val"
            rows = _read_table(table.parent, "sample_data", key="token", values=("filename",)) if names else {}
            named = {row["filename"]: token for token, row in rows.items() if row["filename"] in names}
            tokens |= {names.pop(name): ScanToken(part, token) for name, token in named.items()}
    return tokens


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
