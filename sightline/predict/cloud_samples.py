"""From a cloud or mesh in a file to the sample that a data set would have made of it, or a reason why not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sightline.data.clouds.cloud_normals import estimated_normals
from sightline.data.clouds.cloud_preparation import cloud_radius, distance_from_origin, prepare_cloud
from sightline.data.clouds.mesh_points import NUM_MESH_POINTS, draw_points, generator_from_name
from sightline.data.files.cloud_files import PointCloud, read_cloud
from sightline.data.scenes.scene_preparation import COLOUR_NAMES, normalised_position, prepare_scene
from sightline.data.store.prepared_writer import normalize_to_unit_sphere
from sightline.errors import ConfigError, DataError
from sightline.types import CloudInputSpec, DataInfo, Field

__all__ = [
    "FileSample",
    "PointOrigin",
    "assert_few_far",
    "assert_within",
    "describe_far",
    "is_far",
    "make_sample",
    "read_sample",
]

_MAX_SHARE_FAR = 0.01
"""Of the points of a scan or scene that may lie beyond those that the run was trained on: in another unit most do."""

_SLACK = 2**-10
"""How far a prepared cloud may be off radius 1 or a field off its bounds: half precision, in which some are stored."""
_TO_SPHERE = "moved to its mean, scaled to radius 1"
_LARGEST = 1e150
"""Beyond this a distance is no longer finite."""
_UNITS = {"km": 1e6, "m": 1e3, "cm": 10.0, "mm": 1.0, "um": 1e-3}
_UNIT_NAMES = {"km": "kilometres", "m": "metres", "cm": "centimetres", "mm": "millimetres", "um": "micrometres"}
_LEAST_RADIUS = 0.5
"""Below this a cloud is not a random part of one of radius 1, but on another scale."""


class PointOrigin(NamedTuple):
    """Where the rows of a sample come from, in the file's own coordinates, so that its points can be predicted.

    `points` (M, 3) float64, all of the file; `places` (N, 3) float64 of the rows; `rows` (N,) int64 are their indices
    in `points`, or None where they were drawn from a mesh.
    """

    points: np.ndarray
    positions: np.ndarray
    rows: np.ndarray | None


class FileSample(NamedTuple):
    """The fields of a sample, each (N, ...) in its promised type, and in words what was done to the file's points.

    `origin` is None for a set of the user's own, whose preparing keeps no account of which points it takes.
    """

    fields: dict[str, np.ndarray]
    treatment: str
    origin: PointOrigin | None = None

    @property
    def num_points(self) -> int:
        return len(self.fields["points"])


def read_sample(
    path: Path,
    info: DataInfo,
    *,
    columns: Sequence[str] | None = None,
    to_sphere: bool = False,
    any_scale: bool = False,
    draws_meshes: bool = True,
) -> FileSample:
    """The sample of a file; `columns` as for `read_cloud`, the rest as for `sample_of`.

    A mesh is drawn by the name of its file, as `sightline data prepare` draws it; without `draws_meshes` its vertices
    are the points. Raises DataError naming the file.
    """
    if columns is None and info.clouds is not None and info.clouds.columns is not None:
        columns = _columns_read(info.clouds.columns, info, info.clouds)
    cloud = read_cloud(path, columns=columns)
    if not draws_meshes:
        cloud = dataclasses.replace(cloud, faces=None)
    return make_sample(cloud, info, name=path.stem, where=str(path), to_sphere=to_sphere, any_scale=any_scale)


def make_sample(
    cloud: PointCloud, info: DataInfo, *, name: str, where: str, to_sphere: bool = False, any_scale: bool = False
) -> FileSample:
    """The sample that the set behind `info` would have made of a cloud: drawn, normalised, cut to its points.

    A cloud that lies as the prepared ones do is taken bit for bit. `to_sphere` puts others about their mean with
    radius 1 where the set only promises that; `any_scale` skips the bounds, for a run whose own transforms normalise.
    The feature `colours` is made of the channels red, green and blue, or r, g and b; `place` of the points.
    Raises DataError, led by `where`, for a missing field, too few points, and a scale outside the set's promise;
    ConfigError for `to_sphere` where the set was prepared to keep size and place.
    """
    form = info.clouds or CloudInputSpec()
    if form.preparation is not None:
        if to_sphere and form.preparation["normalisation"] == "none":
            raise ConfigError(
                "--unit-sphere: the run was trained on clouds of the size and in the place that their files have "
                "(normalisation=none); leave it out"
            )
        return _prepared(cloud, info, form, form.preparation, where, any_scale=any_scale)
    if form.scene is not None:
        if to_sphere:
            raise ConfigError("--unit-sphere: the run was trained on scenes, whose size means something; leave it out")
        return _scene(cloud, info, form.scene, where, any_scale=any_scale)
    if np.abs(cloud.points).max() > _LARGEST:
        raise DataError(f"{where}: a coordinate is {np.abs(cloud.points).max():.4g}; get the file again")
    given, steps, is_drawn = _drawn(cloud, info, form, name=name, where=where)
    origin = PointOrigin(cloud.points, given["points"], None if is_drawn else np.arange(len(cloud.points)))
    is_fair = is_drawn or _is_prepared(given["points"], form)
    if is_drawn and form.unit_sphere != "none":  # always, as preparing does with meshes
        given["points"], treatment = normalize_to_unit_sphere(given["points"], where=where), [_TO_SPHERE]
    else:
        given["points"], treatment = _placed(given["points"], form, where, to_sphere=to_sphere, any_scale=any_scale)
    steps += treatment
    num_points = form.num_points or len(given["points"])
    if len(given["points"]) != num_points:
        index, treatment = _chosen(given["points"], form, num_points, name=name, where=where, is_fair=is_fair)
        given = {key: values[index] for key, values in given.items()}
        origin = PointOrigin(cloud.points, origin.positions[index], None if origin.rows is None else origin.rows[index])
        steps += treatment
    with np.errstate(over="ignore"):  # what is too large for the type becomes infinite, and is refused below
        fields = {key: values.astype(info.fields[key].dtype) for key, values in given.items()}
    if form.estimates_normals:
        fields["normals"] = estimated_normals(fields["points"], where=where)
    assert_within(fields, info, where, any_scale=any_scale)
    return FileSample(fields, ", ".join(steps) or "as it is", origin)


def _columns_read(columns: Sequence[str], info: DataInfo, form: CloudInputSpec) -> list[str]:
    """The columns of the set with `_` for those that the run does not read: no file needs to have them."""
    if form.scene is not None:
        kept = {name for names in COLOUR_NAMES for name in names} if "colours" in info.features else set()
        kept |= {"nx", "ny", "nz"} if "normals" in info.features else set()
    elif form.preparation is not None:
        made = _features_made(info, form, form.preparation)
        kept = {*(("nx", "ny", "nz") if made["with_normals"] else ()), *made["channels"]}
    else:
        return list(columns)
    kept |= {"x", "y", "z"}
    return [name if name in kept else "_" for name in columns]


def _features_made(info: DataInfo, form: CloudInputSpec, preparation: Mapping[str, Any]) -> dict[str, Any]:
    """Which of a file's features `prepare_cloud` is to take: those that the run reads, no more."""
    return {
        "with_normals": "normals" in info.features and not form.estimates_normals,
        "channels": tuple(preparation["channels"]) if "channels" in info.features else (),
    }


