"""Synthetic hands and people through the loaders of MSRA and ITOP: what comes out is what was drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.data.depth.itop import Itop
from sightline.data.depth.msra_hands import MsraHands
from sightline.data.depth.references import CentreOfMass, ReferencePointFile
from sightline.data.synthetic.synthetic_hands import View
from sightline.types import Sample, SampleKey
from tests.data.depth.depth_trees import no_progress
from tests.data.depth.figure_trees import write_itop_bodies, write_msra_centres, write_msra_hands

COUNTS = {"P0/1": 2, "P0/Y": 1, "P1/5": 2}
PEOPLE = {"train": ["00_00000", "02_00007"], "test": ["01_00000"]}


def prepare(kind: Any, source: Path, target: Path) -> str:
    kind.prepare(source=source, target=target, name=kind.set_name, progress=no_progress)
    return str(target)


def by_name(frames: Any) -> dict[str, Sample]:
    return {frames.sample_name(index): frames[SampleKey(index, 0, 0)] for index in range(len(frames))}


def test_hands_written_as_msra_come_back_bit_for_bit(tmp_path: Path) -> None:
    """Depth, joints, camera and centre of mass: the synthetic set and the loader agree on frame, axes and origin."""
    made = write_msra_hands(tmp_path / "cvpr15_MSRAHandGestureDB", COUNTS)
    root = prepare(MsraHands, tmp_path / "cvpr15_MSRAHandGestureDB", tmp_path / "msra")
    found = {}
    for subject in (0, 1):
        found |= by_name(MsraHands(split="test", root=root, subject=subject, reference=CentreOfMass()))
    assert found.keys() == made.keys()
    for name, sample in made.items():
        for field in ("depth", "joints", "visible", "camera"):
            assert torch.equal(found[name][field], sample[field]), (name, field)
        assert (found[name]["reference"] - sample["reference"]).abs().max() < 1e-4


def test_centre_files_written_for_them_are_taken_frame_by_frame(tmp_path: Path) -> None:
    made = write_msra_hands(tmp_path / "source", COUNTS)
    write_msra_centres(tmp_path / "centres", made, invalid=["P0/Y/000000"])
    root = prepare(MsraHands, tmp_path / "source", tmp_path / "msra")
    points = ReferencePointFile(path=str(tmp_path / "centres" / "center_{split}_{subject}_refined.txt"))
    arguments: dict[str, Any] = {"root": root, "reference": points, "validation_share": 0.0}
    trained = by_name(MsraHands(split="train", subject=1, **arguments))
    assert list(trained) == ["P0/1/000000", "P0/1/000001"], "the invalid one does not train"
    tested = by_name(MsraHands(split="test", subject=0, **arguments))
    assert list(tested) == [name for name in made if name.startswith("P0")]
    for name, sample in (trained | tested).items():
        assert (sample["reference"] - made[name]["reference"]).abs().max() < 1e-4, name


@pytest.mark.parametrize("view", ["side", "top"])
def test_people_written_as_itop_come_back_as_float16_holds_them(tmp_path: Path, view: View) -> None:
    """The loader's own test, joints against pixels, passes in either view: both sides mean the same axes."""
    made = write_itop_bodies(tmp_path / "ITOP", PEOPLE, view=view)
    root = prepare(Itop, tmp_path / "ITOP", tmp_path / "itop")
    found: dict[str, Sample] = {}
    for split in ("train", "test"):
        found |= by_name(Itop(split=split, root=root, view=view, validation_share=0.0))
    assert found.keys() == made.keys()
    for name, sample in made.items():
        assert np.array_equal(found[name]["depth"].numpy(), sample["depth"].astype(np.float32))
        assert np.abs(found[name]["joints"].numpy() - sample["joints"]).max() < 1e-3
        assert (np.abs(found[name]["joints"].numpy() - found[name]["reference"].numpy()) < 1000).all()
