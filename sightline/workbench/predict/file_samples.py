"""Samples from files of clouds and scans, made as the run's data set made its own, or a reason for refusal."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sightline.config import RunConfig
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import CloudInputSpec, DataInfo, Field, ScanInputSpec
from sightline.store.cloud_preparation import (
    NUM_MESH_POINTS,
    cloud_radius,
    distance_from_origin,
    draw_points,
    estimated_normals,
    generator_from_name,
    prepare_cloud,
)
from sightline.store.files.cloud_files import PointCloud, read_cloud
from sightline.store.files.column_names import COLOURS, NORMALS
from sightline.store.files.scan_reading import (
    ADVICE_RING,
    SCAN_COLUMNS,
    NoReturn,
    has_remission,
    read_range_image,
    read_scan,
    to_raw_scan,
)
from sightline.store.files.scan_samples import RawScan, check_scan, count_more
from sightline.store.prepared.prepared_writer import normalize_to_unit_sphere
from sightline.store.scene_preparation import find_colour_max, normalised_position, note_colour_max, prepare_scene

_MAX_SHARE_FAR = 0.01
"""Maximum share of points of a scan or scene far beyond the training range; in a wrong unit most are."""

_SLACK = 2**-10
"""Tolerance of the radius 1 and of field bounds: the rounding of half precision, in which some are stored."""
_TO_SPHERE = "moved to its mean, scaled to radius 1"
_MAX_COORDINATE = 1e150
"""Largest absolute coordinate whose distances are still finite."""
_MIN_RADIUS = 0.5
"""Minimum radius of a random part of a cloud of radius 1; a smaller cloud has another scale."""


class PointOrigin(NamedTuple):
    """Origin of the rows of a sample in the file's own coordinates, so that every point of the file can be predicted.

    `points` (M, 3) float64 are all points of the file; `positions` (N, 3) float64 those of the rows; `rows` (N,) int64
    are their indices in `points`, or None if they were sampled from a mesh.
    """

    points: np.ndarray
    positions: np.ndarray
    rows: np.ndarray | None


class FileSample(NamedTuple):
    """Fields of a sample, each (N, ...) in its declared dtype, and a description of what was done to the file's points.

    `origin` is None for a set of the user's own, whose preparation does not record which points it takes.
    """

    fields: dict[str, np.ndarray]
    treatment: str
    origin: PointOrigin | None = None

    @property
    def num_points(self) -> int:
        """The number of points of the file."""
        return len(self.fields["points"])


def read_sample(
    path: Path,
    info: DataInfo,
    *,
    columns: Sequence[str] | None = None,
    to_sphere: bool = False,
    any_scale: bool = False,
    draws_meshes: bool = True,
    name: str | None = None,
) -> FileSample:
    """Read the sample of a file; `columns` as for `read_cloud`, the other arguments as for `make_sample`.

    Points are sampled from a mesh with `name` as seed, by default that of the file, as in `sightline data prepare`;
    without `draws_meshes` its vertices are the points. Raises DataError naming the file.
    """
    form = info.clouds or CloudInputSpec()
    if columns is None and info.clouds is not None:
        columns = info.clouds.columns
    is_marked = form.scene is not None and form.withheld == "drop"  # every point of a scene gets a label
    withheld = "mark" if is_marked else form.withheld
    cloud = read_cloud(path, columns=columns, used=_used_columns(info), withheld=withheld)
    if not draws_meshes and form.scene is None:
        cloud = dataclasses.replace(cloud, faces=None)
    name = path.stem if name is None else name
    sample = make_sample(cloud, info, name=name, where=str(path), to_sphere=to_sphere, any_scale=any_scale)
    return sample._replace(treatment=", ".join((*cloud.notes, sample.treatment)))


def make_sample(
    cloud: PointCloud, info: DataInfo, *, name: str, where: str, to_sphere: bool = False, any_scale: bool = False
) -> FileSample:
    """Make the sample that the set behind `info` would make of a cloud: sampled, normalised, cut to its points.

    A cloud that is already normalised as the prepared ones are is taken bit for bit. `to_sphere` centres others and
    scales them to radius 1 if the set only promises that; `any_scale` skips the bounds, for a run whose transforms
    normalise. The feature `colours` is made of the channels red, green and blue; `normalised_position` of the points.
    Raises DataError, beginning with `where`, for a missing field, too few points, and a scale outside the set's bounds;
    ConfigError for `to_sphere` if the set was prepared without normalisation.
    """
    spec = info.clouds or CloudInputSpec()
    if spec.preparation is not None:
        if to_sphere and spec.preparation["normalisation"] == "none":
            raise ConfigError(
                "--unit-sphere: the run was trained on clouds of the size and in the place that their files have "
                "(normalisation=none); leave it out"
            )
        return _make_prepared_sample(cloud, info, spec, spec.preparation, where, any_scale=any_scale)
    if spec.scene is not None:
        if to_sphere:
            raise ConfigError("--unit-sphere: the run was trained on scenes, whose size means something; leave it out")
        return _make_scene_sample(cloud, info, spec.scene, where, any_scale=any_scale)
    if np.abs(cloud.points).max() > _MAX_COORDINATE:
        raise DataError(
            f"{where}: a coordinate is {np.abs(cloud.points).max():.4g}; the file is damaged or in another format"
        )
    values, notes, is_sampled = _extract_features(cloud, info, spec, name=name, where=where)
    origin = PointOrigin(cloud.points, values["points"], None if is_sampled else np.arange(len(cloud.points)))
    is_fair = is_sampled or _is_prepared(values["points"], spec)
    if is_sampled and spec.unit_sphere != "none":  # always, as preparation does with meshes
        values["points"], note = normalize_to_unit_sphere(values["points"], where=where), [_TO_SPHERE]
    else:
        values["points"], note = _normalise_points(
            values["points"], spec, where, to_sphere=to_sphere, any_scale=any_scale
        )
    notes += note
    num_points = spec.num_points or len(values["points"])
    if len(values["points"]) != num_points:
        index, note = _choose_points(values["points"], spec, num_points, name=name, where=where, is_fair=is_fair)
        values = {key: array[index] for key, array in values.items()}
        origin = PointOrigin(cloud.points, origin.positions[index], None if origin.rows is None else origin.rows[index])
        notes += note
    with np.errstate(over="ignore"):  # values too large for the dtype become infinite, and are refused below
        fields = {key: array.astype(info.fields[key].dtype) for key, array in values.items()}
    if spec.estimates_normals:
        fields["normals"] = estimated_normals(fields["points"], where=where)
    assert_within(fields, info, where, any_scale=any_scale)
    return FileSample(fields, ", ".join(notes) or "as it is", origin)


def _used_columns(info: DataInfo) -> set[str]:
    """Return the names of the columns that the run reads, so that files may lack the others of the set."""
    form = info.clouds or CloudInputSpec()
    used = set(info.features)
    used |= set(COLOURS) if "colours" in used else set()
    used |= set(NORMALS) if "normals" in used and not form.estimates_normals else set()
    return used | set(form.preparation["channels"] if form.preparation is not None and "channels" in used else ())


def _make_scene_sample(
    cloud: PointCloud, info: DataInfo, scene: Mapping[str, Any], where: str, *, any_scale: bool
) -> FileSample:
    """Make the sample of a set of scenes, with the function that prepared the set: every point but those withheld."""
    points, rows = cloud.points, np.arange(len(cloud.points))
    if cloud.is_withheld is not None:
        rows = np.flatnonzero(~cloud.is_withheld)
        cloud = cloud.without_withheld()
    if not len(cloud.points):
        raise DataError(f"{where}: all {len(points)} points are flagged withheld, which means deleted; leave it out")
    normals = scene.get("normals", "stored")
    available = {
        "normals": cloud.normals if normals == "stored" else cloud.points,
        "colours": cloud.points if set(COLOURS) <= set(cloud.channels) else None,
        "normalised_position": cloud.points,
    }
    _assert_features(available, info.features, cloud, where)
    prepared = prepare_scene(
        cloud,
        scale=scene["scale"],
        colour_max=scene["colour_max"],
        with_colours="colours" in info.features,
        normals=normals if "normals" in info.features else None,
        where=where,
    )
    if "colours" in prepared:
        prepared["colours"] = prepared["colours"] / np.float32(255)
    if "normalised_position" in info.features:
        with np.errstate(invalid="ignore"):  # points too large for float32 are refused with their own message
            prepared["normalised_position"] = normalised_position(prepared["points"])
    fields = {key: prepared[key] for key in ("points", *info.features)}
    assert_within(fields, info, where, any_scale=True)
    if not any_scale:
        assert_few_far(fields["points"], info.fields["points"], where, noun="scene")
    num_far = int(is_far(fields["points"], info.fields["points"]).sum())
    origin = PointOrigin(points, cloud.points, rows)
    steps = ["prepared as the set was", *describe_far(num_far, len(cloud.points))]
    if "colours" in prepared and scene["colour_max"] is None:
        steps += note_colour_max(cloud)
    return FileSample(fields, ", ".join(steps), origin)


def _make_prepared_sample(
    cloud: PointCloud,
    info: DataInfo,
    form: CloudInputSpec,
    preparation: Mapping[str, Any],
    where: str,
    *,
    any_scale: bool,
) -> FileSample:
    """Make the sample of a set of the user's own, with the function that prepared the set."""
    with_normals = "normals" in info.features and not form.estimates_normals
    channels = tuple(preparation["channels"]) if "channels" in info.features else ()
    is_mesh = preparation["faces"] == "sample" and cloud.faces is not None and len(cloud.faces) > 0
    if not is_mesh:
        names = [*(["normals"] if with_normals else []), *channels]
        _assert_features({"normals": cloud.normals, **cloud.channels}, names, cloud, where)
    options = {**preparation, "with_normals": with_normals, "channels": channels}
    stored = prepare_cloud(cloud, **options, where=where)
    steps = [] if is_mesh else _describe_repetition(cloud, stored["points"], form, where)
    if form.radii is not None and not any_scale:
        _assert_of_size(cloud_radius(stored["points"]), form.radii, info.fields["points"].unit, where)
    values = {key: array[: form.num_points] for key, array in stored.items()}
    if form.estimates_normals:
        values["normals"] = estimated_normals(values["points"], where=where)
    fields = {key: values[key] for key in ("points", *info.features)}
    assert_within(fields, info, where, any_scale=any_scale)
    return FileSample(fields, ", ".join([*steps, "prepared as the set was"]))


