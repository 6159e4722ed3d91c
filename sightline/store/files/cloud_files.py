"""Point cloud reader for one file: NPY, NPZ, HDF5, PLY, PCD, LAS, E57, OFF, or text."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sightline.contract.errors import ConfigError, DataError, escape_to_one_line, join_some
from sightline.store.files.array_files import READ_ERRORS, hdf5_names, read_hdf5_arrays, read_npy, read_npz_arrays
from sightline.store.files.cloud_formats import announces_faces, read_las, read_off, read_pcd
from sightline.store.files.e57_files import read_e57
from sightline.store.files.input_files import assert_regular
from sightline.store.files.ply import read_ply
from sightline.store.files.text_tables import read_rows

_POINTS = ("x", "y", "z")
_NORMALS = ("nx", "ny", "nz")
_SKIPPED = "_"
_HEAD_BYTES = 65_536
_MAX_LISTED = 5
_STRAY_RATIO = 1e3
_MIN_POINTS_FOR_STRAYS = 100
"""Minimum number of points of the check: of fewer, 99 % are all."""
_SAMPLE_SIZE = 10_000
_MIN_UNIT_GAP = 20.0
"""Least factor between neighbouring sizes at which they may be of two units."""
_MAX_UNIT_ERROR = 4.0
"""Largest factor between the ratio of two groups of sizes and that of two units: the samples differ in size, too."""
_COLOURS = ("red", "green", "blue")
_ARRAY_NAMES = {
    "points": "points",
    "xyz": "points",
    "normals": "normals",
    "normal": "normals",
    "faces": "faces",
    **dict.fromkeys(("colours", "colors", "rgb"), "colours"),
}
_ARRAY_COLUMNS = {"points": _POINTS, "normals": _NORMALS, "colours": _COLOURS}


@dataclass(frozen=True)
class PointCloud:
    """Content of one file: finite numbers in the file's own unit and frame.

    `points` (N, 3) float64; `normals` (N, 3) float64; `faces` (F, 3) int64, triangles as indices of points; `channels`
    by name, each (N,) float64. Points without a return, if they are kept, have NaN as x, y and z, and may have as
    channels.
    """

    points: np.ndarray
    normals: np.ndarray | None = None
    faces: np.ndarray | None = None
    channels: Mapping[str, np.ndarray] = field(default_factory=dict)

    def rows(self, chosen: np.ndarray) -> PointCloud:
        """Select points by a mask (N,) bool, without faces; returns the same cloud if all are selected."""
        if chosen.all():
            return self
        normals = None if self.normals is None else self.normals[chosen]
        return PointCloud(
            self.points[chosen], normals, None, {name: values[chosen] for name, values in self.channels.items()}
        )


def read_cloud(path: Path, *, columns: Sequence[str] | None = None, keeps_no_returns: bool = False) -> PointCloud:
    """Read the whole cloud of a file; the suffix decides the format (`CLOUD_SUFFIXES`).

    `columns` names the columns of a file without names, in order, `_` for one to skip, which may be missing at the end
    of the rows; by default three columns are x, y, z. For a file with names it selects columns; by default all are
    taken. x, y, z are the points, nx, ny, nz the normals, all others channels; case does not matter. With
    `keeps_no_returns` points whose x, y and z are all NaN are kept; without it those of PCD, whose format defines them,
    are dropped. Raises DataError with file and line, byte or entry; ConfigError for `columns` without a cloud.
    """
    wanted = None if columns is None else check_columns(columns)
    assert_regular(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: files of this kind are not read; there are {', '.join(CLOUD_SUFFIXES)}")
    cloud = reader(path, wanted)
    if path.suffix.lower() == ".pcd" and not keeps_no_returns:
        cloud = cloud.rows(~is_no_return(cloud))
    _check_cloud(path, cloud, keeps_no_returns=keeps_no_returns)
    return cloud


def is_no_return(cloud: PointCloud) -> np.ndarray:
    """Return a mask (N,) of points without a sensor return (x, y, z all NaN). Vertices of a mesh are False."""
    return np.isnan(cloud.points).all(axis=1) & (cloud.faces is None or not len(cloud.faces))


def has_normals(path: Path, *, by_faces: bool = True) -> bool:
    """Return True if the first bytes or array names of a file announce normals, or faces if these count.

    Nothing else is checked: a file that is not of its format has none here, and is refused when it is read.
    Raises DataError unless it is a regular file.
    """
    assert_regular(path)
    suffix = path.suffix.lower()
    if suffix in (".npz", ".h5", ".hdf5"):
        names = {name.lower() for name in _array_names(path)}
        return bool({"normals", "normal", "nx", *(["faces"] if by_faces else [])} & names)
    if suffix in (".npy", ".las", ".laz", ".e57"):
        return False
    if suffix == ".off":
        return by_faces and announces_faces(path)
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).decode("latin-1").lower()
    if suffix == ".ply":
        header = head.partition("end_header")[0].split("\n")
        lines = [line.split() for line in header]
        return any(fields[:1] == ["property"] and fields[-1:] == ["nx"] for fields in lines) or any(
            by_faces and fields[:2] == ["element", "face"] and fields[2:] != ["0"] for fields in lines
        )
    return "nx" in head.replace(",", " ").replace('"', " ").split()


def _array_names(path: Path) -> list[str]:
    """List the array names of an NPZ or HDF5 file; empty if it is damaged."""
    try:
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                return [name.removesuffix(".npy") for name in archive.namelist()]
        return hdf5_names(path)
    except READ_ERRORS:
        return []


def is_cloud_file(path: Path, *, suffixes: Sequence[str] | None = None) -> bool:
    """Return True if a path has the name of a cloud file; so may broken links and pipes, which reading refuses.

    Hidden files are not: a disk of another system has `._a.ply` next to `a.ply`.
    """
    is_one = path.suffix.lower() in (CLOUD_SUFFIXES if suffixes is None else suffixes)
    return is_one and not path.name.startswith(".") and not path.is_dir()


def list_skipped_files(folder: Path, *, suffixes: Sequence[str] | None = None) -> str:
    """List in one line the files in and below a folder that are not clouds (or `suffixes`); empty if there are none.

    Hidden files, and files in hidden folders, are ignored.
    """
    allowed = CLOUD_SUFFIXES if suffixes is None else suffixes
    others = (path for path in folder.rglob("*") if path.suffix.lower() not in allowed and path.is_file())
    inner = (path.relative_to(folder) for path in others)
    names = sorted(
        escape_to_one_line(str(path)) for path in inner if not any(part.startswith(".") for part in path.parts)
    )
    if not names:
        return ""
    count = "1 file of another kind" if len(names) == 1 else f"{len(names)} files of other kinds"
    return f"{count} passed over: {join_some(names, most=_MAX_LISTED)}"


def check_columns(columns: Sequence[str]) -> tuple[str, ...]:
    """Return the names in lower case. Raises ConfigError for a missing coordinate or a repeated name."""
    if isinstance(columns, str):
        raise ConfigError(f"columns: found the text {columns!r}, allowed is a list of names: {columns.split(',')}")
    names = tuple(name.strip().lower() for name in columns)
    twice = sorted({name for name in names if names.count(name) > 1 and name != _SKIPPED})
    missing = [name for name in _POINTS if name not in names]
    if 0 < len(set(_NORMALS) & set(names)) < 3:
        missing += [name for name in _NORMALS if name not in names]
    if twice or missing:
        fault = f"names '{twice[0]}' twice" if twice else f"lacks {', '.join(missing)}"
        raise ConfigError(f"columns: [{', '.join(names)}] {fault}; name every column once, as in [x, y, z, intensity]")
    return names


def check_strays(points: np.ndarray, *, where: str) -> None:
    """Raise DataError, beginning with `where`, for a point (N, 3) a thousand times as far out as 99 % of the others.

    One such point leaves the rest of the cloud no extent, and every check relative to the extent no power.
    """
    sample = points[:: max(1, len(points) // _SAMPLE_SIZE)]
    median = np.median(sample, axis=0)
    spread = float(np.quantile(np.abs(sample - median).max(axis=1), 0.99, method="lower"))
    bound = _STRAY_RATIO * spread
    is_near = (points.min(axis=0) >= median - bound).all() and (points.max(axis=0) <= median + bound).all()
    if len(points) < _MIN_POINTS_FOR_STRAYS or spread == 0 or is_near:
        return
    distance = np.abs(points - median).max(axis=1)
    farthest = int(distance.argmax())
    raise DataError(
        f"{where}: point {farthest} lies {distance[farthest]:.4g} from the middle, 99 % of the {len(points)} points "
        f"within {spread:.4g}; take out the {int((distance > bound).sum())} points that lie beyond {bound:.4g}"
    )


def note_mixed_units(names: Sequence[str], sizes: Sequence[float], what: str) -> list[str]:
    """Return a note if sizes of files form two groups, apart by about the factor of two units of length.

    `sizes` are in the unit of the files, 0 for files without points; `what` names the files: clouds, scans.
    """
    size = np.asarray(sizes, dtype=np.float64)
    order = np.argsort(size, kind="stable")[int((size <= 0).sum()) :]
    ratios = size[order][1:] / size[order][:-1]
    if ratios.max(initial=0.0) < _MIN_UNIT_GAP:
        return []
    small, large = np.split(order, [int(ratios.argmax()) + 1])
    factor = float(np.median(size[large]) / np.median(size[small]))
    if not any(max(factor / of_units, of_units / factor) < _MAX_UNIT_ERROR for of_units in (100, 1000)):
        return []
    few, others = sorted((small, large), key=len)
    return [
        f"units may be mixed: {len(few)} of {len(order)} {what}, first {names[int(few.min())]}, reach about "
        f"{np.median(size[few]):.3g}, the others {np.median(size[others]):.3g}; "
        "convert all to one unit"
    ]


def _read_npy(path: Path, columns: tuple[str, ...] | None) -> PointCloud:
    return _make_from_table(path, read_npy(path), columns)


def _read_npz(path: Path, columns: tuple[str, ...] | None) -> PointCloud:
    return _make_from_arrays(path, read_npz_arrays(path), columns)


def _read_hdf5(path: Path, columns: tuple[str, ...] | None) -> PointCloud:
    return _make_from_arrays(path, read_hdf5_arrays(path), columns)


def _read_off(path: Path, columns: tuple[str, ...] | None) -> PointCloud:
    mesh = read_off(path, needs_faces=False)
    faces = mesh.faces if len(mesh.faces) else None
    return _make_from_columns(path, dict(zip(_POINTS, mesh.vertices.T, strict=True)), columns, faces=faces)


def _read_ply(path: Path, columns: tuple[str, ...] | None) -> PointCloud:
    ply = read_ply(path)
    return _make_from_columns(path, ply.vertex, columns, faces=ply.faces)


def _read_pcd(path: Path, columns: tuple[str, ...] | None) -> PointCloud:
    return _make_from_columns(path, read_pcd(path, keeps_no_returns=True), columns)


def _read_las(path: Path, columns: tuple[str, ...] | None) -> PointCloud:
    return _make_from_columns(path, read_las(path), columns)


def _read_e57(path: Path, columns: tuple[str, ...] | None) -> PointCloud:
    return _make_from_columns(path, read_e57(path), columns)


def _read_text(path: Path, columns: tuple[str, ...] | None) -> PointCloud:
    names, table = read_rows(path, announces_rows=path.suffix.lower() == ".pts")
    if names is None:
        return _make_from_table(path, table, columns)
    return _make_from_columns(path, dict(zip(names, table.T, strict=True)), columns)


def _make_from_table(path: Path, table: np.ndarray, columns: tuple[str, ...] | None) -> PointCloud:
    """Make the cloud of a table without column names."""
    if table.ndim != 2 or table.dtype.kind not in "fiu":
        raise DataError(f"{path}: holds {table.dtype} {table.shape}, numbers (points, columns) are needed")
    width = table.shape[1]
    names = columns or (_POINTS if width == 3 else None)
    if names is None:
        raise DataError(
            f"{path}: has {width} columns and no names; name them, in order, _ for one to leave out: "
            "'columns=[x, y, z, ...]' when preparing, --columns x,y,z,... when predicting"
        )
    if 0 < width < len(names) and set(names[width:]) == {_SKIPPED}:
        names = names[:width]
    if len(names) != width:
        raise DataError(
            f"{path}: has {width} columns, {len(names)} are named ({', '.join(names)}); name all, _ for none"
        )
    return _make_from_columns(path, dict(zip(names, table.T, strict=True)), tuple(n for n in names if n != _SKIPPED))


def _make_from_arrays(path: Path, arrays: Mapping[str, np.ndarray], columns: tuple[str, ...] | None) -> PointCloud:
    """Make the cloud of named arrays: `points`, `normals`, `colours` (N, 3), `faces`, else one value per point."""
    if len(arrays) == 1 and (table := next(iter(arrays.values()))).ndim == 2:
        return _make_from_table(path, table, columns)
    named: dict[str, np.ndarray] = {}
    faces = None
    for name, array in arrays.items():
        role = _ARRAY_NAMES.get(name.lower())
        if array.dtype.kind not in "fiu" or array.ndim != (2 if role else 1) or (role and array.shape[1:] != (3,)):
            raise DataError(
                f"{path}: {name} is {array.dtype} {array.shape}; points, normals and colours are numbers (points, "
                "3), every other array has one number a point"
            )
        if role == "faces":
            faces = array
            continue
        column_names = _ARRAY_COLUMNS.get(role or "", (name.lower(),))
        repeated = [column_name for column_name in column_names if column_name in named]
        if repeated:
            raise DataError(f"{path}: {name} contains {repeated[0]} a second time; store it once")
        named |= dict(zip(column_names, array.reshape(len(array), -1).T, strict=True))
    return _make_from_columns(path, named, columns, faces=faces)


def _make_from_columns(
    path: Path, named: Mapping[str, np.ndarray], columns: tuple[str, ...] | None, *, faces: np.ndarray | None = None
) -> PointCloud:
    """Make the cloud of named columns, (N,) each."""
    wanted = [name for name in (named if columns is None else columns) if name != _SKIPPED]
    missing = [name for name in (*_POINTS, *wanted) if name not in named]
    missing += [name for name in _NORMALS if set(_NORMALS) & set(wanted) and name not in named]
    if missing:
        raise DataError(
            f"{path}: has no {', '.join(dict.fromkeys(missing))}; it has {', '.join(named)[:200] or 'nothing'}; name "
            "what is there: 'columns=[x, y, z]' when preparing, --columns x,y,z when predicting"
        )
    lengths = {name: len(named[name]) for name in (*_POINTS, *wanted)}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"{path}: columns of different lengths: {listed}; the file is damaged or in another format")
    return PointCloud(
        points=_stack_columns(named, _POINTS),
        normals=_stack_columns(named, _NORMALS) if "nx" in wanted else None,
        faces=None if faces is None else np.asarray(faces, dtype=np.int64),
        channels={
            name: np.asarray(named[name], dtype=np.float64) for name in wanted if name not in (*_POINTS, *_NORMALS)
        },
    )


def _stack_columns(named: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Stack columns (N,) to (N, len(names)) float64."""
    with np.errstate(invalid="ignore"):  # a signalling NaN is refused like any other NaN
        return np.stack([np.asarray(named[name], dtype=np.float64) for name in names], axis=1)