def _scene(cloud: PointCloud, info: DataInfo, scene: Mapping[str, float], where: str, *, any_scale: bool) -> FileSample:
    """The sample of a set of scenes: every point, made by the very function that made the set."""
    colour_names = next((names for names in COLOUR_NAMES if set(names) <= set(cloud.channels)), None)
    held = {"normals": cloud.normals, "colours": None if colour_names is None else cloud.points, "place": cloud.points}
    _assert_offered(held, info.features, where)
    made = prepare_scene(
        cloud,
        scale=scene["scale"],
        colour_max=scene["colour_max"],
        colour_names=colour_names if "colours" in info.features else None,
        with_normals="normals" in info.features,
        where=where,
    )
    if "colours" in made:
        made["colours"] = made["colours"] / np.float32(255)
    if "place" in info.features:
        with np.errstate(invalid="ignore"):  # points too large for float32 are refused as such
            made["place"] = normalised_position(made["points"])
    fields = {key: made[key] for key in ("points", *info.features)}
    assert_within(fields, info, where, any_scale=True)
    if not any_scale:
        assert_few_far(fields["points"], info.fields["points"], where, noun="scene")
    num_far = int(is_far(fields["points"], info.fields["points"]).sum())
    origin = PointOrigin(cloud.points, cloud.points, np.arange(len(cloud.points)))
    steps = ["prepared as the set was", *describe_far(num_far, len(cloud.points))]
    return FileSample(fields, ", ".join(steps), origin)


