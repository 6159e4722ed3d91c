"""A small ShapeNetRender in the layout of the release, written byte by byte; functions say what must be read back."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.preparing import prepare_set

SYNSETS = {
    "02691156": ("airplane", 4045),
    "02828884": ("bench", 1816),
    "02933112": ("cabinet", 1572),
    "02958343": ("car", 7496),
    "03001627": ("chair", 6778),
    "03211117": ("monitor", 1095),
    "03636649": ("lamp", 2318),
    "03691459": ("speaker", 1618),
    "04090263": ("rifle", 2372),
    "04256520": ("sofa", 3173),
    "04379243": ("table", 8509),
    "04401088": ("telephone", 1052),
    "04530566": ("vessel", 1939),
}
"""Names and pairs, typed here a second time on purpose, from the publications."""

NUM_POINTS = 32
NUM_VIEWS = 24
SIZE_PX = 12
OBJECTS = {"02691156": ["1a04", "10155"], "03001627": ["ffa1", "0b7", "c2e9"], "04530566": ["a"]}


def cloud_of(name: str) -> np.ndarray:
    """Away from the origin and of any size, since preparing is to normalise it; float32."""
    generator = np.random.default_rng(list(name.encode()))
    return (generator.normal(size=(NUM_POINTS, 3)) * 0.2 + [0.1, 0.4, -0.3]).astype(np.float32)


def view_of(name: str, view: int) -> np.ndarray:
    """RGBA (SIZE_PX, SIZE_PX, 4): transparent, half and wholly opaque thirds; colours under what is transparent."""
    generator = np.random.default_rng([*name.encode(), view])
    pixels = generator.integers(0, 256, size=(SIZE_PX, SIZE_PX, 4), dtype=np.uint8)
    pixels[: SIZE_PX // 3, :, 3] = 0
    pixels[SIZE_PX // 3 : 2 * SIZE_PX // 3, :, 3] = 255
    return pixels


def write_cloud(path: Path, points: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n"
    header += "property float x\nproperty float y\nproperty float z\nend_header\n"
    path.write_bytes(header.encode() + points.astype("<f4").tobytes())


def write_views(folder: Path, name: str, views: range = range(NUM_VIEWS)) -> None:
    """`folder` is `rendering`, with the lists that the release has beside the images."""
    folder.mkdir(parents=True, exist_ok=True)
    for view in views:
        Image.fromarray(view_of(name, view), "RGBA").save(folder / f"{view:02d}.png")
    (folder / "rendering_metadata.txt").write_text("57.4 28.7 0 0.76 25\n" * len(views))
    (folder / "renderings.txt").write_text("".join(f"{view:02d}.png\n" for view in views))


def write_release(root: Path) -> Path:
    """Both trees, whole."""
    for synset, identifiers in OBJECTS.items():
        for identifier in identifiers:
            name = f"{synset}/{identifier}"
            write_cloud(root / f"ShapeNet/{name}.ply", cloud_of(name))
            write_views(root / f"ShapeNetRendering/{name}/rendering", name)
    return root


def names() -> list[str]:
    """The objects in the order in which they are read."""
    return [f"{synset}/{identifier}" for synset in sorted(OBJECTS) for identifier in sorted(OBJECTS[synset])]


prepare = functools.partial(prepare_set, "shapenet_render")
