"""Renderer of view stores: every object of a set, in parallel, atomically; a killed run is continued.

Sources of objects to render: a prepared set of clouds, the embedded shapes, or a folder of files.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.commands.data import RenderOptions
from sightline.config.overrides import read_key_values
from sightline.contract import registry
from sightline.contract.errors import ConfigError, DataError, RunError, UserError
from sightline.contract.members import DataMembers
from sightline.contract.schema import suggest
from sightline.contract.types import SampleKey
from sightline.ops.pinhole import Cameras, Projection, ring_cameras
from sightline.ops.rendering import Style, render_cloud, render_mesh
from sightline.store.files.cloud_files import CLOUD_SUFFIXES, is_cloud_file, read_cloud
from sightline.store.files.input_files import expand_home
from sightline.store.prepared.columns import prepared_root
from sightline.store.prepared.prepared_set import MANIFEST, PreparedSet, check_sizes, read_manifest, summarise_folder
from sightline.store.prepared.prepared_writer import (
    ColumnSpec,
    PreparationPlan,
    Progress,
    SampleRow,
    Shard,
    normalize_to_unit_sphere,
    write_prepared_set,
)
from sightline.store.prepared.views import DEFAULT_SIZE_PX, IMAGE, VIEWS_SET


class Surface(NamedTuple):
    """Points (N, 3), or vertices with triangles `faces` (F, 3), in the unit sphere about the origin."""

    points: np.ndarray
    faces: np.ndarray | None = None


class RenderSource(Protocol):
    """Source of named objects, by split; picklable for the processes that render.

    `options` are what the objects depend on besides the `files`; `about` describes them in the manifest.
    """

    path: Path
    up_axis: str

    @property
    def names(self) -> Mapping[str, Sequence[str]]: ...

    @property
    def options(self) -> Mapping[str, Any]: ...

    @property
    def about(self) -> Mapping[str, Any]: ...

    def files(self, split: str, first: int, last: int) -> tuple[Path, ...]: ...

    def where(self, split: str, index: int) -> str: ...

    def read(self, split: str, index: int) -> Surface: ...


class PreparedObjects:
    """Clouds of a prepared set, all splits, the first `num_points` stored points of each (None: all)."""

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
        self.up_axis = str(manifest["up_axis"])
        self._prepared = PreparedSet(self.path, manifest)
        self._num_points = num_points
        self.names = {split: self._prepared.names(split) for split in self._prepared.splits}
        self.options = {"num_points": num_points, "source_digest": manifest["digest"]}
        self.about = {"set": manifest["set"], "num_points": num_points or stored or "all"}

    def files(self, split: str, first: int, last: int) -> tuple[Path, ...]:
        return (self.path / MANIFEST,)

    def where(self, split: str, index: int) -> str:
        return f"{self.path}: {split}/{self.names[split][index]}"

    def read(self, split: str, index: int) -> Surface:
        points = self._prepared.row(split, "points", index)[: self._num_points]
        return Surface(normalize_to_unit_sphere(points, where=self.where(split, index)))


class SyntheticObjects:
    """Embedded shapes; `arguments` are those of `synthetic_shapes` except the split."""

    def __init__(self, **arguments: Any) -> None:
        self._sets = {split: SyntheticShapes(split=split, **arguments) for split in ("train", "test")}
        self.path = Path("synthetic_shapes")
        self.up_axis = "z"
        self.names = {
            split: [shapes.sample_name(i) for i in range(len(shapes))] for split, shapes in self._sets.items()
        }
        self.options = dict(arguments)
        self.about = {"set": "synthetic_shapes", **arguments}

    def files(self, split: str, first: int, last: int) -> tuple[Path, ...]:
        return ()

    def where(self, split: str, index: int) -> str:
        return f"synthetic_shapes: {self.names[split][index]}"

    def read(self, split: str, index: int) -> Surface:
        return Surface(self._sets[split][SampleKey(index, 0, 0)]["points"].numpy())


class FileObjects:
    """Meshes and clouds in files, one object each, centred and scaled to radius 1.

    An object has the name of its file without the suffix (`airplane_0001`); if two files share one, all names are
    relative paths. Meshes are drawn as surfaces, clouds as points.
    """

    def __init__(self, folder: Path, *, up_axis: str) -> None:
        self.path = folder.resolve()
        self.up_axis = up_axis
        cloud_paths = filter(is_cloud_file, self.path.rglob("*"))
        self._files = sorted(
            path for path in cloud_paths if not any(part.startswith(".") for part in path.relative_to(self.path).parts)
        )
        if not self._files:
            raise DataError(
                f"{folder}: holds {summarise_folder(folder)}, no mesh or cloud ({' '.join(CLOUD_SUFFIXES)}) "
                "in any folder "
                "below; give another"
            )
        stems = [path.stem for path in self._files]
        paths = [path.relative_to(self.path).with_suffix("").as_posix() for path in self._files]
        self.names = {"all": stems if len(set(stems)) == len(stems) else paths}
        self.options: dict[str, Any] = {}
        self.about = {"set": "files", "names": "stem" if self.names["all"] is stems else "path"}

    def files(self, split: str, first: int, last: int) -> tuple[Path, ...]:
        return tuple(self._files[first:last])

    def where(self, split: str, index: int) -> str:
        return str(self._files[index])

    def read(self, split: str, index: int) -> Surface:
        cloud = read_cloud(self._files[index], used=())
        if cloud.faces is None:
            return Surface(normalize_to_unit_sphere(cloud.points, where=self.where(split, index)))
        return Surface(_normalise_mesh(cloud.points, cloud.faces, where=self.where(split, index)), cloud.faces)


def open_render_source(folder: Path, *, up_axis: str | None, num_points: int | None) -> RenderSource:
    """Open a folder as a prepared set, which states its up axis, or as files, which need the argument `up_axis`.

    Raises DataError or ConfigError if arguments and folder do not match.
    """
    if (folder / MANIFEST).is_file():
        objects = PreparedObjects(folder, num_points=num_points)
        if up_axis not in (None, objects.up_axis):
            raise ConfigError(f"data render: --up {up_axis}, but in {folder} {objects.up_axis} is up; leave it out")
        return objects
    if num_points is not None:
        raise ConfigError(f"data render: num_points is for prepared sets, {folder} holds files; leave it out")
    if up_axis is None:
        raise ConfigError(f"data render: {folder} holds files, which do not state their up axis; give --up x, y or z")
    return FileObjects(folder, up_axis=up_axis)


def _normalise_mesh(vertices: np.ndarray, faces: np.ndarray, *, where: str) -> np.ndarray:
    """Centre the bounding box of the vertices used by faces, and scale their largest distance to 1."""
    used = vertices[np.unique(faces)]
    centre = (used.min(axis=0) + used.max(axis=0)) / 2
    radius = np.linalg.norm(used - centre, axis=1).max()
    if not (np.isfinite(radius) and radius > 0):
        raise DataError(f"{where}: its faces have no extent, so there is nothing to see; leave the file out")
    normalised: np.ndarray = (vertices - centre) / radius
    return normalised


_OBJECTS_PER_SHARD = 256
"""Objects of a shard, which are rendered again together after a kill."""
_PICTURES_AT_ONCE = 4096
"""Pictures per block of the search for blank ones: 16 MB at 64 pixels."""
_CHUNK = 8
"""Objects sent to a process at once."""


@dataclass(frozen=True)
class RenderSettings:
    """Settings of the renderer: all that the bits of a view store depend on besides the objects."""

    num_views: int = 12
    size_px: int = DEFAULT_SIZE_PX
    style: Style = "shaded"
    projection: Projection = "parallel"
    elevations_deg: tuple[float, ...] = (30.0,)

    def cameras(self, up_axis: Any) -> Cameras:
        """Build the cameras of the views. Raises ConfigError if views and elevations do not fit."""
        try:
            return ring_cameras(
                self.num_views,
                size_px=self.size_px,
                up_axis=up_axis,
                elevations_deg=self.elevations_deg,
                projection=self.projection,
            )
        except ValueError as error:
            raise ConfigError(f"data render: {error}") from error


def render_set(
    objects: RenderSource, target: Path, *, look: RenderSettings, num_jobs: int, progress: Progress
) -> dict[str, Any]:
    """Render every object into a view store; return its manifest with `root` and `outcome`, as `write_prepared_set`.

    The bits are the same for any number of processes; a killed run is continued by the same call.
    Raises DataError for an object that cannot be drawn, two of one name, and a target that contains something else;
    RunError if the disk is full.
    """
    cameras = look.cameras(objects.up_axis)
    check_names(objects.names, where=str(objects.path))
    about = {
        "up_axis": objects.up_axis,
        "style": look.style,
        "background": None,
        "cameras": {
            "count": look.num_views,
            "projection": look.projection,
            "elevations_deg": list(look.elevations_deg),
            "distance": cameras.distance,
        },
        "rotations": cameras.rotations.tolist(),
        "of": objects.about,
    }
    options = {
        "views": look.num_views,
        "size": look.size_px,
        "style": look.style,
        "projection": look.projection,
        "elevations": list(look.elevations_deg),
        "up": objects.up_axis,
        **objects.options,
    }
    with _Renderers(objects, cameras, look.style, num_jobs) as renderers:
        plan = PreparationPlan(
            VIEWS_SET,
            "rendered",
            objects.path,
            {IMAGE: ColumnSpec((look.size_px, look.size_px), "uint8", is_ragged=True)},
            tuple(_make_shards(objects, renderers, look.num_views)),
            about,
            _summarise_blank_views,
            options,
        )
        return write_prepared_set(plan, target, progress=progress)


def check_names(names: Mapping[str, Sequence[str]], *, where: str) -> None:
    """Raise DataError if two objects, in any splits, have the same name: views are looked up by it."""
    counts = Counter(name for split in names.values() for name in split)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise DataError(
            f"{where}: {len(twice)} names belong to several objects each, the first is '{twice[0]}'; views are found "
            "by name: rename the files"
        )


def _summarise_blank_views(prepared: PreparedSet) -> Mapping[str, Any]:
    """Manifest entries computed from the written arrays: blank pictures, as of a flat mesh seen edge-on."""
    differences = []
    for split in prepared.splits:
        pictures, offsets = prepared.array(split, IMAGE), prepared.offsets(split)
        blank = [
            start + int(index)
            for start in range(0, len(pictures), _PICTURES_AT_ONCE)
            for index in np.flatnonzero(~pictures[start : start + _PICTURES_AT_ONCE].any(axis=(1, 2)))
        ]
        if blank:
            first = prepared.names(split)[int(np.searchsorted(offsets, blank[0], side="right")) - 1]
            differences.append(
                f"{split}: {len(blank)} of {len(pictures)} views are blank, the first is one of '{first}'"
            )
    return {"differences": differences} if differences else {}


def _make_shards(objects: RenderSource, renderers: _Renderers, num_views: int) -> Iterator[Shard]:
    """Yield shards of up to 256 objects of one split."""
    for split, names in objects.names.items():
        for first in range(0, len(names), _OBJECTS_PER_SHARD):
            last = min(first + _OBJECTS_PER_SHARD, len(names))
            rows = functools.partial(renderers.rows, split, first, last)
            files = objects.files(split, first, last)
            yield Shard(split, split, last - first, files, rows, (last - first) * num_views)


class _Renderers:
    """Pool of processes that render objects, started on first use; with one job, this process."""

    def __init__(self, objects: RenderSource, cameras: Cameras, style: Style, num_jobs: int) -> None:
        self._objects = objects
        self._work = functools.partial(_render, objects, cameras, style)
        self._num_jobs = num_jobs
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> _Renderers:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def rows(self, split: str, first: int, last: int) -> Iterator[SampleRow]:
        """Yield the views of these objects, in order."""
        tasks = [(split, index) for index in range(first, last)]
        names = self._objects.names[split]
        for (_, index), levels in zip(tasks, self._render_tasks(tasks), strict=True):
            yield SampleRow(names[index], self._objects.where(split, index), {IMAGE: levels})

    def _render_tasks(self, tasks: Sequence[tuple[str, int]]) -> Iterator[np.ndarray]:
        """Render the tasks (split, index) in order, in this process or in the pool."""
        if self._num_jobs == 1:
            return map(self._work, tasks)
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self._num_jobs, mp_context=get_context("spawn"), initializer=_start_worker)
        return self._render_in_pool(self._pool, tasks)

    def _render_in_pool(self, pool: ProcessPoolExecutor, tasks: Sequence[tuple[str, int]]) -> Iterator[np.ndarray]:
        """Render the tasks in the pool. Raises RunError if a process was killed."""
        try:
            yield from pool.map(self._work, tasks, chunksize=_CHUNK)
        except BrokenProcessPool as error:
            raise RunError(
                "data render: a rendering process was killed, perhaps for lack of memory; run the command again, "
                "with fewer --jobs: it continues where this one stopped"
            ) from error


def _render(objects: RenderSource, cameras: Cameras, style: Style, task: tuple[str, int]) -> np.ndarray:
    """Render the views of one object. Raises DataError naming it."""
    surface = objects.read(*task)
    try:
        if surface.faces is not None:
            return render_mesh(surface.points, surface.faces, cameras, style=style)
        return render_cloud(surface.points, cameras, style=style)
    except ValueError as error:
        raise DataError(f"{objects.where(*task)}: {error}") from error


def _start_worker() -> None:
    """Initialise a process of the pool: one thread, and an exit when its parent exits."""
    torch.set_num_threads(1)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def render_views(options: RenderOptions, *, progress: Progress) -> dict[str, Any]:
    """Render views of every object of a set, or of a folder of files, into a view store; return the report."""
    elevations = _parse_elevations(options.elevations)
    settings = RenderSettings(options.num_views, options.size_px, options.style, options.projection, elevations)
    settings.cameras("z")  # raises for invalid options before any object is read
    objects = _find_objects(options)
    num_jobs = options.num_jobs or len(os.sched_getaffinity(0))
    return render_set(objects, options.target, look=settings, num_jobs=num_jobs, progress=progress)


def _find_objects(options: RenderOptions) -> RenderSource:
    """Find the objects to render: of a folder, of a prepared data set by its name, or the synthetic shapes."""

    folder, names = expand_home(options.source), registry.data.names()
    if options.source == "synthetic_shapes":
        if options.up_axis not in (None, "z"):
            raise UserError(f"data render: --up {options.up_axis}, but z is up in synthetic_shapes; leave it out")
        excluded = ("split", "views", "normals", "target")
        return SyntheticObjects(
            **read_key_values(options.source, SyntheticShapes, options.options, command="data render", exclude=excluded)
        )
    arguments = read_key_values(options.source, PreparedObjects, options.options, command="data render")
    data_set: Any = registry.data.get_entry(options.source).builder if options.source in names else None
    if not folder.is_dir() and data_set is not None and DataMembers.prepare.get(data_set) is not None:
        folder = prepared_root(None, options.source)
        if not (folder / MANIFEST).is_file():
            raise UserError(
                f"data render: {folder}: is not a prepared data set; give the folder that contains it, or prepare one: "
                f"{data_set.card()['prepare']}"
            )
    if not folder.is_dir():
        raise UserError(
            f"data render: '{options.source}' is neither a folder nor a data set of clouds"
            f"{suggest(options.source, names)}"
        )
    return open_render_source(folder, up_axis=options.up_axis, num_points=arguments.get("num_points"))


def _parse_elevations(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UserError(f"data render: --elevations {text}: degrees are needed, such as 30 or 10,30,50") from None