def _prepared(
    cloud: PointCloud,
    info: DataInfo,
    form: CloudInputSpec,
    preparation: Mapping[str, Any],
    where: str,
    *,
    any_scale: bool,
) -> FileSample:
    """The sample of a set of the user's own: prepared by the very function that prepared the set."""
    made = _features_made(info, form, preparation)
    is_mesh = preparation["faces"] == "sample" and cloud.faces is not None and len(cloud.faces) > 0
    if not is_mesh:
        offered = {"normals": cloud.normals, **cloud.channels}
        _assert_offered(offered, [*(["normals"] if made["with_normals"] else []), *made["channels"]], where)
    stored = prepare_cloud(cloud, **{**preparation, **made}, where=where)
    steps = [] if is_mesh else _repeated(cloud, stored["points"], form, where)
    if form.radii is not None and not any_scale:
        _assert_of_size(cloud_radius(stored["points"]), form.radii, info.fields["points"].unit, where)
    given = {key: values[: form.num_points] for key, values in stored.items()}
    if form.estimates_normals:
        given["normals"] = estimated_normals(given["points"], where=where)
    fields = {key: given[key] for key in ("points", *info.features)}
    assert_within(fields, info, where, any_scale=any_scale)
    return FileSample(fields, ", ".join([*steps, "prepared as the set was"]))


def _repeated(cloud: PointCloud, stored: np.ndarray, form: CloudInputSpec, where: str) -> list[str]:
    """The note on a cloud of fewer points than the run takes; one of fewer than any of the set is refused."""
    if form.fewest_points is not None and len(np.unique(stored, axis=0)) < form.fewest_points:
        num_distinct = len(np.unique(cloud.points, axis=0))  # a choice of a dense cloud may repeat a point
        if num_distinct < form.fewest_points:
            raise DataError(
                f"{where}: holds {_count_of_points(num_distinct)} that differ, every cloud of the run's set at least "
                f"{form.fewest_points}; give a denser cloud"
            )
    wanted = form.num_points or len(stored)
    return [f"{_count_of_points(len(cloud.points))}, repeated to {wanted}"] if len(cloud.points) < wanted else []


def _count_of_points(count: int) -> str:
    return f"{count} point{'' if count == 1 else 's'}"


def _assert_of_size(radius: float, radii: tuple[float, float], unit: str, where: str) -> None:
    """Raises DataError for a cloud below half or above twice the sizes of the set: one in another unit."""
    low, high = radii
    if low / 2 <= radius <= 2 * high:
        return
    ratio = radius / np.sqrt(low * high) if low > 0 else radius / high
    comparison = "all its points coincide"
    if radius > 0:
        comparison = (
            f"about {max(ratio, 1 / ratio):.4g} times {'larger' if ratio > 1 else 'smaller'}{_likely_unit(unit, ratio)}"
        )
    raise DataError(
        f"{where}: its points reach {radius:.4g} {unit} from their mean, those of the run's set {low:.4g} to "
        f"{high:.4g} {unit}; {comparison}; bring the file to {unit or 'that unit'}"
    )


def _likely_unit(unit: str, ratio: float) -> str:
    """The unit in which the file's numbers would be of the set's size, as a question; empty where none is likely."""
    if unit not in _UNITS:
        return ""
    factors = {name: _UNITS[unit] / size for name, size in _UNITS.items() if name != unit}
    found = [name for name, factor in factors.items() if 0.5 < ratio / factor < 2]
    return f": {_UNIT_NAMES[found[0]]} for {_UNIT_NAMES[unit]}?" if found else ""