def _check_cloud(path: Path, cloud: PointCloud, *, keeps_no_returns: bool) -> None:
    """Raise DataError for a cloud without points, a number that is not finite, or a corner that is not a point."""
    if not len(cloud.points):
        raise DataError(f"{path}: holds no points; leave the file out")
    normals = {} if cloud.normals is None else {"normals": cloud.normals}
    is_allowed = is_no_return(cloud) & keeps_no_returns
    for name, values in {"points": cloud.points, **normals, **cloud.channels}.items():
        invalid = np.argwhere((~np.isfinite(values).T & ~is_allowed).T)
        if len(invalid):
            position = tuple(invalid[0].tolist())
            more = f", and so are {len(invalid) - 1} more" if len(invalid) > 1 else ""
            raise DataError(
                f"{path}: {name}{list(position)} is {values[position]}{more}; take these points out of the file"
            )
    if cloud.faces is not None and len(cloud.faces) and not _is_within(cloud.faces, len(cloud.points)):
        raise DataError(
            f"{path}: a face names point {_first_outside(cloud.faces, len(cloud.points))}, there are "
            f"{len(cloud.points)} (0 to {len(cloud.points) - 1}); the file is damaged or in another format"
        )


def _is_within(faces: np.ndarray, num_points: int) -> bool:
    return bool(faces.min() >= 0 and faces.max() < num_points)


def _first_outside(faces: np.ndarray, num_points: int) -> int:
    return int(faces[(faces < 0) | (faces >= num_points)][0])


_READERS: Mapping[str, Callable[[Path, tuple[str, ...] | None], PointCloud]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
    ".ply": _read_ply,
    ".pcd": _read_pcd,
    ".las": _read_las,
    ".laz": _read_las,
    ".e57": _read_e57,
    ".off": _read_off,
    ".txt": _read_text,
    ".xyz": _read_text,
    ".csv": _read_text,
    ".pts": _read_text,
}

CLOUD_SUFFIXES = tuple(_READERS)
"""Suffixes of the files that `read_cloud` reads."""
