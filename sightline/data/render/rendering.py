"""Renderer of view stores: every object of a set, in parallel, atomically; a killed run is continued."""

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
from typing import Any

import numpy as np
import torch

from sightline.data.render.rendered_objects import RenderSource
from sightline.data.store.prepared_set import PreparedSet
from sightline.data.store.prepared_writer import (
    ColumnSpec,
    PreparationPlan,
    Progress,
    SampleRow,
    Shard,
    write_prepared_set,
)
from sightline.data.store.views import DEFAULT_SIZE_PX, IMAGE, VIEWS_SET
from sightline.errors import ConfigError, DataError, RunError
from sightline.geometry.cameras import Cameras, Projection, ring_cameras
from sightline.geometry.rendering import Style, render_cloud, render_mesh

__all__ = ["RenderSettings", "check_names", "render_set"]

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
