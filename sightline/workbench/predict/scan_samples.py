"""Samples from LiDAR scan files, made as the run's set makes its own, or a reason for refusal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch

from sightline.config import RunConfig
from sightline.contract.errors import DataError
from sightline.contract.types import DataInfo, Field, ScanInputSpec
from sightline.ops.projection import rows_by_file_order
from sightline.store.files.range_images import read_range_image
from sightline.store.files.scan_reading import (
    ADVICE_RING,
    SCAN_COLUMNS,
    NoReturn,
    has_remission,
    read_scan,
    ring_column,
    to_raw_scan,
)
from sightline.store.files.scan_samples import RawScan, check_scan, count_others
from sightline.workbench.predict.cloud_samples import (
    FileSample,
    PointOrigin,
    assert_few_far,
    assert_within,
    describe_far,
    is_far,
)

Rings: TypeAlias = Literal["order"]
"""Source of rings other than a column: `order`, the lasers of a file are concatenated, the highest first."""
_MIN_FALL = 0.9
"""Minimum correlation of the file's order with falling elevation, from which it is that of rings."""
_MAX_RINGS_RATIO = 1.1
"""Maximum ratio of found rings to the sensor's beams; rings beyond the last beam are merged into it."""
_REMISSION_SLACK = 2**-10
"""Relative tolerance of the maximum remission: the rounding of half precision, in which some are stored."""

_NAMELESS = (".bin", ".npy", ".txt", ".xyz", ".pts", ".asc")
"""Suffixes of files that have the columns of the run's set unless --columns names others."""


def scan_inputs(info: DataInfo, config: RunConfig) -> dict[str, Field]:
    """Select the fields that a file must have: `ring` only if evaluation needs it and does not compute it."""
    evaluation = config.transforms.evaluate
    needs_ring = any(transform.arguments.get("rows") == "ring" for transform in evaluation)
    finds_ring = any(transform.name == "ring_from_order" for transform in evaluation)
    names = ["points", *info.features, *(["ring"] if needs_ring and not finds_ring else [])]
    return {name: info.fields[name] for name in names if name in info.fields}


def read_scan_sample(
    path: Path,
    info: DataInfo,
    fields: Mapping[str, Field],
    *,
    columns: Sequence[str] | None,
    no_return: NoReturn | None = None,
    rings: Rings | None = None,
) -> FileSample:
    """Read the sample of a scan: every point of the file in order; from a range image its filled pixels, row by row.

    `columns` and `no_return` replace those of the run's set; `rings` replaces a column of rings. A few far returns
    (`is_far`) are accepted.
    Raises DataError naming the file for columns that do not fit, remissions or rings that the run was trained with and
    the file lacks, and values outside those of the set.
    """
    spec = info.scans
    assert spec is not None, "the run's set is not one of scans"
    spec = spec if no_return is None else replace(spec, no_return=no_return)
    try:
        scan = _read_raw_scan(path, spec, columns, needs_ring="ring" in fields, rings=rings)
        values = {
            "points": scan.points,
            "remission": (scan.remission / np.float32(spec.remission_max))[:, None],
            **({} if scan.ring is None else {"ring": scan.ring}),
        }
        if missing := [name for name in fields if name not in values]:
            raise DataError(f"{path}: has no {missing[0]}; {ADVICE_RING}")
        sample = {name: values[name] for name in fields}
        num_far = int(is_far(scan.points, info.fields["points"]).sum())
        _assert_measured(scan, spec, path)
        assert_within(sample, info, str(path), any_scale=True)
        assert_few_far(scan.points, info.fields["points"], str(path), noun="scan")
    except DataError as error:
        told = str(error)
        if path.suffix.lower() != ".bin" or columns is not None:
            raise
        if "--columns" not in told:
            told += f"; it was read as {', '.join(spec.columns or ())}: --columns names others"
        if "ring" in fields and rings is None and "rings=order" not in told:
            told += "; without a column of rings give rings=order, too"
        raise DataError(told) from error
    positions = scan.points.astype(np.float64)
    return FileSample(
        sample, _describe_treatment(scan, num_far), PointOrigin(positions, positions, np.arange(len(positions)))
    )


