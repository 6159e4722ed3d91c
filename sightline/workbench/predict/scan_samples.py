"""Samples from LiDAR scan files, made as the run's set makes its own, or a reason for refusal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sightline.config import RunConfig
from sightline.contract.errors import DataError
from sightline.contract.types import DataInfo, Field, ScanInputSpec
from sightline.store.files.scan_reading import (
    ADVICE_RING,
    SCAN_COLUMNS,
    NoReturn,
    has_remission,
    read_range_image,
    read_scan,
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
) -> FileSample:
    """Read the sample of a scan: every point of the file in order; from a range image its filled pixels, row by row.

    `columns` and `no_return` replace those of the run's set. A few far returns (`is_far`) are accepted.
    Raises DataError naming the file for columns that do not fit, remissions or rings that the run was trained with and
    the file lacks, and values outside those of the set.
    """
    spec = info.scans
    assert spec is not None, "the run's set is not one of scans"
    spec = spec if no_return is None else replace(spec, no_return=no_return)
    try:
        scan = _read_raw_scan(path, spec, columns, needs_ring="ring" in fields)
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


def _read_raw_scan(path: Path, form: ScanInputSpec, columns: Sequence[str] | None, *, needs_ring: bool) -> RawScan:
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
    return to_raw_scan(
        cloud,
        np.zeros(len(cloud.points), dtype=np.int64),
        ring_order=form.ring_order,
        num_beams=form.num_beams if needs_ring else None,
        path=path,
        no_return=form.no_return,
    )
