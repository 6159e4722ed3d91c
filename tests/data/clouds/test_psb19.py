"""The Princeton Segmentation Benchmark as a set to classify: its split, its normals, its bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.areas.clouds.sets.psb19 import Psb19
from sightline.contract.types import SampleKey
from tests.data.preparing import refuse


def prepare(source: Path, target: Path) -> dict[str, object]:
    return Psb19.prepare(source=source, target=target, name="psb19", progress=lambda done, total, what: None)


def arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    """Twelve shapes of three categories, of which the names of four are given."""
    generator = np.random.default_rng(0)
    return {
        "xyz": generator.uniform(-0.5, 0.5, (12, 5, 3)).astype("f2"),
        "normal": np.tile(np.array([0, 1, 0], "f2"), (12, 5, 1)),
        "category": np.repeat([0, 1, 3], 4).astype("u1"),
        "model_id": np.arange(12, dtype="u2"),
        "categories": np.array(["Cup", "Ant", "Spring", "Vase"]),
        **changes,
    }


def test_the_real_set(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "psb19_2048.npz"
    manifest = prepare(source, tmp_path / "psb19")
    assert {split: facts["class_counts"] for split, facts in manifest["splits"].items()} == {  # type: ignore[attr-defined]
        "train": [14] * 19,
        "test": [6] * 19,
    }
    with np.load(source, allow_pickle=False) as given:
        xyz, normal, category, model = (given[key] for key in ("xyz", "normal", "category", "model_id"))
        names = given["categories"]
    where = {f"{names[c]}_{m:03d}": row for row, (c, m) in enumerate(zip(category, model, strict=True))}
    seen = set()
    for split in ("train", "test"):
        dataset = Psb19(split=split, root=str(tmp_path / "psb19"), num_points=512, normals="file")
        assert dataset.info.facts["in_channels"] == 6
        assert dataset.info.facts["up_axis"] == "y"
        for index in range(0, len(dataset), 17):
            row = where[dataset.sample_name(index)]
            sample = dataset[SampleKey(index, 0, 0)]
            assert torch.equal(sample["points"], torch.from_numpy(xyz[row, :512].astype("f4")))
            assert torch.equal(sample["normals"], torch.from_numpy(normal[row, :512].astype("f4")))
            assert dataset.class_names[int(sample["label"])] == names[category[row]]
        seen |= {dataset.sample_name(index) for index in range(len(dataset))}
    assert seen == set(where)
    assert "Spring" not in dataset.class_names


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"normal": np.zeros((12, 4, 3), "f2")}, r"normal is float16 \(12, 4, 3\), \(12, 5, 3\) is needed"),
        ({"xyz": np.zeros((12, 5, 2), "f2")}, "xyz is float16"),
        ({"category": np.zeros(12)}, "category is float64"),
        ({"category": np.full(12, 4, "u1")}, "category runs to 4, categories names 4"),
        ({"model_id": np.zeros(11, "u2")}, "model_id is uint16"),
    ],
)
def test_archives_that_are_something_else(tmp_path: Path, changes: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays(**changes))
    refuse(prepare, tmp_path / "a.npz", f"a.npz: {words}")


def test_sources_that_are_none(tmp_path: Path) -> None:
    refuse(prepare, tmp_path / "a.npz", "there is no such file")
    np.savez(tmp_path / "a.npz", xyz=np.zeros(3))
    refuse(prepare, tmp_path / "a.npz", "has no entry 'normal'; needed are xyz, normal")
