"""Point cloud reader for one file: NPY, NPZ, HDF5, PLY, PCD, LAS, E57, OFF, OBJ, STL, or text."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from sightline.contract.errors import ConfigError, DataError, escape_to_one_line, join_some
from sightline.store.files.array_files import read_npy, read_npz_arrays
from sightline.store.files.cloud_values import note_values
from sightline.store.files.column_names import COLOURS, NORMALS, POINTS, SKIPPED, NamedColumns, is_whole, rename_columns
from sightline.store.files.e57_files import read_e57
from sightline.store.files.hdf5_files import read_hdf5_arrays
from sightline.store.files.input_files import assert_regular, damaged, list_files
from sightline.store.files.las_files import read_las
from sightline.store.files.mesh_formats import read_obj, read_off, read_stl
from sightline.store.files.other_kinds import advise_conversion, advise_conversions, advise_packed_splats
from sightline.store.files.pcd_files import read_pcd
from sightline.store.files.ply import read_ply
from sightline.store.files.text_tables import read_rows
from sightline.store.remarks import CountRemark

_MAX_LISTED = 5
Withheld: TypeAlias = Literal["drop", "keep"]
"""What becomes of points that a file flags as withheld, which is to say deleted (LAS specification 1.4, table 9)."""
_WITHHELD = "withheld"
_FLAGS = {
    "synthetic": "are flagged synthetic: computed, not measured; they are used",
    "key_point": "are flagged as key points; all points are used",
    "overlap": "are flagged as overlap of two flight lines; they are used",
}
"""Further flags of points by their names in LAS files (`laspy`), with what becomes of these points."""
_ARRAY_NAMES = {
    "points": "points",
    "xyz": "points",
    "normals": "normals",
    "normal": "normals",
    "faces": "faces",
    **dict.fromkeys(("colours", "colour", "colors", "color", "rgb"), "colours"),
}
_ARRAY_COLUMNS = {"points": POINTS, "normals": NORMALS, "colours": COLOURS}
_PTS_COLUMNS = (*POINTS, "intensity", *COLOURS)
"""Columns of a .pts file with seven, in the order of Leica's format."""
_COLUMNS_OF_SUFFIX = {".xyzn": (*POINTS, *NORMALS), ".xyzrgb": (*POINTS, *COLOURS)}
"""Columns that the suffix of a text file states, as Open3D writes it; its colours run from 0 to 1."""
_COLOUR_MAX = {"u1": 2**8 - 1, "u2": 2**16 - 1}
"""Largest colour that columns of a dtype can hold."""