def _describe_repetition(cloud: PointCloud, stored: np.ndarray, form: CloudInputSpec, where: str) -> list[str]:
    """Describe the repetition of points of a small cloud. Raises DataError if it has fewer than any of the set."""
    if form.fewest_points is not None and len(np.unique(stored, axis=0)) < form.fewest_points:
        num_distinct = len(np.unique(cloud.points, axis=0))  # a random selection from a dense cloud may repeat a point
        if num_distinct < form.fewest_points:
            raise DataError(
                f"{where}: holds {num_distinct} points that differ, every cloud of the run's set at least "
                f"{form.fewest_points}; give a denser cloud"
            )
    num_points = form.num_points or len(stored)
    return [f"{len(cloud.points)} points, repeated to {num_points}"] if len(cloud.points) < num_points else []


def _assert_of_size(radius: float, radii: tuple[float, float], unit: str, where: str) -> None:
    """Raise DataError for a cloud below half or above twice the sizes of the set: one in another unit."""
    low, high = radii
    if low / 2 <= radius <= 2 * high:
        return
    comparison = "all its points coincide"
    if radius > 0:
        ratio = radius / np.sqrt(low * high) if low > 0 else radius / high
        comparison = f"about {max(ratio, 1 / ratio):.4g} times {'larger' if ratio > 1 else 'smaller'}"
    raise DataError(
        f"{where}: its points reach {radius:.4g} {unit} from their mean, those of the run's set {low:.4g} to "
        f"{high:.4g} {unit}; {comparison}; bring the file to {unit or 'that unit'}"
    )