def _assert_measured(scan: RawScan, form: ScanInputSpec, path: Path) -> None:
    """Raise DataError for a scan without any return, and for remissions above those of the run's sensor."""
    if not scan.points.any():
        raise DataError(
            f"{path}: none of its {len(scan.points)} points has a return, all are at the origin or NaN; leave the file "
            "out, or copy it again"
        )
    is_high = scan.remission > form.remission_max * (1 + _REMISSION_SLACK)
    if form.has_remission and is_high.any():
        index = int(is_high.argmax())
        others = count_others(is_high, "so high are")
        raise DataError(
            f"{path}: the remission of point {index} is {scan.remission[index]:g}{others}, "
            f"the run's sensor gives at most {form.remission_max:g}; bring the column to that scale, or take these "
            "points out"
        )


def _describe_treatment(scan: RawScan, num_far: int) -> str:
    """Describe the points without a return, and those far beyond the set's."""
    num_missing = 0 if scan.is_return is None else int((~scan.is_return).sum())
    notes = [
        *scan.notes,
        *([f"{num_missing} of {len(scan.points)} points without a return"] if num_missing else []),
        *describe_far(num_far, len(scan.points)),
    ]
    return ", ".join(notes) or "as it is"


def _read_raw_scan(
    path: Path, form: ScanInputSpec, columns: Sequence[str] | None, *, needs_ring: bool, rings: Rings | None
) -> RawScan:
    """Read a scan with the columns, rings and returns of the run's set."""
    if path.suffix.lower() == ".npy" and form.image_px is not None and columns is None:
        return check_scan(read_range_image(path, height=form.image_px[0], width=form.image_px[1]), where=str(path))
    names = columns
    if columns is None and form.columns is not None and path.suffix.lower() in _NAMELESS:
        names = form.columns
    cloud = read_scan(path, columns=names, used=SCAN_COLUMNS, no_return=form.no_return)
    if not len(cloud.points):
        raise DataError(f"{path}: holds no points; leave the file out")
    if form.has_remission and not has_remission(cloud):
        available = ", ".join(cloud.column_names)
        raise DataError(
            f"{path}: has no remission, which the run was trained with; it has {available}; name the column remission "
            "or intensity with --columns"
        )
    ids = np.zeros(len(cloud.points), dtype=np.int64)
    has_column = ring_column(cloud) is not None
    scan = to_raw_scan(
        cloud,
        ids,
        ring_order=form.ring_order,
        num_beams=form.num_beams if needs_ring and (has_column or rings is None) else None,
        path=path,
        no_return=form.no_return,
    )
    if needs_ring and not has_column and rings == "order":
        scan = scan._replace(ring=_compute_rings(scan.points, form, path))
    return scan


def _compute_rings(points: np.ndarray, form: ScanInputSpec, path: Path) -> np.ndarray:
    """Compute the ring of each point (N,) int64 from the file's order. Raises DataError unless elevations fall."""
    ring: np.ndarray = rows_by_file_order(torch.tensor(points)).numpy()
    distance = np.linalg.norm(points, axis=1)
    is_return = distance > 0
    elevation = points[is_return, 2] / distance[is_return]
    num_beams = form.num_beams or 1
    falls = np.ptp(ring[is_return]) > 0 and -np.corrcoef(ring[is_return], elevation)[0, 1] >= _MIN_FALL
    if not falls or ring.max() >= _MAX_RINGS_RATIO * num_beams:
        fault = f"{int(ring.max()) + 1} rings" if falls else "no rings that fall from the highest laser"
        raise DataError(
            f"{path}: rings=order finds {fault} in the order of the points, the run's set has {num_beams} beams; name "
            "the column ring with --columns"
        )
    return np.minimum(ring, num_beams - 1)
