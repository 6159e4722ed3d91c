"""Lists of names that divide a set, such as ImageSets/train.txt, and the description of a split."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from pathlib import Path

from sightline.contract.errors import DataError
from sightline.store.files.input_files import read_file

BY_NAME = "by data.tested, else the last data.test_share in the order of names"
"""Split of a set whose source has no parts."""
_LISTS = {"train": ("train.txt",), "test": ("val.txt", "test.txt")}


def read_name_lists(folder: Path, names: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Read the names of `train` and `test` from lists in a folder, and notes; one split `all` without lists.

    Lists have one name per line: train.txt, and val.txt or else test.txt. Names in no list are left out, with a note.
    Raises DataError for one list alone, a name in both lists, and a list that names none of the scans.
    """
    list_paths = {
        part: [folder / file for file in files if (folder / file).is_file()][:1] for part, files in _LISTS.items()
    }
    absent = [part for part, paths in list_paths.items() if not paths]
    if len(absent) == 1:
        (present,) = itertools.chain(*list_paths.values())
        other = " or ".join(_LISTS[absent[0]])
        raise DataError(f"{present}: is there without {other}; list the scans of the other part there, or move it away")
    if absent:
        return {"all": list(names)}, []
    texts = {part: read_file(files[0]).decode("utf-8-sig", "replace") for part, files in list_paths.items()}
    names_by_list = {
        part: [name for line in text.splitlines() if (name := line.strip())] for part, text in texts.items()
    }
    shared = sorted(set(names_by_list["train"]) & set(names_by_list["test"]))
    if shared:
        more = f", and {len(shared) - 1} more" if len(shared) > 1 else ""
        raise DataError(f"{folder}: '{shared[0]}' is in both lists{more}; each name has one part")
    available = set(names)
    parts = {part: sorted(available & set(part_names)) for part, part_names in names_by_list.items()}
    missing = sum(len(set(part_names) - available) for part_names in names_by_list.values())
    empty = [part for part in parts if not parts[part]]
    if empty:
        raise DataError(
            f"{list_paths[empty[0]][0]}: names none of the {len(names)} scans; put the lists of these scans there"
        )
    left_out = len(available) - sum(map(len, parts.values()))
    notes = [
        *([f"{missing} names in the lists of {folder.name} without files"] if missing else []),
        *([f"{left_out} scans in none of the lists of {folder.name}, left out"] if left_out else []),
    ]
    return parts, notes


def describe_split(parts: Collection[str], source: str, *, otherwise: str = BY_NAME) -> str:
    """Describe the split that a set has: the parts of the source, found in `source`, or one made by the run."""
    return otherwise if "all" in parts else f"{' and '.join(parts)} are given by {source}; data.tested overrides them"
