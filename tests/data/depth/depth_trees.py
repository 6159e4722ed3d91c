"""Trees of depth data sets on disk for tests, byte by byte in the public layouts, by code of their own."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from PIL import Image
from scipy.io import savemat


class Drawn(NamedTuple):
    """One frame: depths (H, W) in mm, 0 for what was not measured, and joints (J, 3) in mm, z forward."""

    depth: np.ndarray
    joints: np.ndarray


def no_progress(done: int, total: int, what: str) -> None:
    """Says nothing."""


def draw(
    seed: int,
    num_joints: int,
    *,
    focal: float,
    y_up: bool,
    size: tuple[int, int],
    middle_mm: float = 400.0,
    middle_px: tuple[float, float] | None = None,
) -> Drawn:
    """Joints strewn about the axis, and a patch of whole millimetres where each of them appears."""
    generator = np.random.default_rng(seed)
    joints = generator.normal((0, 0, middle_mm), middle_mm / 12, (num_joints, 3)).round(3)
    depth = np.zeros((size[1], size[0]))
    u0, v0 = middle_px or (size[0] / 2, size[1] / 2)
    for x, y, z in joints:
        u = round(u0 + focal * x / z)
        v = round(v0 + (-1 if y_up else 1) * focal * y / z)
        depth[v - 2 : v + 3, u - 2 : u + 3] = np.round(z)
    return Drawn(depth, joints)


def msra_bytes(window: np.ndarray, left: int, top: int, *, size: tuple[int, int] = (320, 240)) -> bytes:
    """A depth file of MSRA."""
    height, width = window.shape
    header = struct.pack("<6i", *size, left, top, left + width, top + height)
    return header + window.astype("<f4").tobytes()


def write_msra(root: Path, counts: Mapping[str, int], *, middle_mm: float = 400.0) -> dict[str, Drawn]:
    """`counts` frames for each `subject/gesture`; what was drawn by `subject/gesture/number`."""
    made = {}
    for place, (folder, count) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True)
        lines = [str(count)]
        for number in range(count):
            drawn = draw(100 * place + number, 21, focal=241.42, y_up=True, size=(320, 240), middle_mm=middle_mm)
            depth = np.where(drawn.depth > 0, drawn.depth + 0.125, 0)  # these files hold fractions of a millimetre
            rows, columns = np.nonzero(depth)
            top, left = rows.min() - 1, columns.min() - 3
            window = depth[top : rows.max() + 2, left : columns.max() + 1]
            (root / folder / f"{number:06d}_depth.bin").write_bytes(msra_bytes(window, left, top))
            lines.append(" ".join(f"{x:.3f} {y:.3f} {-z:.3f}" for x, y, z in drawn.joints))
            made[f"{folder}/{number:06d}"] = Drawn(depth, drawn.joints)
        (root / folder / "joint.txt").write_text("\n".join(lines) + "\n")
    return made


def png16(depth: np.ndarray) -> bytes:
    """A PNG file with one channel of 16 bits."""
    file = io.BytesIO()
    Image.fromarray(depth.astype(np.uint16)).save(file, format="PNG")
    return file.getvalue()


def png_colour(depth: np.ndarray) -> bytes:
    """A PNG file with the higher eight bits in green, the lower ones in blue, and something else in red."""
    whole = depth.astype(np.uint16)
    colours = np.stack((np.full(whole.shape, 77), whole // 256, whole % 256), axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).save(file, format="PNG")
    return file.getvalue()


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_icvl(root: Path) -> dict[str, Drawn]:
    """Three recordings, one of them turned as well, and two test sequences; labels are columns, rows and depths."""
    made: dict[str, Drawn] = {}
    lists = {
        "Training/labels.txt": [f"2014{n}/image_{i:04d}" for n in range(3) for i in range(2)]
        + [f"22-5/20140/image_{i:04d}" for i in range(2)],
        "Testing/test_seq_1.txt": ["test_seq_1/image_0000", "test_seq_1/image_0001"],
        "Testing/test_seq_2.txt": ["test_seq_2/image_0000"],
    }
    for file, names in lists.items():
        lines = []
        for name in names:
            drawn = draw(sum(name.encode()), 16, focal=241.42, y_up=False, size=(320, 240))
            x, y, z = drawn.joints.T
            pixels = np.stack((160 + 241.42 * x / z, 120 + 241.42 * y / z, z), axis=-1)
            lines.append(f"{name}.png " + " ".join(repr(float(value)) for value in pixels.ravel()) + " ")
            _put(root / file.split("/")[0] / "Depth" / f"{name}.png", png16(drawn.depth))
            made[f"{name}.png"] = drawn
        (root / file).write_text("\n".join(lines) + "\n\n")
    return made


NYU_EVALUATED = [0, 3, 6, 9, 12, 15, 18, 21, 24, 25, 27, 30, 31, 32]


def write_nyu(root: Path, counts: Mapping[str, int]) -> dict[str, Drawn]:
    """`counts` frames for train and test: joints of three views (the others are far off), images of the first."""
    made = {}
    for split, count in counts.items():
        drawn = [
            draw(7 * number + len(split), 36, focal=588.0, y_up=True, size=(640, 480), middle_mm=700)
            for number in range(count)
        ]
        world = np.stack([each.joints for each in drawn])
        x, y, z = np.moveaxis(world, -1, 0)
        pixels = np.stack((320 + 588.036865 * x / z, 240 - 587.075073 * y / z, z), axis=-1)
        (root / split).mkdir(parents=True)
        joints = {"joint_xyz": np.stack((world, world + 500, world - 500)), "joint_uvd": np.stack((pixels,) * 3)}
        savemat(root / split / "joint_data.mat", {**joints, "joint_names": np.array(["a", "b"], dtype=object)})
        for number, each in enumerate(drawn):
            name = f"depth_1_{number + 1:07d}"
            _put(root / split / f"{name}.png", png_colour(each.depth))
            _put(root / split / f"{name.replace('_1_', '_2_')}.png", b"another view")
            made[f"{split}/{name}"] = Drawn(each.depth, each.joints[NYU_EVALUATED])
    return made


def write_hands2017(root: Path, *, with_test_labels: bool = False) -> dict[str, Drawn]:
    """Four training frames with labels and three test frames with boxes about the first joint's patch."""
    made, labels, boxes, test_labels = {}, [], [], []
    for split, folder, count in (("train", "training", 4), ("test", "frame", 3)):
        for number in range(count):
            name = f"image_D{number + 1:08d}.png"
            camera = {"focal": 475.066, "middle_px": (315.944855, 245.287079), "size": (640, 480)}
            drawn = draw(11 * number + len(folder), 21, y_up=False, middle_mm=500, **camera)  # type: ignore[arg-type]
            _put(root / folder / "images" / name, png16(drawn.depth))
            made[f"{split}/{name}"] = drawn
            numbers = "\t".join(f"{value:.3f}" for value in drawn.joints.ravel())
            if split == "train":
                labels.append(f"{name}\t{numbers}")
            else:
                boxes.append(f"{name}\t200.00\t120.00\t439.00\t359.00")
                test_labels.append(f"frame\\images\\{name}\t{numbers}")
    (root / "training" / "Training_Annotation.txt").write_text("\n".join(labels) + "\n")
    (root / "frame" / "BoundingBox.txt").write_text("\n".join(boxes) + "\n")
    if with_test_labels:
        (root / "frame" / "test_annotation_frame.txt").write_text("\n".join(test_labels) + "\n")
    return made