def _extract_features(
    cloud: PointCloud, info: DataInfo, form: CloudInputSpec, *, name: str, where: str
) -> tuple[dict[str, np.ndarray], list[str], bool]:
    """Build points and features of the set; return them with a description, and True if sampled from a mesh."""
    is_sampled = cloud.faces is not None and len(cloud.faces) > 0
    steps = []
    if cloud.faces is not None and is_sampled:
        count = max(NUM_MESH_POINTS, form.num_points or 0)
        surface = draw_points(cloud.points, cloud.faces, name=name, where=where, num_points=count)
        cloud = PointCloud(surface.points, surface.normals)
        steps = [f"{count} points drawn from the mesh"]
    offered = {"normals": cloud.normals, **cloud.channels}
    if "colours" in info.features and "colours" not in offered:
        offered["colours"], treatment = _stack_colours(cloud)
        steps += treatment
    if "normalised_position" in info.features:
        with np.errstate(over="ignore", invalid="ignore"):  # points too large for float32 are refused later
            offered["normalised_position"] = normalised_position(cloud.points.astype(np.float32))
    features = [name for name in info.features if name != "normals" or not form.estimates_normals]
    _assert_features(offered, features, cloud, where)
    rows = {name: np.asarray(offered[name]).reshape(len(cloud.points), -1) for name in features}
    return {"points": cloud.points, **rows}, steps, is_sampled