def _drawn(
    cloud: PointCloud, info: DataInfo, form: CloudInputSpec, *, name: str, where: str
) -> tuple[dict[str, np.ndarray], list[str], bool]:
    """The points and every feature of the set, what was done, and whether they were drawn from the file's triangles."""
    is_drawn = cloud.faces is not None and len(cloud.faces) > 0
    steps = []
    if cloud.faces is not None and is_drawn:
        count = max(NUM_MESH_POINTS, form.num_points or 0)
        surface = draw_points(cloud.points, cloud.faces, name=name, where=where, num_points=count)
        cloud = PointCloud(surface.points, surface.normals)
        steps = [f"{count} points drawn from the mesh"]
    offered = {"normals": cloud.normals, **cloud.channels}
    if "colours" in info.features and "colours" not in offered:
        offered["colours"], treatment = _colours(cloud.channels)
        steps += treatment
    if "place" in info.features:
        with np.errstate(over="ignore", invalid="ignore"):  # points too large for float32 are refused as such
            offered["place"] = normalised_position(cloud.points.astype(np.float32))
    features = [name for name in info.features if name != "normals" or not form.estimates_normals]
    _assert_offered(offered, features, where)
    rows = {feature: _as_rows(np.asarray(offered[feature])) for feature in features}
    return {"points": cloud.points, **rows}, steps, is_drawn


def _colours(channels: Mapping[str, np.ndarray]) -> tuple[np.ndarray | None, list[str]]:
    """Red, green and blue (N, 3), 0 to 1; whole numbers of which one is above 1 are taken for bytes, 0 to 255."""
    names = next((names for names in COLOUR_NAMES if set(names) <= set(channels)), None)
    if names is None:
        return None, []
    colours = np.stack([channels[name] for name in names], axis=1)
    if colours.max() <= 1 or (colours != np.floor(colours)).any():
        return colours, []
    return colours / 255, ["colours divided by 255"]


def _assert_offered(offered: Mapping[str, np.ndarray | None], features: Sequence[str], where: str) -> None:
    missing = [feature for feature in features if offered.get(feature) is None]
    if missing:
        held = ", ".join(["points", *(key for key, values in offered.items() if values is not None)])
        raise DataError(
            f"{where}: has no {', '.join(missing)}, which the run was trained with; it has {held}; add the columns, or "
            "name them with --columns where the file has no names"
        )


def _as_rows(values: np.ndarray) -> np.ndarray:
    return values if values.ndim > 1 else values[:, None]


def _placed(
    points: np.ndarray, form: CloudInputSpec, where: str, *, to_sphere: bool, any_scale: bool
) -> tuple[np.ndarray, list[str]]:
    """The points where the set has them, and what was done for that."""
    if form.unit_sphere == "applied" or to_sphere:
        if _is_prepared(points, form):
            return points, []
        return normalize_to_unit_sphere(points, where=where), [_TO_SPHERE]
    radius = distance_from_origin(points)
    if form.unit_sphere == "promised" and not any_scale and not _LEAST_RADIUS <= radius <= 1 + _SLACK:
        raise DataError(
            f"{where}: its points reach {radius:.4g} from the origin, those that the run was trained on reach 1; "
            "--unit-sphere moves every such cloud to its mean and scales it"
        )
    offset = float(np.linalg.norm(points.mean(axis=0)))
    if form.unit_sphere == "promised" and not any_scale and offset > _most_off_mean(len(points), form):
        raise DataError(
            f"{where}: the mean of its points lies {offset:.4g} from the origin, those that the run was trained on "
            "have it there; --unit-sphere moves every such cloud to its mean and scales it"
        )
    return points, []


def _most_off_mean(num_points: int, form: CloudInputSpec) -> float:
    """How far the mean of so many points may lie from the origin: the sets' whole clouds have it there to 1e-4.

    The mean of n of N points drawn by chance is off by at most sqrt((1 - n/N) / n) of the radius, one deviation; of
    clouds larger than the set's N is not known.
    """
    share = num_points / (form.stored_points or np.inf)
    return _SLACK + 4 * float(np.sqrt((1 - share if share <= 1 else 1.0) / num_points))


