"""Reader of LiDAR scans from any file: raw binary with stated columns, point cloud formats, or range images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias

import numpy as np

from sightline.contract.errors import DataError
from sightline.store.files.array_files import read_npy
from sightline.store.files.cloud_files import (
    CLOUD_SUFFIXES,
    PointCloud,
    Withheld,
    check_columns,
    drop_no_returns,
    is_no_return,
    is_used,
    read_cloud,
)
from sightline.store.files.column_names import POINTS
from sightline.store.files.input_files import file_size
from sightline.store.files.scan_files import MAX_ID, read_bin, read_label_ids
from sightline.store.files.scan_samples import RawScan, check_scan, count_more
from sightline.store.files.sensors import RingOrder, find_ring_column
from sightline.store.remarks import in_metres

SCAN_SUFFIXES = (".bin", *CLOUD_SUFFIXES)
"""File suffixes that `read_scan` accepts."""
NoReturn: TypeAlias = Literal["nan"]
"""Mark of points without a return in files: `nan`, x, y and z are all NaN (organised clouds of ROS and Ouster)."""
_REMISSION_NAMES = ("remission", "intensity", "reflectance", "reflectivity", "i")
_RING_NAMES = ("ring", "laser", "beam", "ring_id", "laser_id", "beam_id", "channel")
SCAN_COLUMNS = (*_REMISSION_NAMES, *_RING_NAMES)
"""Columns that `to_raw_scan` reads, besides x, y and z."""
_MIN_FAN = 1e-3
"""Minimum range of the sines of elevations from which the order of beams is checked."""


_ADVICE_COLUMNS = "name them: 'columns=[{names}]' when preparing, --columns {words} otherwise (_ skips a column)"
ADVICE_RING = "name the column ring in columns or --columns; without one, prepare without num_beams, with rows: pitch"
_ADVICE_AXES = "name the columns in the order of the file: 'columns=[x, z, y, ...]' when preparing, --columns otherwise"


def read_scan(
    path: Path,
    *,
    columns: Sequence[str] | None,
    used: Collection[str] | None = None,
    no_return: NoReturn | None = None,
    withheld: Withheld = "drop",
) -> PointCloud:
    """Read all points of a file in file order. For raw binary (.bin, float32) `columns` must name every column.

    Points without a return are included as NaN at x, y and z; in PCD, by the format's rule, only with `no_return`.
    Points that a file flags as withheld keep their places: they are marked, unless `withheld` keeps them as all others.
    Raises DataError for a .bin without stated columns, with the numbers of columns that fit its size, and for a .bin
    whose size does not fit the stated columns; else as `read_cloud`, which takes `used`, too.
    """
    if path.suffix.lower() != ".bin":
        mark: Literal["mark", "keep"] = "keep" if withheld == "keep" else "mark"
        cloud = read_cloud(path, columns=columns, used=used, keeps_no_returns=True, withheld=mark)
        is_left_out = no_return is None and path.suffix.lower() == ".pcd"
        return drop_no_returns(cloud) if is_left_out else cloud
    names = None if columns is None else check_columns(columns)
    num_bytes = file_size(path)
    if names is None and not num_bytes:
        raise DataError(f"{path}: is empty; leave the file out, or get it again")
    if names is None or num_bytes % (4 * len(names)):
        fits = [count for count in _BIN_WIDTHS if num_bytes % (4 * count) == 0]
        fit = f"fit {' and '.join(map(str, fits))} columns" if fits else "fit no number of columns from 3 to 6"
        fault = f"its {num_bytes} bytes {fit} of float32, and the file does not state which"
        if names is not None:
            fault = f"has {num_bytes} bytes, which {fit} of float32, not {len(names)} ({', '.join(names)})"
        example = _example_columns(path, fits)
        advice = _ADVICE_COLUMNS.format(names=", ".join(example), words=",".join(example))
        raise DataError(f"{path}: {fault}; {advice}")
    table = read_bin(path, num_columns=len(names))
    column_by_name = dict(zip(names, table.T, strict=True))
    with np.errstate(invalid="ignore"):  # a signalling NaN is left out like any other NaN
        points = np.stack([column_by_name[axis] for axis in "xyz"], axis=1).astype(np.float64)
    channels = {name: values for name, values in column_by_name.items() if is_used(name, used)}
    channels = {name: values for name, values in channels.items() if name not in POINTS}
    return PointCloud(points, channels=channels, column_names=names)


_BIN_WIDTHS = (3, 4, 5, 6)
"""Numbers of columns of raw files that are tried where none are stated."""


def _example_columns(path: Path, fits: Sequence[int]) -> tuple[str, ...]:
    """Return names for the columns of a raw file of one of these numbers of columns: `ring` where values are rings."""
    found = find_ring_column([read_bin(path, num_columns=count) for count in fits])
    if found is None:
        return _EXAMPLE_NAMES[: 4 if 4 in fits or not fits else fits[0]]
    index, ring = found
    return tuple("ring" if column == ring else _EXAMPLE_NAMES[column] for column in range(fits[index]))


_EXAMPLE_NAMES = ("x", "y", "z", "intensity", "_", "_")


def scan_ids(cloud: PointCloud, path: Path, label: str, label_path: Path | None = None) -> np.ndarray:
    """Read the ids (N,) int64 of a scan from its column `label`, else from `label_path`, by default `<name>.label`.

    Raises DataError if there is neither, for a column and a stated `label_path`, and for a label that is not a whole
    number from 0 to 65535.
    """
    if label_path is not None and label in cloud.channels:
        advice = "move it away, or name columns without it"
        raise DataError(f"{label_path}: is beside a scan with a column '{label}'; {advice}")
    label_path = label_path or path.with_suffix(".label")
    if label not in cloud.channels:
        if not label_path.exists():
            available = _list_columns(cloud)
            raise DataError(
                f"{path}: has no column '{label}', it has {available}, and there is no {label_path.name}; name the "
                "column: label=NAME"
            )
        try:
            return read_label_ids(label_path, num_points=len(cloud.points), points_path=path)
        except DataError as error:
            if path.suffix.lower() == ".pcd" and file_size(label_path) > 4 * len(cloud.points):
                raise DataError(f"{error}; NaN points of PCD are left out: no_return=nan keeps them") from error
            raise
    values = np.where(is_no_return(cloud), 0, cloud.channels[label])
    is_wrong = ~((values == np.floor(values)) & (values >= 0) & (values <= MAX_ID))
    if is_wrong.any():
        index = int(is_wrong.argmax())
        raise DataError(f"{path}: {label}[{index}] is {values[index]:g}; labels are whole numbers from 0 to {MAX_ID}")
    return values.astype(np.int64)


def _list_columns(cloud: PointCloud) -> str:
    names = [name for name in cloud.column_names or cloud.channels if name not in (*POINTS, "_")]
    return ", ".join(names) or "none besides x, y, z"


def has_remission(cloud: PointCloud) -> bool:
    """Return True if a cloud has a channel that `to_raw_scan` reads as the remission."""
    return any(name in cloud.channels for name in _REMISSION_NAMES)


def ring_column(cloud: PointCloud) -> np.ndarray | None:
    """Return the column of rings (N,) as stored in the file, or None."""
    return next((cloud.channels[name] for name in _RING_NAMES if name in cloud.channels), None)


def to_raw_scan(
    cloud: PointCloud,
    ids: np.ndarray,
    *,
    ring_order: RingOrder,
    num_beams: int | None,
    path: Path,
    no_return: NoReturn | None = None,
) -> RawScan:
    """Convert a cloud to a RawScan; rings count from the highest beam, missing remissions are zeros.

    With `no_return` points without a return are set to the origin, so that every point keeps its index in the file; so
    are points that the file flags as withheld, which count as without a return.
    Raises DataError for rings that are missing or beyond `num_beams`, and if `ring_order` contradicts the elevations of
    the points.
    """
    remission = next((cloud.channels[name] for name in _REMISSION_NAMES if name in cloud.channels), np.zeros(len(ids)))
    rings, points, is_return = ring_column(cloud), cloud.points, ~is_no_return(cloud)
    if no_return is None and not is_return.all():
        raise DataError(
            f"{path}: point {int((~is_return).argmax())} of {len(is_return)} is NaN at x, y and z"
            f"{count_more(~is_return, 'so are')}; give no_return=nan if that marks points without a return, or get "
            "the file again"
        )
    if cloud.is_withheld is not None:
        is_return &= ~cloud.is_withheld
    has_marks = no_return is not None or cloud.is_withheld is not None
    if has_marks:
        points, remission = np.where(is_return[:, None], points, 0.0), np.where(is_return, remission, 0.0)
        rings = None if rings is None else np.where(is_return | np.isfinite(rings), rings, 0)
    with np.errstate(over="ignore", invalid="ignore"):  # values beyond float32 are refused below, with their index
        notes = in_metres(cloud.notes, 1.0)
        scan = RawScan(points.astype(np.float32), remission.astype(np.float32), ids, notes=notes)
    scan = check_scan(scan, where=str(path))._replace(is_return=is_return if has_marks else None)
    if num_beams is None:
        return scan
    if rings is None:
        names = " or ".join(_RING_NAMES)
        raise DataError(f"{path}: has no column {names}, it has {_list_columns(cloud)}; {ADVICE_RING}")
    with np.errstate(invalid="ignore"):  # a ring that is not finite differs from every whole number
        ring = rings.astype(np.int64)
    if (is_part := ring != rings).any():
        index = int(is_part.argmax())
        raise DataError(
            f"{path}: the ring of point {index} is {rings[index]:g}, not a whole number"
            f"{count_more(is_part, 'so are')}; {_ADVICE_AXES}"
        )
    if ((ring < 0) | (ring >= num_beams)).any():
        raise DataError(
            f"{path}: rings run from {rings.min():g} to {rings.max():g}, and the sensor has {num_beams} beams, 0 to "
            f"{num_beams - 1}; set num_beams when preparing, or name the column of rings in columns or --columns"
        )
    if ring_order == "bottom_first":
        ring = num_beams - 1 - ring
    _check_order(scan.points, ring, ring_order, path)
    return scan._replace(ring=ring)


def _check_order(points: np.ndarray, ring: np.ndarray, order: RingOrder, path: Path) -> None:
    """Raise DataError if elevations rise with the ring number; they must fall."""
    distance = np.linalg.norm(points, axis=1)
    is_far = distance > 0
    sines, ring = points[is_far] / distance[is_far, None], ring[is_far]
    if len(ring) < 2 or not np.ptp(ring) or np.ptp(sines[:, 2]) < _MIN_FAN:
        return
    with np.errstate(divide="ignore", invalid="ignore"):  # an axis may be constant
        correlations = np.nan_to_num(np.corrcoef(ring, sines.T)[0, 1:])
    up = "xyz"[int(np.abs(correlations).argmax())]
    if correlations[2] > 0 and up != "z":
        raise DataError(
            f"{path}: rings follow the column that is read as {up}, not z, which is up: x, y and z are in another "
            f"order; {_ADVICE_AXES}"
        )
    if correlations[2] > 0:
        other = "bottom_first" if order == "top_first" else "top_first"
        raise DataError(
            f"{path}: the points' elevations contradict ring_order={order}; set ring_order={other} when preparing, or "
            "correct the order of x, y, z and ring in columns or --columns"
        )


def without_endings(names: Sequence[str]) -> list[str]:
    """Remove the file suffixes of scan names, as `predict` names its files; names that would collide keep them."""
    stems = [
        str(PurePosixPath(name).with_suffix("")) if name.lower().endswith(SCAN_SUFFIXES) else name for name in names
    ]
    counts = Counter(stems)
    return [stem if counts[stem] == 1 else name for stem, name in zip(stems, names, strict=True)]


# --- range images as SqueezeSeg's release stores them: x, y, z, intensity, range and label of each pixel --------------


_INTENSITY, _RANGE, _LABEL = 3, 4, 5
_NUM_CHANNELS = 6
_MAX_RANGE_ERROR = 1e-3
"""Maximum relative error between range and coordinates: half precision files reach 5e-4."""


def range_image_shape(image: np.ndarray, path: Path) -> tuple[int, int]:
    """Return height and width of a range image. Raises DataError for another form than the release's."""
    if image.ndim != 3 or image.shape[2] != _NUM_CHANNELS or image.dtype.kind != "f":
        raise DataError(
            f"{path}: holds {image.dtype} {image.shape}; a range image is float (64, 512, 6): x, y, z, intensity, "
            "range, label"
        )
    return image.shape[0], image.shape[1]


