"""Files of a source by a pattern that names parts of their paths, such as the split and the class."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from sightline.contract.errors import DataError, join_some
from sightline.contract.schema import suggest
from sightline.store.files.input_files import natural_sort_key
from sightline.store.prepared.prepared_set import summarise_folder

_PART = re.compile(r"\{(\w+)\}")


class SourceFile(NamedTuple):
    """File of a source, and the parts of its path by their names in the pattern."""

    path: Path
    parts: Mapping[str, str]


def find_files(root: Path, pattern: str, *, allowed: Mapping[str, Collection[str]]) -> list[SourceFile]:
    """Find the files below `root` whose paths fit a pattern such as `{split}/{label}/{name}.off`.

    A part, in braces, is any text without a slash; where it comes again, it is the same. Files are in the order of the
    `allowed` values of parts, then of their paths, in which `a2` comes before `a10`; hidden ones are no samples.
    Raises DataError if there are none, and for a part that is none of its `allowed` values.
    """
    expression = re.compile(_write_expression(pattern, allowed))
    glob = _PART.sub("*", pattern)
    matches = [(path, expression.fullmatch(path.relative_to(root).as_posix())) for path in root.glob(glob)]
    files = [SourceFile(path, match.groupdict()) for path, match in matches if match is not None and path.is_file()]
    files = [file for file in files if not any(part.startswith(".") for part in file.parts.values())]
    if not files:
        raise DataError(f"{root}: holds {summarise_folder(root)}, no file {_PART.sub(_show_part, pattern)}")
    for file in sorted(files):
        for part, values in allowed.items():
            if (value := file.parts[part]) not in values:
                advice = f"it is one of {join_some([*values], most=8)}{suggest(value, [*values])}"
                raise DataError(f"{file.path}: '{value[:40]}' is no {part}; {advice}")
    ranks = {part: {value: rank for rank, value in enumerate(values)} for part, values in allowed.items()}
    return sorted(
        files, key=lambda file: ([ranks[part][file.parts[part]] for part in ranks], natural_sort_key(str(file.path)))
    )


def _write_expression(pattern: str, allowed: Mapping[str, Collection[str]]) -> str:
    """Write the regular expression of a pattern; each part is a group, which prefers its allowed values."""
    pieces, seen = _PART.split(pattern), set[str]()
    for index, piece in enumerate(pieces):
        if index % 2 == 0:
            pieces[index] = re.escape(piece)
        else:
            values = [re.escape(value) for value in sorted(allowed.get(piece, ()), key=len, reverse=True)]
            pieces[index] = f"(?P={piece})" if piece in seen else f"(?P<{piece}>{'|'.join([*values, '[^/]+?'])})"
            seen.add(piece)
    return "".join(pieces)


def _show_part(match: re.Match[str]) -> str:
    return match[1].upper()