def _is_prepared(points: np.ndarray, form: CloudInputSpec) -> bool:
    """Whether a cloud lies as a whole prepared one does, or as the points of one do that the run takes.

    Of other sizes nothing is known: a cloud of a user's own may well lie about the origin with a radius of 0.7.
    """
    if form.unit_sphere == "none":
        return False
    if len(points) < (form.stored_points or 0) and len(points) != form.num_points:
        return False
    share = len(points) / (form.stored_points or len(points))
    # The mean of n of N points drawn by chance is off by at most sqrt((1 - n/N) / n) of the radius, one deviation.
    off_mean = _SLACK + (4 * np.sqrt((1 - share) / len(points)) if share < 1 else 0.0)
    least = 1 - _SLACK if share >= 1 else _LEAST_RADIUS
    return bool(least <= distance_from_origin(points) <= 1 + _SLACK and np.linalg.norm(points.mean(axis=0)) <= off_mean)


def _chosen(
    points: np.ndarray, form: CloudInputSpec, num_points: int, *, name: str, where: str, is_fair: bool
) -> tuple[np.ndarray, list[str]]:
    """Which points stay: the first ones, as the set takes them, where those are a fair choice; else by the name.

    They are in what was drawn from a mesh, in a whole shape of the set, and in the first points of one; a scan goes
    from one end of a thing to the other.
    """
    if len(points) < num_points:
        raise DataError(f"{where}: holds {len(points)} points, the run takes {num_points}; give a denser cloud")
    if is_fair or len(points) == form.stored_points:
        return np.arange(num_points), [f"the first {num_points} points"]
    index = generator_from_name(name).permutation(len(points))[:num_points]
    return index, [f"{num_points} of {len(points)} points, chosen by the file's name"]


def is_far(points: np.ndarray, promise: Field, *, slack: float = 0.0) -> np.ndarray:
    """Whether each of the points (N, 3) lies outside the box that the run's set promises: bool (N,)."""
    low = -np.inf if promise.low is None else promise.low - slack
    high = np.inf if promise.high is None else promise.high + slack
    found: np.ndarray = np.any((points < low) | (points > high), axis=1)
    return found


def describe_far(num_far: int, num_points: int) -> list[str]:
    """The points of a file that lie beyond those of the run's set, in words; none where there is none."""
    return [f"{num_far} of {num_points} points far beyond those of the run's set"] if num_far else []


def assert_few_far(points: np.ndarray, promise: Field, where: str, *, noun: str) -> None:
    """Raises DataError, led by `where`, where more than `_MAX_SHARE_FAR` of the points lie beyond those of the set.

    Points at the origin, which may stand for no return, count neither way.
    """
    size = max(abs(promise.low or 0.0), abs(promise.high or 0.0))
    found, num_points = is_far(points, promise, slack=_SLACK * size), int((points != 0).any(axis=1).sum())
    share = int(found.sum()) / max(1, num_points)
    if share <= _MAX_SHARE_FAR:
        return
    reach = np.abs(points).max(axis=1)
    advice = f"take these points out, or give a {noun} of the run's sensor"
    if share > 0.5:
        advice = f"bring the file to the unit and frame of the run's set ({promise.unit or 'no unit'}; {promise.frame})"
    raise DataError(
        f"{where}: {int(found.sum())} of {num_points} points ({100 * share:.3g} %) lie beyond {size:.4g} "
        f"{promise.unit}, twice what the run was trained on: from {reach[found].min():.4g} to {reach.max():.4g}; up to "
        f"{100 * _MAX_SHARE_FAR:g} % may; {advice}"
    )


def assert_within(fields: dict[str, np.ndarray], info: DataInfo, where: str, *, any_scale: bool) -> None:
    """Raises DataError, led by `where`, for values beyond those of the set's fields; `any_scale`: but for points."""
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
                f"{_bound(promise.low)} to {_bound(promise.high)} ({promise.unit or 'no unit'}); bring the "
                "file to that unit and frame"
            )


def _bound(bound: float | None) -> str:
    return "any" if bound is None else f"{bound:.4g}"
