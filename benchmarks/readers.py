"""Our readers and cuts against the libraries that could take their place: equal results, and processor time in turn.

    .venv/bin/python -m pip install plyfile==1.1.5 trimesh==5.2.0 kmeans1d==0.5.0 pandas==3.1.1
    .venv/bin/python -m benchmarks.readers [--rounds 5]

A library that is exact and takes at most twice the time would replace ours
(docs/inside/decisions/data.md#readers-of-files-of-our-own).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import kmeans1d
import laspy
import numpy as np
import pandas
import plyfile
import trimesh

from sightline.compression.codebooks import _cluster
from sightline.store.files.las_files import read_las
from sightline.store.files.mesh_formats import read_off
from sightline.store.files.ply import read_ply
from sightline.store.files.text_tables import read_rows

_MANY = 2_000_000
Pair = tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]


def _read_vertices(path: Path) -> np.ndarray:
    vertex = plyfile.PlyData.read(path)["vertex"].data
    return np.stack([vertex[name] for name in vertex.dtype.names], axis=1).astype(np.float64)


def _our_vertices(path: Path) -> np.ndarray:
    return np.stack(list(read_ply(path).vertex.values()), axis=1)


def _our_faces(path: Path) -> np.ndarray:
    faces = read_ply(path).faces
    assert faces is not None
    return faces


def _write_las(path: Path, points: np.ndarray) -> None:
    header = laspy.LasHeader(point_format=3, version="1.2")
    header.scales, header.offsets = np.full(3, 0.001), np.zeros(3)
    cloud = laspy.LasData(header)
    cloud.xyz = points
    cloud.intensity = np.arange(len(points)) % 65536
    cloud.write(path)


def _our_las(path: Path) -> np.ndarray:
    columns = read_las(path).columns
    return np.stack([columns[name] for name in ("x", "y", "z", "intensity")], axis=1)


def _read_las(path: Path) -> np.ndarray:
    cloud = laspy.read(path)
    return np.stack([*(np.asarray(cloud[name]) for name in ("x", "y", "z", "intensity"))], axis=1)


def list_pairs(folder: Path) -> dict[str, Pair]:
    """List ours and the library's reading of one file each, and the cuts of weights into 16 groups."""
    draw = np.random.default_rng(0)
    points = draw.normal(size=(300_000, 3)).astype(np.float32)
    vertex = points.view([("x", "f4"), ("y", "f4"), ("z", "f4")])[:, 0]
    faces = np.empty(100_000, dtype=[("vertex_indices", "i4", (3,))])
    faces["vertex_indices"] = draw.integers(0, len(points), (len(faces), 3))
    paths = {name: folder / f"{name}.ply" for name in ("binary", "ascii", "mesh")}
    cloud, few = (plyfile.PlyElement.describe(rows, "vertex") for rows in (vertex, vertex[:50_000]))
    plyfile.PlyData([cloud]).write(paths["binary"])
    plyfile.PlyData([few], text=True).write(paths["ascii"])
    plyfile.PlyData([cloud, plyfile.PlyElement.describe(faces, "face")]).write(paths["mesh"])
    off = folder / "mesh.off"
    rows = [" ".join(f"{value:.6f}" for value in row) for row in points[:20_000].tolist()]
    rows += [f"3 {a} {b} {c}" for a, b, c in draw.integers(0, len(rows), (40_000, 3)).tolist()]
    off.write_text("\n".join(["OFF", "20000 40000 0", *rows, ""]))
    table = folder / "table.csv"
    np.savetxt(table, draw.normal(size=(100_000, 6)), fmt="%.6f", delimiter=",")
    weights = draw.normal(size=100_000).astype(np.float32)
    many = draw.uniform(-500, 500, (_MANY, 3))
    for name in ("las", "laz"):
        _write_las(folder / f"cloud.{name}", many)
    lines = folder / "cloud.txt"
    np.savetxt(lines, many, fmt="%.6f")

    def mesh_by_library() -> np.ndarray:
        return np.stack(plyfile.PlyData.read(paths["mesh"])["face"].data["vertex_indices"]).astype(np.int64)

    def sum_squares(centres: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return np.square(weights - centres[labels]).sum(keepdims=True)

    def cut_by_library() -> np.ndarray:
        labels, centres = kmeans1d.cluster(weights, 16)
        return sum_squares(np.asarray(centres), np.asarray(labels))

    return {
        "plyfile, binary, 300,000 points": (
            lambda: _our_vertices(paths["binary"]),
            lambda: _read_vertices(paths["binary"]),
        ),
        "plyfile, text, 50,000 points": (lambda: _our_vertices(paths["ascii"]), lambda: _read_vertices(paths["ascii"])),
        "plyfile, binary mesh, 100,000 faces": (lambda: _our_faces(paths["mesh"]), mesh_by_library),
        "trimesh, OFF, 20,000 points and 40,000 faces": (
            lambda: np.stack([*read_off(off).vertex.values()], axis=1),
            lambda: np.asarray(trimesh.load_mesh(off, process=False).vertices),
        ),
        "numpy.loadtxt, commas, 100,000 x 6": (
            lambda: read_rows(table).table,
            lambda: np.loadtxt(table, delimiter=","),
        ),
        "numpy.loadtxt, blanks, 2,000,000 x 3": (lambda: read_rows(lines).table, lambda: np.loadtxt(lines)),
        "pandas, blanks, 2,000,000 x 3": (
            lambda: read_rows(lines).table,
            lambda: pandas.read_csv(lines, sep=" ", header=None).to_numpy(),
        ),
        **{
            f"laspy, {name.upper()}, 2,000,000 points": (
                partial(_our_las, folder / f"cloud.{name}"),
                partial(_read_las, folder / f"cloud.{name}"),
            )
            for name in ("las", "laz")
        },
        "kmeans1d, 100,000 weights, 16 groups": (lambda: sum_squares(*_cluster(weights, 16)), cut_by_library),
    }


def main() -> None:
    """Compare the results, then print medians of processor time and of the library's share of ours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        for name, pair in list_pairs(Path(folder)).items():
            ours, theirs = (run() for run in pair)  # also compiles
            difference = float(np.abs(ours - theirs).max())
            times: list[list[float]] = [[], []]
            for _ in range(rounds):
                for run, seconds in zip(pair, times, strict=True):
                    start = time.process_time()
                    run()
                    seconds.append(time.process_time() - start)
            ratio = statistics.median(theirs / ours for ours, theirs in zip(*times, strict=True))
            shown = " and ".join(f"{1e3 * statistics.median(seconds):.1f}" for seconds in times)
            line = f"{name}: {ratio:.1f} times our processor time ({shown} ms), largest difference {difference:.2g}"
            print(line)  # noqa: T201


if __name__ == "__main__":
    main()
