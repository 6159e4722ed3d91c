"""Renderer of view stores: pictures of every cloud of a prepared set, atomically."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sightline.commands.data import RenderOptions
from sightline.config.key_values import read_key_values
from sightline.contract import registry
from sightline.contract.errors import ConfigError, DataError, UserError
from sightline.contract.schema import suggest
from sightline.ops.views.cameras import Cameras, ring_cameras
from sightline.ops.views.rendering import Style, render_cloud
from sightline.store.files.input_files import expand_home
from sightline.store.prepared.prepared_set import MANIFEST, PreparedSet, check_sizes, prepared_root, read_manifest
from sightline.store.prepared.prepared_writer import (
    ColumnSpec,
    PreparationPlan,
    Progress,
    SampleRow,
    Shard,
    normalize_to_unit_sphere,
    write_prepared_set,
)
from sightline.store.prepared.views import IMAGE, VIEWS_SET

_OBJECTS_PER_SHARD = 256
"""Objects of a shard, which are rendered again together after a kill."""


class RenderedClouds:
    """Clouds of a prepared set, of all splits, the first `num_points` stored points of each (None: all).

    Raises DataError for a set without clouds; ConfigError for more points than are stored.
    """

    def __init__(self, root: Path, *, num_points: int | None = None) -> None:
        manifest = read_manifest(root)
        columns = manifest["columns"]
        if "points" not in columns or "up_axis" not in manifest:
            raise DataError(f"{root}: holds '{manifest['set']}', which has no clouds with an up axis to render")
        check_sizes(root, manifest)
        stored = columns["points"]["shape"][0] if not columns["points"].get("is_ragged") else None
        if num_points is not None and stored is not None and num_points > stored:
            raise ConfigError(f"data render: num_points is {num_points}, {root} holds {stored} points a shape")
        self.path = root.resolve()
        self.up_axis: Any = manifest["up_axis"]
        self.options = {"num_points": num_points, "source_digest": manifest["digest"]}
        self.about = {"set": manifest["set"], "num_points": num_points or stored or "all"}
        self._prepared = PreparedSet(self.path, manifest)
        self.names = {split: self._prepared.names(split) for split in self._prepared.splits}
        self._num_points = num_points

    def render(self, split: str, index: int, cameras: Cameras, style: Style) -> SampleRow:
        """Render the views of one cloud. Raises DataError naming it if it cannot be drawn."""
        name = self.names[split][index]
        where = f"{self.path}: {split}/{name}"
        points = self._prepared.row(split, "points", index)[: self._num_points]
        try:
            views = render_cloud(normalize_to_unit_sphere(points, where=where), cameras, style=style)
        except ValueError as error:
            raise DataError(f"{where}: {error}") from error
        return SampleRow(name, where, {IMAGE: views})


def render_views(options: RenderOptions, *, progress: Progress) -> dict[str, Any]:
    """Render every cloud of a prepared set into a view store; return its manifest with `root` and `outcome`.

    Raises UserError for an unknown set or option; DataError for a cloud that cannot be drawn, two of one name, and a
    target that contains something else; RunError if the disk is full.
    """
    elevations = _parse_elevations(options.elevations)
    make_cameras = functools.partial(
        ring_cameras,
        options.num_views,
        size_px=options.size_px,
        elevations_deg=elevations,
        projection=options.projection,
    )
    try:
        make_cameras(up_axis="z")  # raises for options that do not fit before any cloud is read
    except ValueError as error:
        raise ConfigError(f"data render: {error}") from error
    clouds = _find_clouds(options)
    _assert_unique(clouds)
    cameras = make_cameras(up_axis=clouds.up_axis)
    about = {
        "up_axis": clouds.up_axis,
        "style": options.style,
        "background": None,
        "cameras": {
            "count": options.num_views,
            "projection": options.projection,
            "elevations_deg": list(elevations),
            "distance": cameras.distance,
        },
        "rotations": cameras.rotations.tolist(),
        "of": clouds.about,
    }
    stored_options = {
        "views": options.num_views,
        "size": options.size_px,
        "style": options.style,
        "projection": options.projection,
        "elevations": list(elevations),
        **clouds.options,
    }
    plan = PreparationPlan(
        VIEWS_SET,
        "rendered",
        clouds.path,
        {IMAGE: ColumnSpec((options.size_px, options.size_px), "uint8", is_ragged=True)},
        tuple(_make_shards(clouds, cameras, options)),
        about,
        lambda prepared: {},
        stored_options,
    )
    return write_prepared_set(plan, options.target, progress=progress)


def _find_clouds(options: RenderOptions) -> RenderedClouds:
    """Find the prepared set that is meant: a folder, or where a data set of this name is looked for."""
    folder, names = expand_home(options.source), registry.data.names()
    arguments = read_key_values(options.source, RenderedClouds, options.options, command="data render")
    advice = suggest(options.source, names, otherwise="; prepare one: sightline data prepare SET --from PATH --to DIR")
    if not folder.is_dir() and options.source in names:
        data_set: Any = registry.data.get_class(options.source)
        advice = ""
        if data_set.prepare is not None:
            folder = prepared_root(None, options.source)
            advice = f"; give the folder that contains it, or prepare one: {data_set.card()['prepare']}"
    if not (folder / MANIFEST).is_file():
        raise UserError(f"data render: {folder}: is not a prepared set of clouds{advice}")
    return RenderedClouds(folder, **arguments)


def _assert_unique(clouds: RenderedClouds) -> None:
    """Raise DataError if two clouds, in any splits, have the same name: views are looked up by it."""
    counts = Counter(name for split in clouds.names.values() for name in split)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise DataError(
            f"{clouds.path}: {len(twice)} names belong to several clouds each, the first is '{twice[0]}'; views are "
            "found by name: rename the files"
        )


def _make_shards(clouds: RenderedClouds, cameras: Cameras, options: RenderOptions) -> Iterator[Shard]:
    """Yield shards of up to 256 clouds of one split."""
    for split, names in clouds.names.items():
        for first in range(0, len(names), _OBJECTS_PER_SHARD):
            members = range(first, min(first + _OBJECTS_PER_SHARD, len(names)))
            rows = functools.partial(_render_rows, clouds, split, members, cameras, options.style)
            manifest = (clouds.path / MANIFEST,)
            yield Shard(split, split, len(members), manifest, rows, len(members) * options.num_views)


def _render_rows(
    clouds: RenderedClouds, split: str, members: range, cameras: Cameras, style: Style
) -> Iterator[SampleRow]:
    for index in members:
        yield clouds.render(split, index, cameras, style)


def _parse_elevations(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"data render: --elevations {text}: degrees are needed, such as 30 or 10,30,50") from None
