"""Listing of the user's clouds with class and split, from folders or from a CSV file."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sightline.contract.errors import DataError
from sightline.store.files.cloud_files import CLOUD_SUFFIXES, is_cloud_file
from sightline.store.files.input_files import list_files, list_folders, natural_sort_key
from sightline.store.files.other_kinds import advise_conversion, advise_conversions
from sightline.store.prepared.prepared_set import summarise_folder
from sightline.store.prepared.splits import SPLITS, deal_by_hash

LAYOUTS = "CLASS/FILE, train/CLASS/FILE with test/CLASS/FILE, or a CSV file with the columns path,label[,split]"


class ListedCloud(NamedTuple):
    """One cloud file with the name of its class, and its split if the source names one."""

    path: Path
    label: str
    split: str | None

    @property
    def name(self) -> str:
        """The name of the cloud in reports."""
        return f"{self.label}/{self.path.name}"


def list_clouds(root: Path) -> tuple[str, list[ListedCloud]]:
    """List the clouds of a source, sorted by class and path; return them after the layout.

    The layout is `folders`, `split_folders` or `csv`. Raises DataError for a source in none of these layouts, an empty
    class, a single class, and a list with paths that do not exist, with the line.
    """
    layout, clouds = ("csv", list(_read_csv(root))) if root.is_file() else _list_folders(root)
    names = sorted({cloud.label for cloud in clouds}, key=natural_sort_key)
    if len(names) < 2:
        raise DataError(
            f"{root}: holds {f'one class, {names[0]}' if names else 'no clouds'}, at least two classes are needed; "
            f"lay it out as {LAYOUTS}"
        )
    splits = {cloud.split for cloud in clouds}
    if splits != {None} and not {"train", "test"} <= splits:
        split_names = ", ".join(sorted(str(split) for split in splits))
        raise DataError(f"{root}: names the parts {split_names}, train and test are needed; name both, or none")
    return layout, sorted(clouds, key=lambda cloud: (natural_sort_key(cloud.label), natural_sort_key(str(cloud.path))))


def name_clouds(clouds: Sequence[ListedCloud], root: Path) -> dict[Path, str]:
    """Return the name of every cloud by its path, no two alike: CLASS/FILE, or where some repeat that, the path.

    Paths are relative to the source, or to the folder of a list.
    """
    names = {cloud.path: cloud.name for cloud in clouds}
    if len({*names.values()}) == len(names):
        return names
    folder = root.parent if root.is_file() else root
    return {path: Path(os.path.relpath(path, folder)).as_posix() for path in names}


def split_clouds(
    clouds: Sequence[ListedCloud], *, test_share: float, validation_share: float, seed: int
) -> list[ListedCloud]:
    """Assign a split to every cloud: the one of the source, else by a hash of seed and name, stratified by class.

    Shares are rounded to the nearest number of clouds, at least one. Files that are added later move few others.
    Raises DataError naming a class without a cloud in one of the splits.
    """
    classes = sorted({cloud.label for cloud in clouds}, key=natural_sort_key)
    if clouds[0].split is None:
        clouds = [
            cloud
            for name in classes
            for cloud in _assign_splits([c for c in clouds if c.label == name], test_share, validation_share, seed)
        ]
    counts = Counter((cloud.label, cloud.split) for cloud in clouds)
    for split in [split for split in SPLITS if any(cloud.split == split for cloud in clouds)]:
        empty = [name for name in classes if not counts[name, split]]
        if empty:
            folder = next(cloud.path.parent for cloud in clouds if cloud.label == empty[0])
            raise DataError(
                f"{folder}: class '{empty[0]}' has no cloud in the {split} part; add one, or leave the class out"
            )
    return list(clouds)


def _assign_splits(
    members: Sequence[ListedCloud], test_share: float, validation_share: float, seed: int
) -> Iterator[ListedCloud]:
    """Iterate over the clouds of one class with their splits assigned, in the order of `members`."""
    count = "1 cloud" if len(members) == 1 else f"{len(members)} clouds"
    splits = deal_by_hash(
        [cloud.name for cloud in members],
        test_share=test_share,
        validation_share=validation_share,
        seed=seed,
        where=f"{members[0].path.parent}: class '{members[0].label}' has {count}",
        advice="leave the class out",
    )
    return (cloud._replace(split=split) for cloud, split in zip(members, splits, strict=True))


def _list_folders(root: Path) -> tuple[str, list[ListedCloud]]:
    """List the clouds of a root with one folder per class, or per split and class."""
    folders = _list_subfolders(root)
    split_dirs = [folder for folder in folders if folder.name in SPLITS]
    if not split_dirs:
        return "folders", [cloud for folder in folders for cloud in _list_class_folder(folder, None)]
    if len(split_dirs) < len(folders):
        other = next(folder for folder in folders if folder not in split_dirs)
        raise DataError(
            f"{root}: holds the part '{split_dirs[0].name}' and '{other.name}', which is none; lay it out as {LAYOUTS}"
        )
    return "split_folders", [
        cloud
        for split_dir in split_dirs
        for folder in _list_subfolders(split_dir)
        for cloud in _list_class_folder(folder, split_dir.name)
    ]


def _list_subfolders(root: Path) -> list[Path]:
    """List the visible subfolders of a folder. Raises DataError if there are none, or if clouds lie next to them."""
    stray = [path for path in root.iterdir() if is_cloud_file(path)]
    folders = list_folders(root)
    if stray or not folders:
        fault = f"{min(stray).name} is not in the folder of a class" if stray else f"it holds {summarise_folder(root)}"
        raise DataError(f"{root}: {fault}; lay it out as {LAYOUTS}")
    return folders


def _list_class_folder(folder: Path, split: str | None) -> list[ListedCloud]:
    """List the clouds of one class folder. Raises DataError if it has no clouds, or subfolders."""
    subfolder = next(iter(list_folders(folder)), None)
    paths = [path for path in folder.iterdir() if is_cloud_file(path)]
    if subfolder is not None or not paths:
        fault = (
            f"holds the folder {subfolder.name}"
            if subfolder
            else f"holds no cloud, it holds {summarise_folder(folder)}"
        )
        raise DataError(
            f"{folder}: is taken for a class and {fault}; clouds are files of {', '.join(CLOUD_SUFFIXES)}, laid out as "
            f"{LAYOUTS}{advise_conversions(list_files(folder))}"
        )
    return [ListedCloud(path, folder.name, split) for path in paths]


def _read_csv(path: Path) -> Iterator[ListedCloud]:
    """Yield the clouds of a CSV list; paths are relative to its folder. Raises DataError with the line."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: is not UTF-8 text; store the list as plain CSV ({LAYOUTS})") from error
    reader = csv.reader(io.StringIO(text), strict=True)
    line_by_path: dict[Path, int] = {}
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        if header not in (["path", "label"], ["path", "label", "split"]):
            raise DataError(f"{path}:1: names the columns {','.join(header)[:60]!r}; path,label or path,label,split")
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if not row:
                continue
            if len(row) != len(header) or not all(value.strip() for value in row):
                raise DataError(f"{where}: {','.join(row)[:60]!r} is not a row of {','.join(header)}; mend the line")
            cloud = _parse_row(path, dict(zip(header, map(str.strip, row), strict=True)), where)
            if cloud.path in line_by_path:
                raise DataError(
                    f"{where}: {cloud.path.name} is listed on line {line_by_path[cloud.path]} already; keep one"
                )
            line_by_path[cloud.path] = reader.line_num
            yield cloud
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: does not read as CSV ({error}); mend the line") from error


def _parse_row(listed: Path, row: Mapping[str, str], where: str) -> ListedCloud:
    """Build the cloud of one row of a CSV list. Raises DataError for an invalid path, file type or split."""
    if "\0" in "".join(row.values()):
        raise DataError(f"{where}: {','.join(row.values())[:60]!r} has a character NUL; mend the line")
    path = Path(os.path.realpath(listed.parent / row["path"]))
    if not os.path.isfile(path):  # os.path.isfile accepts names that are too long for the disk
        raise DataError(f"{where}: there is no file {row['path']} (looked at {path}); mend the path")
    if path.suffix.lower() not in CLOUD_SUFFIXES:
        advice = advise_conversion(path) or f"there are {', '.join(CLOUD_SUFFIXES)}"
        raise DataError(f"{where}: {row['path']} is not a cloud file; {advice}")
    if row.get("split", "train") not in SPLITS:
        raise DataError(f"{where}: '{row['split']}' is not a part; there are {', '.join(SPLITS)}")
    return ListedCloud(path, row["label"], row.get("split"))
