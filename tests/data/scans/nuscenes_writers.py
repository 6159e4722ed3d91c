"""A small tree of nuScenes lidarseg, written byte by byte: tables, key frames and a sweep of an HDL-32E, labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_MEMBERS = (
    "noise animal static.other vehicle.ego static_object.bicycle_rack human.pedestrian.personal_mobility "
    "human.pedestrian.stroller human.pedestrian.wheelchair movable_object.debris movable_object.pushable_pullable "
    "vehicle.emergency.ambulance vehicle.emergency.police",
    *("movable_object.barrier", "vehicle.bicycle", "vehicle.bus.bendy vehicle.bus.rigid", "vehicle.car"),
    *("vehicle.construction", "vehicle.motorcycle"),
    "human.pedestrian.adult human.pedestrian.child human.pedestrian.construction_worker "
    "human.pedestrian.police_officer",
    *("movable_object.trafficcone", "vehicle.trailer", "vehicle.truck", "flat.driveable_surface", "flat.other"),
    *("flat.sidewalk", "flat.terrain", "static.manmade", "static.vegetation"),
)
BENCHMARK = {name: number for number, names in enumerate(_MEMBERS) for name in names.split()}
"""Number of each of the 32 categories in the benchmark, as its page lists them; 0 is ignored."""
FRAMES = {"scene-0001": 3, "scene-0003": 2, "scene-0103": 1}
"""Number of key frames of each scene."""
NUM_POINTS = 96


def token_of(kind: str, number: int) -> str:
    """32 hexadecimal digits, in another order than the numbers."""
    return f"{(number * 7919 + len(kind)) % 9973:04x}{kind.encode().hex():0<28.28}"


def make_scan(number: int) -> np.ndarray:
    """Rows x, y, z, intensity, ring of a frame: three points of each beam, whose ring rises with the elevation."""
    generator = np.random.default_rng(number)
    ring, turn = np.arange(NUM_POINTS) % 32, generator.uniform(-np.pi, np.pi, NUM_POINTS)
    elevation = np.deg2rad(-30.67 + 41.34 * ring / 31)
    reach = generator.uniform(4, 40, NUM_POINTS) * np.cos(elevation)
    x, y, z = reach * np.cos(turn), reach * np.sin(turn), reach * np.tan(elevation)
    return np.stack([x, y, z, np.round(generator.uniform(2, 255, NUM_POINTS)), ring], axis=1).astype("<f4")


def make_labels(number: int, order: Sequence[int]) -> np.ndarray:
    """Raw id of every point of a frame: the categories in turn, each with its place in `order` as its id."""
    return np.array(order)[(np.arange(NUM_POINTS) + number) % 32].astype("u1")


def frame_names() -> list[tuple[str, int, str]]:
    """Scene, number of the frame over all, and the name of its file, which begins with its time."""
    scenes = [scene for scene, count in FRAMES.items() for _ in range(count)]
    return [(scene, number, f"n008__LIDAR_TOP__{153 + number}") for number, scene in enumerate(scenes)]


def write_nuscenes(root: Path, *, version: str = "v1.0-trainval", order: Sequence[int] = range(32)) -> None:
    """Write scans, labels and tables, the last frames first; `order` are the ids of the categories."""
    data: list[dict[str, Any]] = []
    tables: dict[str, list[dict[str, Any]]] = {
        "scene": [{"token": token_of("scene", i), "name": name} for i, name in enumerate(FRAMES)],
        "sample": [],
        "category": [
            {"token": token_of("category", i), "name": name, "index": order[i]} for i, name in enumerate(BENCHMARK)
        ],
        "sample_data": data,
        "lidarseg": [],
    }
    scene_tokens = {row["name"]: row["token"] for row in tables["scene"]}
    for scene, number, name in reversed(frame_names()):
        token, sample = token_of("data", number), token_of("sample", number)
        scan, label = f"samples/LIDAR_TOP/{name}.pcd.bin", f"lidarseg/{version}/{token}_lidarseg.bin"
        for file, content in ((scan, make_scan(number)), (label, make_labels(number, order))):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_bytes(content.tobytes())
        tables["sample"].append({"token": sample, "scene_token": scene_tokens[scene]})
        data.append({"token": token, "sample_token": sample, "filename": scan, "is_key_frame": True})
        tables["lidarseg"].append({"token": token, "sample_data_token": token, "filename": label})
    for name in ("sweeps/LIDAR_TOP/n9.pcd.bin", "samples/CAM_FRONT/n9.jpg", "samples/RADAR_FRONT/n9.pcd"):
        is_key, sample = not name.startswith("sweeps"), tables["sample"][0]["token"]
        data.append({"token": name, "sample_token": sample, "filename": name, "is_key_frame": is_key})
    write_tables(root / version, tables)


def write_tables(folder: Path, tables: dict[str, list[dict[str, Any]]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(table))


def write_splits(path: Path) -> None:
    """The development kit's file of parts, of which one line would write a file if it were run."""
    lines = ["import nuscenes", f"open({str(path.with_name('was_run'))!r}, 'w').close()"]
    lines += ["train_detect = \\", "    ['scene-0001']", "train = list(sorted(set(train_detect)))"]
    lines += ["val = \\", "    ['scene-0003', 'scene-0104']", "mini_val = ['scene-0103']"]
    path.write_text("\n".join(lines))