def _stack_colours(cloud: PointCloud) -> tuple[np.ndarray | None, list[str]]:
    """Stack red, green and blue to (N, 3) in 0 to 1; integers with a value above 1 are divided by the largest."""
    if not set(COLOURS) <= set(cloud.channels):
        return None, []
    colours = np.stack([cloud.channels[name] for name in COLOURS], axis=1)
    if colours.max() <= 1 or (colours != np.floor(colours)).any():
        return colours, []
    limit = find_colour_max(cloud)
    return colours / limit, [f"colours divided by {limit}"]


def _assert_features(
    offered: Mapping[str, np.ndarray | None], features: Sequence[str], cloud: PointCloud, where: str
) -> None:
    """Raise DataError if the file lacks a feature of the run."""
    missing = [feature for feature in features if offered.get(feature) is None]
    if missing:
        names = cloud.column_names or ("points", *(key for key, values in offered.items() if values is not None))
        available = ", ".join(names)
        raise DataError(
            f"{where}: has no {', '.join(missing)}, which the run was trained with; it has {available}; add the "
            "columns, or name them with --columns where the file has no names"
        )


def _normalise_points(
    points: np.ndarray, form: CloudInputSpec, where: str, *, to_sphere: bool, any_scale: bool
) -> tuple[np.ndarray, list[str]]:
    """Normalise the points as the set's are; return them with a description."""
    if form.unit_sphere == "applied" or to_sphere:
        if _is_prepared(points, form):
            return points, []
        return normalize_to_unit_sphere(points, where=where), [_TO_SPHERE]
    radius = distance_from_origin(points)
    if form.unit_sphere == "promised" and not any_scale and not _MIN_RADIUS <= radius <= 1 + _SLACK:
        raise DataError(
            f"{where}: its points reach {radius:.4g} from the origin, those that the run was trained on reach 1; "
            "--unit-sphere centres and scales every such cloud"
        )
    offset = float(np.linalg.norm(points.mean(axis=0)))
    if form.unit_sphere == "promised" and not any_scale and offset > _compute_max_mean_offset(len(points), form):
        raise DataError(
            f"{where}: the mean of its points lies {offset:.4g} from the origin, in the clouds that the run was "
            "trained on it is at the origin; --unit-sphere centres and scales every such cloud"
        )
    return points, []


def _compute_max_mean_offset(num_points: int, form: CloudInputSpec) -> float:
    """Compute the maximum distance of a cloud's mean from the origin; whole clouds of the sets have it there to 1e-4.

    The mean of n of N points drawn at random is off by at most sqrt((1 - n/N) / n) of the radius, one deviation; for
    clouds larger than the set's N is unknown.
    """
    share = num_points / (form.stored_points or np.inf)
    return _SLACK + 4 * float(np.sqrt((1 - share if share <= 1 else 1.0) / num_points))


def _is_prepared(points: np.ndarray, form: CloudInputSpec) -> bool:
    """Return True if a cloud is normalised as a whole prepared one is, or as the points of one that the run takes.

    For other sizes nothing is known: a user's cloud may well be centred with a radius of 0.7.
    """
    if form.unit_sphere == "none":
        return False
    if len(points) < (form.stored_points or 0) and len(points) != form.num_points:
        return False
    share = len(points) / (form.stored_points or len(points))
    # The mean of n of N randomly drawn points is off by at most sqrt((1 - n/N) / n) of the radius, one deviation.
    max_offset = _SLACK + (4 * np.sqrt((1 - share) / len(points)) if share < 1 else 0.0)
    min_radius = 1 - _SLACK if share >= 1 else _MIN_RADIUS
    return bool(
        min_radius <= distance_from_origin(points) <= 1 + _SLACK and np.linalg.norm(points.mean(axis=0)) <= max_offset
    )


def _choose_points(
    points: np.ndarray, form: CloudInputSpec, num_points: int, *, name: str, where: str, is_fair: bool
) -> tuple[np.ndarray, list[str]]:
    """Choose the indices of the points: the first ones, as the set does, if these are a fair sample; else by the name.

    They are a fair sample of points drawn from a mesh, of a whole shape of the set, and of its first points; a scan
    goes from one end of an object to the other.
    """
    if len(points) < num_points:
        raise DataError(f"{where}: holds {len(points)} points, the run takes {num_points}; give a denser cloud")
    if is_fair or len(points) == form.stored_points:
        return np.arange(num_points), [f"the first {num_points} points"]
    index = generator_from_name(name).permutation(len(points))[:num_points]
    return index, [f"{num_points} of {len(points)} points, chosen by the file's name"]