class Channels(Mapping[str, np.ndarray]):
    """Columns (N,) by name in the dtype of their file, which are float64 when they are taken out."""

    def __init__(self, stored: Mapping[str, np.ndarray]) -> None:
        self.stored = stored

    def __getitem__(self, name: str) -> np.ndarray:
        return _as_float64(self.stored[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def _stored(channels: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Return columns in the dtype of their file."""
    return channels.stored if isinstance(channels, Channels) else channels


@dataclass(frozen=True)
class PointCloud:
    """Content of one file: finite numbers in the file's own unit and frame.

    `points` (N, 3) float64; `normals` (N, 3) float64; `faces` (F, 3) int64, triangles as indices of points; `channels`
    by name, each (N,) float64 when it is taken out. Points without a return, if they are kept, have NaN as x, y and z,
    and may have as channels. `column_names` are all columns of the file, also those that were not read. `colour_max` is
    the largest colour that the file's type can hold, None unless that is 8 or 16 bits. `is_withheld` (N,) bool marks
    points that the file flags as deleted, where such points were to be marked. `notes` state how the file was read
    where that is not plain.
    """

    points: np.ndarray
    normals: np.ndarray | None = None
    faces: np.ndarray | None = None
    channels: Mapping[str, np.ndarray] = field(default_factory=dict)
    column_names: tuple[str, ...] = ()
    colour_max: int | None = None
    notes: tuple[str, ...] = ()
    is_withheld: np.ndarray | None = None

    def rows(self, chosen: np.ndarray) -> PointCloud:
        """Select points by a mask (N,) bool, without faces; returns the same cloud if all are selected."""
        if chosen.all():
            return self
        normals = None if self.normals is None else self.normals[chosen]
        channels = Channels({name: values[chosen] for name, values in _stored(self.channels).items()})
        is_withheld = None if self.is_withheld is None else self.is_withheld[chosen]
        cloud = replace(self, points=self.points[chosen], normals=normals, faces=None, channels=channels)
        return replace(cloud, is_withheld=is_withheld)

    def without_withheld(self) -> PointCloud:
        """Return the cloud without the points that are marked as withheld."""
        return self if self.is_withheld is None else replace(self.rows(~self.is_withheld), is_withheld=None)


class UnnamedColumnsError(DataError):
    """A file whose columns have no names: its path, and its `table` (N, columns), from which names can be guessed."""

    path: Path
    table: np.ndarray


class _Content(NamedTuple):
    """Content of a file: columns (N,) by name, or a table (N, columns) without names, in the file's dtype.

    `first_line` is the line of the first point in a text file, else None; `step` is that of the coordinates where the
    file states it, else 0.
    """

    columns: Mapping[str, np.ndarray] | np.ndarray
    faces: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    first_line: int | None = None
    step: float = 0.0


def read_cloud(
    path: Path,
    *,
    columns: Sequence[str] | None = None,
    used: Collection[str] | None = None,
    keeps_no_returns: bool = False,
    withheld: Withheld | Literal["mark"] = "drop",
) -> PointCloud:
    """Read the whole cloud of a file; the suffix decides the format (`CLOUD_SUFFIXES`).

    `columns` names the columns of a file without names, in order, `_` for one to skip, which may be missing at the end
    of the rows; by default three columns are x, y, z. For a file with names it selects columns; by default all are
    taken. x, y, z are the points, nx, ny, nz the normals, all others channels; case does not matter, and other
    spellings of normals and colours are read as these (`column_names`). Of these, only those in `used` are converted,
    checked and returned, by default all. With `keeps_no_returns` points whose x, y and z are all NaN are kept; without
    it those of PCD, whose format defines them, are dropped. Points that a column `withheld` flags (LAS) are dropped,
    kept as all others, or kept and marked; notes count what is left out and what is flagged.
    Raises DataError with file and line, byte or entry; UnnamedColumnsError, a DataError, where columns need names;
    ConfigError for `columns` without a cloud.
    """
    names = None if columns is None else check_columns(columns)
    assert_regular(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        advice = advise_conversion(path) or f"there are {', '.join(CLOUD_SUFFIXES)}"
        raise DataError(f"{path}: files of this kind are not read; {advice}")
    content = reader(path)
    if isinstance(content.columns, np.ndarray):
        content, names = _name_columns(path, content, names, used)
    cloud = _make_cloud(path, content, names, used, withheld)
    if path.suffix.lower() == ".pcd" and not keeps_no_returns:
        cloud = drop_no_returns(cloud)
    _check_cloud(path, cloud, content.first_line, keeps_no_returns=keeps_no_returns)
    return cloud


def is_no_return(cloud: PointCloud) -> np.ndarray:
    """Return a mask (N,) of points without a sensor return (x, y, z all NaN). Vertices of a mesh are False."""
    return np.isnan(cloud.points).all(axis=1) & (cloud.faces is None or not len(cloud.faces))


def drop_no_returns(cloud: PointCloud) -> PointCloud:
    """Leave out the points without a return, as PCD defines them, and count them in a note."""
    is_missing = is_no_return(cloud)
    if not is_missing.any():
        return cloud
    what = "have no return (NaN) and are left out"
    note = CountRemark.make(int(is_missing.sum()), len(is_missing), what)
    return replace(cloud.rows(~is_missing), notes=(*cloud.notes, note))


def is_cloud_file(path: Path) -> bool:
    """Return True if a path has the name of a cloud file; so may broken links and pipes, which reading refuses.

    Hidden files are not: a disk of another system has `._a.ply` next to `a.ply`.
    """
    return path.suffix.lower() in CLOUD_SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def list_skipped_files(folder: Path, *, suffixes: Sequence[str] | None = None) -> str:
    """List in one line the files in and below a folder that are not clouds (or `suffixes`); empty if there are none.

    Hidden files, and files in hidden folders, are ignored.
    """
    allowed = CLOUD_SUFFIXES if suffixes is None else suffixes
    skipped = sorted(path.relative_to(folder) for path in list_files(folder) if path.suffix.lower() not in allowed)
    names = sorted(escape_to_one_line(str(path)) for path in skipped)
    if not names:
        return ""
    count = "1 file of another kind" if len(names) == 1 else f"{len(names)} files of other kinds"
    return f"{count} passed over: {join_some(names, most=_MAX_LISTED)}{advise_conversions(skipped)}"


def check_unlisted(
    root: Path, listed: Set[Path], *, suffixes: Collection[str], ignored_names: Collection[str], layout: str
) -> None:
    """Raise DataError for a file below `root` that is not among those listed, and has one of the suffixes.

    `layout` states where files belong. Files of `ignored_names`, hidden ones, and those that are listed by another link
    are ignored.
    """
    paths = [path for path in list_files(root, suffixes) if path not in listed and path.name not in ignored_names]
    known = {os.path.realpath(path) for path in listed if paths}
    for path in paths:
        if os.path.realpath(path) not in known:
            raise DataError(f"{path}: would be left out; lay it out as {layout}, or move it out of {root}")


def check_columns(columns: Sequence[str]) -> tuple[str, ...]:
    """Return the names in lower case, normals and colours in one spelling.

    Raises ConfigError for a missing coordinate or a repeated name.
    """
    if isinstance(columns, str):
        raise ConfigError(f"columns: found the text {columns!r}, allowed is a list of names: {columns.split(',')}")
    names = tuple(name.strip().lower() for name in columns)
    twice = sorted({name for name in names if names.count(name) > 1 and name != SKIPPED})
    missing = [name for name in POINTS if name not in names]
    if 0 < len(set(NORMALS) & set(names)) < 3:
        missing += [name for name in NORMALS if name not in names]
    if twice or missing:
        fault = f"names '{twice[0]}' twice" if twice else f"lacks {', '.join(missing)}"
        raise ConfigError(f"columns: [{', '.join(names)}] {fault}; name every column once, as in [x, y, z, intensity]")
    new_names = {old: new for new, old in rename_columns(list(dict.fromkeys(names))).items()}
    return tuple(new_names[name] for name in names)


def _read_npy(path: Path) -> _Content:
    table = read_npy(path)
    if table.dtype.names is None:
        return _Content(table)
    return _join_arrays(path, {name: table[name] for name in table.dtype.names})


def _read_pcd(path: Path) -> _Content:
    fields = read_pcd(path)
    extra = f"{fields.num_extra_bytes} bytes behind the announced points are not read"
    return _Content(fields.named, notes=(extra,) if fields.num_extra_bytes else ())


def _read_las(path: Path) -> _Content:
    content = read_las(path)
    extra = f"{content.num_extra_bytes} bytes behind the points that its header counts are not read"
    return _Content(content.columns, notes=(extra,) if content.num_extra_bytes else (), step=content.step)


def _read_e57(path: Path) -> _Content:
    content = read_e57(path)
    return _Content(content.columns, notes=content.notes)


def _read_text(path: Path) -> _Content:
    rows = read_rows(path)
    columns = rows.table if rows.names is None else dict(zip(rows.names, rows.table.T, strict=True))
    if rows.num_counts > 1:
        return _Content(columns, None, (f"its {rows.num_counts} scans are read as one cloud",))
    notes = (f"line {rows.first_line - 1} is read as the number of points",) if rows.num_counts else ()
    return _Content(columns, None, notes if path.suffix.lower() != ".pts" else (), rows.first_line)


def _name_columns(
    path: Path, content: _Content, columns: tuple[str, ...] | None, used: Collection[str] | None
) -> tuple[_Content, tuple[str, ...]]:
    """Name the columns of a table, and return them; rows may lack those at the end that are not used."""
    table = content.columns
    assert isinstance(table, np.ndarray)
    if table.ndim != 2 or table.dtype.kind not in "fiu":
        raise DataError(f"{path}: holds {table.dtype} {table.shape}, numbers (points, columns) are needed")
    width, notes = table.shape[1], content.notes
    stated = _COLUMNS_OF_SUFFIX.get(path.suffix.lower(), POINTS)
    names = columns or (stated if width == len(stated) else None)
    if (
        names is None
        and path.suffix.lower() == ".pts"
        and width == len(_PTS_COLUMNS)
        and is_whole(table[:, 4:], 0, 255)
    ):
        names, notes = _PTS_COLUMNS, (*notes, f"{width} columns are read as {', '.join(_PTS_COLUMNS)}")
    if names is None and width < len(POINTS):
        raise DataError(f"{path}: has {width} column{'s' * (width > 1)}; a cloud needs x, y and z: give another file")
    if names is None:
        error = UnnamedColumnsError(
            f"{path}: has {width} columns and no names; name them, in order, _ for one to leave out: "
            "'columns=[x, y, z, ...]' when preparing, --columns x,y,z,... when predicting"
        )
        error.path, error.table = path, table
        raise error
    if 0 < width < len(names) and not any(is_used(name, used) for name in names[width:]):
        names = names[:width]
    if len(names) != width:
        raise DataError(
            f"{path}: has {width} columns, {len(names)} are named ({', '.join(names)}); name all, _ for none"
        )
    named = dict(zip(names, table.T, strict=True))
    named.pop(SKIPPED, None)
    return content._replace(columns=named, notes=notes), tuple(named)


def is_used(name: str, used: Collection[str] | None) -> bool:
    """Return True for a column that is read: x, y, z, and those in `used`, by default all but `_`."""
    return name != SKIPPED and (used is None or name in POINTS or name in used)


def _join_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> _Content:
    """Make columns of named arrays: `points`, `normals`, `colours` (N, 3), `faces`, else one value per point."""
    if len(arrays) == 1 and (table := next(iter(arrays.values()))).ndim == 2:
        return _Content(table)
    named: dict[str, np.ndarray] = {}
    faces = None
    for name, array in arrays.items():
        role = _ARRAY_NAMES.get(name.lower()) if array.ndim != 1 else None
        if role and (array.dtype.kind not in "fiu" or array.ndim != 2 or array.shape[1] != 3):
            raise DataError(
                f"{path}: {name} is {array.dtype} {array.shape}; points, normals and colours are numbers (points, 3)"
            )
        if role == "faces":
            faces = array
            continue
        column_names = _ARRAY_COLUMNS.get(role or "", (name.lower(),))
        repeated = [column_name for column_name in column_names if column_name in named]
        if repeated:
            raise DataError(f"{path}: {name} contains {repeated[0]} a second time; store it once")
        named |= dict(zip(column_names, array.T if role else [array], strict=True))
    return _Content(named, faces)


def _make_cloud(
    path: Path,
    content: _Content,
    columns: tuple[str, ...] | None,
    used: Collection[str] | None,
    withheld: Withheld | Literal["mark"],
) -> PointCloud:
    """Make the cloud of named columns: those of `columns`, if they are stated, that are in `used`."""
    assert not isinstance(content.columns, np.ndarray)
    named = NamedColumns(content.columns)
    chosen = [name for name in (named if columns is None else columns) if is_used(name, used)]
    missing = [name for name in (*POINTS, *chosen) if name not in named]
    missing += [name for name in NORMALS if set(NORMALS) & set(chosen) and name not in named]
    if missing:
        advice = "name what is there: 'columns=[x, y, z]' when preparing, --columns x,y,z when predicting"
        if set(POINTS) & set(missing):
            advice = advise_packed_splats(path, named) or "call its coordinates x, y, z in the file"
        raise DataError(
            f"{path}: has no {', '.join(dict.fromkeys(missing))}; it has {', '.join(named)[:200] or 'nothing'}; "
            f"{advice}"
        )
    arrays = {name: named[name] for name in dict.fromkeys((*POINTS, *chosen))}
    wrong = next((name for name, array in arrays.items() if array.ndim != 1 or array.dtype.kind not in "fiu"), None)
    if wrong is not None:
        raise DataError(
            f"{path}: {wrong} is {arrays[wrong].dtype} {arrays[wrong].shape}, one number a point is "
            "needed; leave it out: 'columns=[x, y, z]' when preparing, --columns x,y,z for other commands"
        )
    if len({len(array) for array in arrays.values()}) > 1:
        listed = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
        raise DataError(f"{path}: columns of different lengths: {listed}; the file is damaged or in another format")
    is_mesh = bool(content.faces is not None and len(content.faces))
    is_withheld, notes = _read_flags(path, named, len(arrays["x"]), withheld, is_mesh=is_mesh)
    if is_withheld is not None and withheld == "drop":
        arrays = {name: values[~is_withheld] for name, values in arrays.items()}
    colour_types = {arrays[name].dtype.str[1:] for name in COLOURS if set(COLOURS) <= set(arrays)}
    faces = content.faces
    return PointCloud(
        points=_stack_columns(arrays, POINTS),
        normals=_stack_columns(arrays, NORMALS) if "nx" in arrays else None,
        faces=None if faces is None else np.asarray(faces, dtype=np.int64),
        channels=Channels({name: array for name, array in arrays.items() if name not in (*POINTS, *NORMALS)}),
        column_names=tuple(named),
        colour_max=_COLOUR_MAX.get(colour_types.pop()) if len(colour_types) == 1 else None,
        notes=(
            *content.notes,
            *named.notes(arrays),
            *notes,
            *note_values(arrays, is_mesh=is_mesh, step=content.step),
        ),
        is_withheld=is_withheld if withheld == "mark" else None,
    )


def _read_flags(
    path: Path, named: Mapping[str, np.ndarray], count: int, withheld: str, *, is_mesh: bool
) -> tuple[np.ndarray | None, list[str]]:
    """Read the flags of points, and count them in notes; a mask (count,) of those withheld, None if there are none.

    Points of a mesh, whose faces name them, are not left out. Raises DataError if all are to be dropped.
    """
    columns = {name: named[name] for name in (_WITHHELD, *_FLAGS) if name in named}
    flags = {name: values != 0 for name, values in columns.items() if is_flag(values, count)}
    counts = {name: int(is_set.sum()) for name, is_set in flags.items() if is_set.any()}
    notes = [CountRemark.make(counts[name], count, what) for name, what in _FLAGS.items() if name in counts]
    if _WITHHELD not in counts:
        return None, [*notes]
    if withheld == "drop" and counts[_WITHHELD] == count and not is_mesh:
        raise DataError(
            f"{path}: all {count} points are flagged withheld, which means deleted; leave the file out, or take them "
            "by withheld=keep"
        )
    is_used = withheld == "keep" or is_mesh
    what = "are used: withheld=drop leaves them out" if is_used else "are left out: withheld=keep takes them"
    note = CountRemark.make(counts[_WITHHELD], count, f"are flagged withheld, which means deleted, and {what}")
    return None if is_used else flags[_WITHHELD], [note, *notes]


def is_flag(values: np.ndarray, count: int) -> bool:
    """Return True for a column (count,) of nothing but 0 and 1."""
    if values.shape != (count,) or values.dtype.kind not in "biuf" or not count:
        return False
    return bool(values.min() >= 0 and values.max() <= 1) if values.dtype.kind in "biu" else is_whole(values, 0, 1)


def _as_float64(values: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # a signalling NaN is refused like any other NaN
        return np.asarray(values, dtype=np.float64)


def _is_finite(values: np.ndarray) -> bool:
    return values.dtype.kind in "iu" or bool(np.isfinite(values).all())


def _stack_columns(named: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Stack columns (N,) to (N, len(names)) float64."""
    stacked = np.empty((len(named[names[0]]), len(names)))
    with np.errstate(invalid="ignore"):
        for index, name in enumerate(names):
            stacked[:, index] = named[name]
    return stacked


def _check_cloud(path: Path, cloud: PointCloud, first_line: int | None, *, keeps_no_returns: bool) -> None:
    """Raise DataError for a cloud without points, a number that is not finite, or a corner that is not a point."""
    if not len(cloud.points):
        raise DataError(f"{path}: holds no points; leave the file out")
    stated = {"points": cloud.points} | ({} if cloud.normals is None else {"normals": cloud.normals})
    arrays = {**stated, **_stored(cloud.channels)}
    suspects = [name for name, values in arrays.items() if not _is_finite(values)]
    is_allowed = is_no_return(cloud) & keeps_no_returns if suspects else np.zeros(0, dtype=bool)
    for name in suspects:
        values = stated[name] if name in stated else cloud.channels[name]
        invalid = np.argwhere((~np.isfinite(values).T & ~is_allowed).T)
        if len(invalid):
            position = tuple(invalid[0].tolist())
            where, remedy = f"{path}: {name}{list(position)} is {values[position]}", "take these points out of the file"
            if first_line is not None:
                where = f"{path}:{first_line + position[0]}: {values[position]} is not a finite number ({name})"
                remedy = "mend the line, or take these points out"
            more = f", and so are {len(invalid) - 1} more" if len(invalid) > 1 else ""
            raise DataError(f"{where}{more}; {remedy}{_advise_columns(cloud, name)}")
    faces, count = np.zeros(0) if cloud.faces is None else cloud.faces, len(cloud.points)
    if len(outside := faces[(faces < 0) | (faces >= count)]):
        raise damaged(f"{path}: a face names point {outside[0]}, there are {count} (0 to {count - 1})")


def _advise_columns(cloud: PointCloud, name: str) -> str:
    """Return the advice to read a cloud without a channel, or without its normals; empty for its points."""
    if name == "points":
        return ""
    columns = [*POINTS, *(NORMALS if cloud.normals is not None else ()), *cloud.channels]
    listed = ", ".join(column for column in columns if column != name and (name != "normals" or column not in NORMALS))
    words = listed.replace(" ", "")
    return f", or read it without {name}: 'columns=[{listed}]' or --columns {words} (_ skips a column without a name)"


_READERS: Mapping[str, Callable[[Path], _Content]] = {
    ".npy": _read_npy,
    ".npz": lambda path: _join_arrays(path, read_npz_arrays(path)),
    **dict.fromkeys((".h5", ".hdf5"), lambda path: _join_arrays(path, read_hdf5_arrays(path))),
    ".ply": lambda path: _Content(*read_ply(path)),
    ".pcd": _read_pcd,
    **dict.fromkeys((".las", ".laz"), _read_las),
    ".e57": _read_e57,
    ".off": lambda path: _Content(*read_off(path)),
    ".obj": lambda path: _Content(*read_obj(path)),
    ".stl": lambda path: _Content(*read_stl(path)),
    **dict.fromkeys((".txt", ".xyz", ".csv", ".pts", ".asc", *_COLUMNS_OF_SUFFIX), _read_text),
}
"""Reader of each suffix; all results have columns by name, or a table that `columns` names."""

CLOUD_SUFFIXES = tuple(_READERS)
"""Suffixes of the files that `read_cloud` reads."""
