"""Synthetic figures on disk in the layouts of MSRA and ITOP: their loaders then read hands and people, not patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from sightline.areas.pose.sets.synthetic_figures import render_figures
from sightline.areas.pose.sets.synthetic_hands import BODY_CAMERA, SyntheticBodies, SyntheticHands, View
from sightline.contract.types import Sample, SampleKey
from tests.data.depth.depth_trees import msra_bytes

__all__ = ["write_itop_bodies", "write_msra_centres", "write_msra_hands"]


def write_msra_hands(root: Path, counts: Mapping[str, int]) -> dict[str, Sample]:
    """`counts` hands for each `subject/gesture`, in the order given; the samples by `subject/gesture/number`.

    Images are cut out closely, joints have as many digits as float32 needs.
    """
    hands, made = SyntheticHands(split="train", train_size=sum(counts.values())), {}
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        lines = [str(count)]
        for number in range(count):
            sample = hands[SampleKey(len(made), 0, 0)]
            depth = sample["depth"].numpy()
            (rows, columns), path = np.nonzero(depth), root / folder / f"{number:06d}_depth.bin"
            window = depth[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            path.write_bytes(msra_bytes(window, columns.min(), rows.min()))
            lines.append(" ".join(f"{x:.9g} {y:.9g} {-z:.9g}" for x, y, z in sample["joints"].tolist()))
            made[f"{folder}/{number:06d}"] = sample
        (root / folder / "joint.txt").write_text("\n".join(lines) + "\n")
    return made


def write_msra_centres(root: Path, made: Mapping[str, Sample], *, invalid: Sequence[str] = ()) -> None:
    """`center_{train,test}_{subject}_refined.txt` for every subject as the one that is tested: the centres of mass."""
    root.mkdir(parents=True, exist_ok=True)
    lines = {
        name: "invalid" if name in invalid else " ".join(f"{value:.9g}" for value in sample["reference"].tolist())
        for name, sample in made.items()
    }
    for subject in sorted({name[:2] for name in made}):
        for split, is_test in (("train", False), ("test", True)):
            text = "".join(f"{line}\n" for name, line in lines.items() if name.startswith(subject) == is_test)
            (root / f"center_{split}_{subject[1]}_refined.txt").write_text(text)


def write_itop_bodies(root: Path, names: Mapping[str, Sequence[str]], *, view: View = "side") -> dict[str, Sample]:
    """People of these names (`person_frame`) for train and test, in float16 metres; samples in mm, rounded as these."""
    root.mkdir(parents=True, exist_ok=True)
    made: dict[str, Sample] = {}
    for split, of_split in names.items():
        bodies = SyntheticBodies(split=split, view=view, train_size=len(of_split), test_size=len(of_split))
        keys = [SampleKey(index, 0, 0) for index in range(len(of_split))]
        batch, ids = bodies.get_batch(keys), np.array([name.encode() for name in of_split], dtype="S8")
        depths, joints = ((batch[name].double().numpy() / 1000).astype(np.float16) for name in ("depth", "joints"))
        x, y, z = np.moveaxis(joints.astype(np.float64), -1, 0)
        pixels = np.stack((160 + x / (0.0035 * z), 120 - y / (0.0035 * z)), axis=-1)
        seen = render_figures(bodies.figures(range(len(of_split))), BODY_CAMERA).owner
        with h5py.File(root / f"ITOP_{view}_{split}_depth_map.h5", "w") as file:
            file["id"], file["data"] = ids, depths
        with h5py.File(root / f"ITOP_{view}_{split}_labels.h5", "w") as file:
            file["id"], file["is_valid"] = ids, np.ones(len(ids), dtype=np.uint8)
            file["visible_joints"] = np.ones(joints.shape[:2], dtype=np.int16)
            file["image_coordinates"], file["real_world_coordinates"] = pixels.round().astype(np.int16), joints
            file["segmentation"] = np.where(depths > 0, seen, -1).astype(np.int8)
        for name, depth, of_body in zip(of_split, depths, joints, strict=True):
            made[name] = {"depth": depth.astype(np.float64) * 1000, "joints": of_body.astype(np.float64) * 1000}
    return made