def read_range_image(path: Path, *, height: int, width: int) -> RawScan:
    """Read the filled pixels of a range image. Raises DataError for a wrong shape, channel order or label."""
    image = read_npy(path)
    if range_image_shape(image, path) != (height, width):
        raise DataError(f"{path}: has {image.shape[:2]} pixels, the first image has {(height, width)}; leave it out")
    row, column = np.nonzero(image[..., _RANGE] > 0)
    pixels = image[row, column]
    distance = pixels[:, _RANGE]
    with np.errstate(over="ignore", invalid="ignore"):  # values beyond float32 are refused below
        points = pixels[:, :3].astype(np.float32)
        norm = np.linalg.norm(points, axis=1)
        is_mismatch = ~(np.abs(norm - distance) <= _MAX_RANGE_ERROR * np.maximum(distance, 1))
    if is_mismatch.any():
        index = int(is_mismatch.argmax())
        raise DataError(
            f"{path}: pixel ({row[index]}, {column[index]}) lies {norm[index]:.3f} m away and "
            f"channel {_RANGE} is {distance[index]:.3f}; the channels must be x, y, z, intensity, range, label"
        )
    label = pixels[:, _LABEL]
    is_wrong = ~((label == np.floor(label)) & (label >= 0) & (label <= MAX_ID))
    if is_wrong.any():
        index = int(is_wrong.argmax())
        raise DataError(
            f"{path}: pixel ({row[index]}, {column[index]}) has the label {label[index]:g}; labels are whole numbers "
            "from 0"
        )
    return RawScan(points, pixels[:, _INTENSITY].astype(np.float32), label.astype(np.int64), row, column)