def is_far(points: np.ndarray, promise: Field, *, slack: float = 0.0) -> np.ndarray:
    """Return a mask (N,) of the points (N, 3) outside the box of the run's set."""
    low = -np.inf if promise.low is None else promise.low - slack
    high = np.inf if promise.high is None else promise.high + slack
    mask: np.ndarray = np.any((points < low) | (points > high), axis=1)
    return mask


def describe_far(num_far: int, num_points: int) -> list[str]:
    """Describe the number of points far beyond those of the run's set; empty if there are none."""
    return [f"{num_far} of {num_points} points far beyond those of the run's set"] if num_far else []


def assert_few_far(points: np.ndarray, promise: Field, where: str, *, noun: str) -> None:
    """Raise DataError, beginning with `where`, if more than `_MAX_SHARE_FAR` of the points are outside the set's range.

    Points at the origin, which may be missing returns, are not counted.
    """
    size = max(abs(promise.low or 0.0), abs(promise.high or 0.0))
    far_mask, num_points = is_far(points, promise, slack=_SLACK * size), int((points != 0).any(axis=1).sum())
    share = int(far_mask.sum()) / max(1, num_points)
    if share <= _MAX_SHARE_FAR:
        return
    reach = np.abs(points).max(axis=1)
    advice = f"take these points out, or give a {noun} of the run's sensor"
    if share > 0.5:
        advice = f"bring the file to the unit and frame of the run's set ({promise.unit or 'no unit'}; {promise.frame})"
    raise DataError(
        f"{where}: {int(far_mask.sum())} of {num_points} points ({100 * share:.3g} %) lie beyond {size:.4g} "
        f"{promise.unit}, twice what the run was trained on: from {reach[far_mask].min():.4g} to {reach.max():.4g}; up "
        f"to {100 * _MAX_SHARE_FAR:g} % may; {advice}"
    )


def assert_within(fields: dict[str, np.ndarray], info: DataInfo, where: str, *, any_scale: bool) -> None:
    """Raise DataError, beginning with `where`, for values outside the set's fields; `any_scale` exempts points."""
    for key, values in fields.items():
        promise = info.fields[key]
        low, high = float(values.min()), float(values.max())
        if not np.isfinite([low, high]).all():
            raise DataError(f"{where}: {key} do not fit into {promise.dtype}; bring the file to a smaller unit")
        bounds = [bound for bound in (promise.low, promise.high) if bound is not None]
        slack = _SLACK * max(map(abs, bounds), default=0.0)
        is_low = promise.low is not None and low < promise.low - slack
        is_high = promise.high is not None and high > promise.high + slack
        if (is_low or is_high) and not (any_scale and key == "points"):
            raise DataError(
                f"{where}: {key} run from {low:.4g} to {high:.4g}, those that the run was trained on from "
                f"{_format_bound(promise.low)} to {_format_bound(promise.high)} ({promise.unit or 'no unit'}); bring "
                "the file to that unit and frame"
            )


def _format_bound(bound: float | None) -> str:
    """Format a bound of a field."""
    return "any" if bound is None else f"{bound:.4g}"


# --- LiDAR scans -----------------------------------------------------------------------------------------------------

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
    spec = spec if no_return is None else dataclasses.replace(spec, no_return=no_return)
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
    high = float(scan.remission.max(initial=0.0))
    if form.has_remission and form.remission_max > 1 and 0 < high <= 1 and (scan.remission % 1 > 0).any():
        raise DataError(
            f"{path}: remissions run to {high:.3g}, as on a scale of 0 to 1, and the run was trained on 0 to "
            f"{form.remission_max:g}; multiply the column by {form.remission_max:g}, or give scans of that scale"
        )
    is_high = scan.remission > form.remission_max * (1 + _REMISSION_SLACK)
    if form.has_remission and is_high.any():
        index = int(is_high.argmax())
        more = count_more(is_high, "so high are")
        raise DataError(
            f"{path}: the remission of point {index} is {scan.remission[index]:g}{more}, "
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
    cloud = read_scan(path, columns=names, used=SCAN_COLUMNS, no_return=form.no_return, withheld=form.withheld)
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
