"""One point cloud from one file, whatever it is stored in: NPY, NPZ, HDF5, PLY, PCD, LAS, OFF, or text."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sightline.data.files.array_files import READ_ERRORS, read_npy, read_npz_arrays
from sightline.data.files.hdf5_files import hdf5_names, read_hdf5_arrays
from sightline.data.files.input_files import assert_regular
from sightline.data.files.las import read_las
from sightline.data.files.off import announces_faces, read_off
from sightline.data.files.pcd import read_pcd
from sightline.data.files.ply import read_ply
from sightline.data.files.text_tables import read_rows
from sightline.errors import ConfigError, DataError, escape_to_one_line

__all__ = [
    "CLOUD_SUFFIXES",
    "PointCloud",
    "check_columns",
    "check_strays",
    "has_normals",
    "is_cloud_file",
    "is_no_return",
    "list_skipped_files",
    "read_cloud",
]

_POINTS = ("x", "y", "z")
_NORMALS = ("nx", "ny", "nz")
_LEFT_OUT = "_"
_HEAD_BYTES = 65_536
_MOST_LISTED = 5
_STRAY_RATIO = 1e3
_FEWEST_FOR_STRAYS = 100
"""Of fewer points 99 % are all."""
_NUM_LOOKED_AT = 10_000
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
    """What one file holds, finite, in the file's own unit and frame.

    Of points without a return, where these are kept, x, y and z are NaN and channels may be.
    `points` (N, 3) float64; `normals` (N, 3) float64; `faces` (F, 3) int64, corners of triangles among the points;
    `channels` by name, each (N,) float64.
    """

    points: np.ndarray
    normals: np.ndarray | None = None
    faces: np.ndarray | None = None
    channels: Mapping[str, np.ndarray] = field(default_factory=dict)

    def rows(self, chosen: np.ndarray) -> PointCloud:
        """The cloud of the chosen points alone, (N,) bool, without faces; the cloud itself where all are chosen."""
        if chosen.all():
            return self
        normals = None if self.normals is None else self.normals[chosen]
        return PointCloud(
            self.points[chosen], normals, None, {name: each[chosen] for name, each in self.channels.items()}
        )


def read_cloud(path: Path, *, columns: Sequence[str] | None = None, keeps_no_returns: bool = False) -> PointCloud:
    """The whole cloud of a file, by its suffix (`CLOUD_SUFFIXES`); never a part of one.

    `columns` names the columns of a file without names, in order, `_` for one to leave out; without it three columns
    are x, y, z. Of a file with names it says which to take; without it all are taken. x, y, z are the points,
    nx, ny, nz the normals, all others channels; capitals do not matter. With `keeps_no_returns` points whose x, y and
    z are all NaN are taken, too; without it those of PCD, whose format has a rule for them, are left out.
    Raises DataError with file and line, byte or entry; ConfigError for `columns` that are no cloud's.
    """
    wanted = None if columns is None else check_columns(columns)
    assert_regular(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: files of this kind are not read; there are {', '.join(CLOUD_SUFFIXES)}")
    cloud = reader(path, wanted)
    if path.suffix.lower() == ".pcd" and not keeps_no_returns:
        cloud = cloud.rows(~is_no_return(cloud))
    _check_sound(path, cloud, keeps_no_returns=keeps_no_returns)
    return cloud


def is_no_return(cloud: PointCloud) -> np.ndarray:
    """Whether x, y and z of each point (N,) are all NaN: the sensor had no return. False for vertices of a mesh."""
    return np.isnan(cloud.points).all(axis=1) & (cloud.faces is None or not len(cloud.faces))


def has_normals(path: Path, *, by_faces: bool = True) -> bool:
    """Whether a file promises normals of its points, or faces where these count; from its first bytes or array names.

    Nothing else is checked: what does not read as its kind has none, and is refused when it is read.
    Raises DataError for what is not a regular file.
    """
    assert_regular(path)
    suffix = path.suffix.lower()
    if suffix in (".npz", ".h5", ".hdf5"):
        names = {name.lower() for name in _array_names(path)}
        return bool({"normals", "normal", "nx", *(["faces"] if by_faces else [])} & names)
    if suffix in (".npy", ".las", ".laz"):
        return False
    if suffix == ".off":
        return by_faces and announces_faces(path)
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).decode("latin-1").lower()
    if suffix == ".ply":
        header = head.partition("end_header")[0].split("\n")
        words = [line.split() for line in header]
        return any(w[:1] == ["property"] and w[-1:] == ["nx"] for w in words) or any(
            by_faces and w[:2] == ["element", "face"] and w[2:] != ["0"] for w in words
        )
    return "nx" in head.replace(",", " ").replace('"', " ").split()


def _array_names(path: Path) -> list[str]:
    try:
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                return [name.removesuffix(".npy") for name in archive.namelist()]
        return hdf5_names(path)
    except READ_ERRORS:
        return []


def is_cloud_file(path: Path, *, suffixes: Sequence[str] | None = None) -> bool:
    """Whether something in a folder has the name of a cloud; broken links and pipes too, which reading refuses.

    Hidden ones are none: a disk of another system has `._a.ply` beside `a.ply`.
    """
    is_one = path.suffix.lower() in (CLOUD_SUFFIXES if suffixes is None else suffixes)
    return is_one and not path.name.startswith(".") and not path.is_dir()


def list_skipped_files(folder: Path, *, suffixes: Sequence[str] | None = None) -> str:
    """Which files in and below a folder are of other kinds than clouds, or than `suffixes`, in a line; empty for none.

    Hidden ones, and those in hidden folders, are not meant for anybody.
    """
    known = CLOUD_SUFFIXES if suffixes is None else suffixes
    others = (path for path in folder.rglob("*") if path.suffix.lower() not in known and path.is_file())
    inside = (path.relative_to(folder) for path in others)
    names = sorted(
        escape_to_one_line(str(path)) for path in inside if not any(part.startswith(".") for part in path.parts)
    )
    if not names:
        return ""
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    what = "1 file of another kind" if len(names) == 1 else f"{len(names)} files of other kinds"
    return f"{what} passed over: {', '.join(names[:_MOST_LISTED])}{more}"


def check_columns(columns: Sequence[str]) -> tuple[str, ...]:
    """The names in small letters. Raises ConfigError if x, y, z or part of a normal is lacking, or one comes twice."""
    names = tuple(name.strip().lower() for name in columns)
    twice = sorted({name for name in names if names.count(name) > 1 and name != _LEFT_OUT})
    missing = [name for name in _POINTS if name not in names]
    if 0 < len(set(_NORMALS) & set(names)) < 3:
        missing += [name for name in _NORMALS if name not in names]
    if twice or missing:
        fault = f"names '{twice[0]}' twice" if twice else f"lacks {', '.join(missing)}"
        raise ConfigError(f"columns: [{', '.join(names)}] {fault}; name every column once, as in [x, y, z, intensity]")
    return names


def check_strays(points: np.ndarray, *, where: str) -> None:
    """Raises DataError, led by `where`, for a point (N, 3) that lies a thousand times as far out as 99 % of the others.

    One such point leaves the rest of a cloud no extent, and all that is compared with the extent no power.
    """
    sample = points[:: max(1, len(points) // _NUM_LOOKED_AT)]
    middle = np.median(sample, axis=0)
    spread = float(np.quantile(np.abs(sample - middle).max(axis=1), 0.99, method="lower"))
    bound = _STRAY_RATIO * spread
    is_near = (points.min(axis=0) >= middle - bound).all() and (points.max(axis=0) <= middle + bound).all()
    if len(points) < _FEWEST_FOR_STRAYS or spread == 0 or is_near:
        return
    away = np.abs(points - middle).max(axis=1)
    place = int(away.argmax())
    raise DataError(
        f"{where}: point {place} lies {away[place]:.4g} from the middle, 99 % of the {len(points)} points within "
        f"{spread:.4g}; take out the {int((away > bound).sum())} points that lie beyond {bound:.4g}"
    )


def _read_npy(path: Path, columns: tuple[str, ...] | None) -> PointCloud:
    return _of_table(path, read_npy(path), columns)


def _read_npz(path: Path, columns: tuple[str, ...] | None) -> PointCloud:
    return _of_arrays(path, read_npz_arrays(path), columns)


def _read_hdf5(path: Path, columns: tuple[str, ...] | None) -> PointCloud:
    return _of_arrays(path, read_hdf5_arrays(path), columns)


def _read_off(path: Path, columns: tuple[str, ...] | None) -> PointCloud:
    mesh = read_off(path, needs_faces=False)
    faces = mesh.faces if len(mesh.faces) else None
    return _of_named(path, dict(zip(_POINTS, mesh.vertices.T, strict=True)), columns, faces=faces)


def _read_ply(path: Path, columns: tuple[str, ...] | None) -> PointCloud:
    ply = read_ply(path)
    return _of_named(path, ply.vertex, columns, faces=ply.faces)


def _read_pcd(path: Path, columns: tuple[str, ...] | None) -> PointCloud:
    return _of_named(path, read_pcd(path, keeps_no_returns=True), columns)


def _read_las(path: Path, columns: tuple[str, ...] | None) -> PointCloud:
    return _of_named(path, read_las(path), columns)


def _read_text(path: Path, columns: tuple[str, ...] | None) -> PointCloud:
    names, table = read_rows(path, announces_rows=path.suffix.lower() == ".pts")
    if names is None:
        return _of_table(path, table, columns)
    return _of_named(path, dict(zip(names, table.T, strict=True)), columns)


def _of_table(path: Path, table: np.ndarray, columns: tuple[str, ...] | None) -> PointCloud:
    """The cloud of a table without names."""
    if table.ndim != 2 or table.dtype.kind not in "fiu":
        raise DataError(f"{path}: holds {table.dtype} {table.shape}, numbers (points, columns) are needed")
    width = table.shape[1]
    names = columns or (_POINTS if width == 3 else None)
    if names is None:
        raise DataError(
            f"{path}: has {width} columns and no names; name them, in order, _ for one to leave out: "
            "'columns=[x, y, z, ...]' when preparing, --columns x,y,z,... when predicting"
        )
    if len(names) != width:
        raise DataError(
            f"{path}: has {width} columns, {len(names)} are named ({', '.join(names)}); name all, _ for none"
        )
    return _of_named(path, dict(zip(names, table.T, strict=True)), tuple(n for n in names if n != _LEFT_OUT))


def _of_arrays(path: Path, arrays: Mapping[str, np.ndarray], columns: tuple[str, ...] | None) -> PointCloud:
    """The cloud of named arrays: `points`, `normals`, `colours` (N, 3), `faces`, one value a point else."""
    if len(arrays) == 1 and (only := next(iter(arrays.values()))).ndim == 2:
        return _of_table(path, only, columns)
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
        parts = _ARRAY_COLUMNS.get(role or "", (name.lower(),))
        taken = [part for part in parts if part in named]
        if taken:
            raise DataError(f"{path}: {name} gives {taken[0]} a second time; store it once")
        named |= dict(zip(parts, array.reshape(len(array), -1).T, strict=True))
    return _of_named(path, named, columns, faces=faces)


def _of_named(
    path: Path, named: Mapping[str, np.ndarray], columns: tuple[str, ...] | None, *, faces: np.ndarray | None = None
) -> PointCloud:
    """The cloud of columns by name, (N,) each."""
    wanted = [name for name in (named if columns is None else columns) if name != _LEFT_OUT]
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
        raise DataError(f"{path}: columns of different lengths: {listed}; get the file again")
    return PointCloud(
        points=_stacked(named, _POINTS),
        normals=_stacked(named, _NORMALS) if "nx" in wanted else None,
        faces=None if faces is None else np.asarray(faces, dtype=np.int64),
        channels={
            name: np.asarray(named[name], dtype=np.float64) for name in wanted if name not in (*_POINTS, *_NORMALS)
        },
    )


def _stacked(named: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # a signalling NaN: it is refused as any other
        return np.stack([np.asarray(named[name], dtype=np.float64) for name in names], axis=1)


def _check_sound(path: Path, cloud: PointCloud, *, keeps_no_returns: bool) -> None:
    """Raises DataError for a cloud without points, a number that is not finite, and a corner that is no point."""
    if not len(cloud.points):
        raise DataError(f"{path}: holds no points; leave the file out")
    normals = {} if cloud.normals is None else {"normals": cloud.normals}
    is_spared = is_no_return(cloud) & keeps_no_returns
    for name, values in {"points": cloud.points, **normals, **cloud.channels}.items():
        wrong = np.argwhere((~np.isfinite(values).T & ~is_spared).T)
        if len(wrong):
            place = tuple(wrong[0].tolist())
            more = f", and so are {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise DataError(f"{path}: {name}{list(place)} is {values[place]}{more}; take these points out of the file")
    if cloud.faces is not None and len(cloud.faces) and not _is_within(cloud.faces, len(cloud.points)):
        raise DataError(
            f"{path}: a face names point {_first_outside(cloud.faces, len(cloud.points))}, there are "
            f"{len(cloud.points)} (0 to {len(cloud.points) - 1}); get the file again"
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
    ".off": _read_off,
    ".txt": _read_text,
    ".xyz": _read_text,
    ".csv": _read_text,
    ".pts": _read_text,
}

CLOUD_SUFFIXES = tuple(_READERS)
"""The kinds of file that `read_cloud` reads."""
