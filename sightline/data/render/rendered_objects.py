"""Sources of objects to render: a prepared set of clouds, the embedded shapes, or a folder of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from sightline.data.files.cloud_files import CLOUD_SUFFIXES, is_cloud_file, read_cloud
from sightline.data.store.prepared_set import MANIFEST, PreparedSet, check_sizes, read_manifest, summarise_folder
from sightline.data.store.prepared_writer import normalize_to_unit_sphere
from sightline.data.synthetic.synthetic_shapes import SyntheticShapes
from sightline.errors import ConfigError, DataError
from sightline.types import SampleKey

__all__ = ["FileObjects", "PreparedObjects", "RenderSource", "Surface", "SyntheticObjects", "open_render_source"]


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
        self.names = {split: [shapes.name_of(i) for i in range(len(shapes))] for split, shapes in self._sets.items()}
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
        cloud = read_cloud(self._files[index])
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