def write_itop(
    root: Path, names: Mapping[str, Sequence[str]], *, invalid: Sequence[str] = (), view: str = "side"
) -> dict[str, Drawn]:
    """Frames of these names (`person_frame`) for train and test, in float16 metres, as the release has them."""
    root.mkdir(parents=True, exist_ok=True)
    made = {}
    for split, of_split in names.items():
        drawn = [
            draw(sum(name.encode()), 15, focal=285.714, y_up=True, size=(320, 240), middle_mm=3000) for name in of_split
        ]
        joints = np.stack([each.joints / 1000 for each in drawn]).astype(np.float16)
        x, y, z = np.moveaxis(joints.astype(float), -1, 0)
        pixels = np.stack((160 + x / (0.0035 * z), 120 - y / (0.0035 * z)), axis=-1).round().astype(np.int16)
        depths = np.stack([each.depth / 1000 for each in drawn]).astype(np.float16)
        ids = np.array([name.encode() for name in of_split], dtype="S8")
        visible = np.ones((len(of_split), 15), dtype=np.int16)
        visible[:, 14] = 0
        with h5py.File(root / f"ITOP_{view}_{split}_depth_map.h5", "w") as file:
            file["data"], file["id"] = depths, ids
        with h5py.File(root / f"ITOP_{view}_{split}_labels.h5", "w") as file:
            file["id"], file["visible_joints"] = ids, visible
            file["is_valid"] = np.array([name not in invalid for name in of_split], dtype=np.uint8)
            file["image_coordinates"], file["real_world_coordinates"] = pixels, joints
            file["segmentation"] = np.full((len(of_split), 240, 320), -1, dtype=np.int8)
        for name, depth, each in zip(of_split, depths, joints, strict=True):
            made[name] = Drawn(depth.astype(np.float64) * 1000, each.astype(np.float64) * 1000)
    return made
