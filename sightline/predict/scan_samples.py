"""From a LiDAR scan in a file to the sample that a run's set would have made of it, or a reason why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sightline.config import RunConfig
from sightline.data.scans.samples import RawScan
from sightline.data.scans.scan_reading import has_remission, oriented, read_scan
from sightline.data.scans.squeezeseg_npy import read_image
from sightline.errors import DataError
from sightline.predict.cloud_samples import FileSample, Origin, assert_within
from sightline.types import DataInfo, Field, ScanForm

__all__ = ["read_scan_sample", "scan_inputs"]

_NAMELESS = (".bin", ".npy", ".txt", ".xyz", ".pts")
"""Files that have the columns of the run's set where --columns names no others."""


def scan_inputs(info: DataInfo, config: RunConfig) -> dict[str, Field]:
    """The fields that a file must give: `ring` only where evaluation takes rows from it and does not find it itself."""
    evaluation = config.transforms.evaluate
    needs_ring = any(each.arguments.get("rows") == "ring" for each in evaluation)
    finds_ring = any(each.name == "ring_from_order" for each in evaluation)
    names = ["points", *info.features, *(["ring"] if needs_ring and not finds_ring else [])]
    return {name: info.fields[name] for name in names if name in info.fields}


def read_scan_sample(
    path: Path, info: DataInfo, fields: Mapping[str, Field], *, columns: Sequence[str] | None
) -> FileSample:
    """The sample of a scan: every point of the file in its order; of a range image its filled pixels, row by row.

    `columns` stand in for those that the run's set states. Raises DataError naming the file for columns that do not
    fit, remissions or rings that the run was trained with and the file lacks, and values outside those of the set.
    """
    form = info.scans
    assert form is not None, "the run's set is not one of scans"
    try:
        scan = _read(path, form, columns, num_beams=form.num_beams if "ring" in fields else None)
        given = {
            "points": scan.points,
            "remission": (scan.remission / np.float32(form.remission_max))[:, None],
            **({} if scan.ring is None else {"ring": scan.ring}),
        }
        if missing := [name for name in fields if name not in given]:
            raise DataError(
                f"{path}: has no {missing[0]}, from which the run's images have their rows; name its column with "
                "--columns x,y,z,remission,ring, or evaluate by rows: pitch"
            )
        sample = {name: given[name] for name in fields}
        assert_within(sample, info, str(path), any_scale=False)
    except DataError as error:
        if path.suffix.lower() != ".bin" or columns is not None or "--columns" in str(error):
            raise
        stated = ", ".join(form.columns or ())
        raise DataError(f"{error}; it was read as {stated}: --columns names others") from error
    places = scan.points.astype(np.float64)
    return FileSample(sample, "as it is", Origin(places, places, np.arange(len(places))))


def _read(path: Path, form: ScanForm, columns: Sequence[str] | None, *, num_beams: int | None) -> RawScan:
    if path.suffix.lower() == ".npy" and form.image_px is not None and columns is None:
        return read_image(path, height=form.image_px[0], width=form.image_px[1])
    names = form.columns if columns is None and path.suffix.lower() in _NAMELESS else columns
    cloud = read_scan(path, columns=names)
    if not len(cloud.points):
        raise DataError(f"{path}: holds no points; leave the file out")
    if form.has_remission and not has_remission(cloud):
        held = ", ".join(("x", "y", "z", *cloud.channels))
        raise DataError(
            f"{path}: has no remission, which the run was trained with; it has {held}; name the column remission or "
            "intensity with --columns"
        )
    ids = np.zeros(len(cloud.points), dtype=np.int64)
    return oriented(cloud, ids, ring_order=form.ring_order, num_beams=num_beams, path=path)
