"""Clouds with 10 bits a coordinate: near those that were packed, in any order, and all else as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from benchmarks.pack_modelnet import LARGEST_ERROR, main, unpack


def store(folder: Path, largest: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    stored = {name: rng.uniform(-1, largest, (count, 100, 3)) for name, count in (("X_train", 7), ("X_test", 3))}
    stored = {name: points.astype(np.float16) for name, points in stored.items()}
    stored |= {"y_train": np.arange(7), "y_test": np.arange(3), "classes": np.array(["chair", "table"])}
    np.savez(folder / "clouds.npz", **stored)
    return stored


def test_a_packed_file_gives_the_clouds_back(tmp_path: Path) -> None:
    stored = store(tmp_path)
    files = [tmp_path / name for name in ("clouds.npz", "packed.npz", "again.npz")]
    assert main([*map(str, files[:2])]) == 0
    unpack(*files[1:])
    again = dict(np.load(files[2]))
    assert again.keys() == stored.keys()
    for name, values in stored.items():
        if not name.startswith("X"):
            assert np.array_equal(again[name], values)
            continue
        assert again[name].shape == values.shape
        for cloud, expected in zip(again[name], values.astype(np.float32), strict=True):
            differences = np.abs(cloud[:, None] - expected).max(axis=-1)
            ours, theirs = linear_sum_assignment(differences)
            assert differences[ours, theirs].max() <= LARGEST_ERROR * (1 + 1e-4)


def test_the_first_points_of_a_cloud_are_a_sample_of_it(tmp_path: Path) -> None:
    """Not a corner of it, as along the curve."""
    store(tmp_path)
    files = [tmp_path / name for name in ("clouds.npz", "packed.npz", "again.npz")]
    main([*map(str, files[:2])])
    unpack(*files[1:])
    points = np.load(files[2])["X_train"][:, :25]
    assert (np.abs(points.mean(axis=1)) < 0.5).all()
    assert (points.std(axis=1) > 0.4).all()


def test_what_does_not_fit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path, largest=1.5)
    assert main([str(tmp_path / "clouds.npz"), str(tmp_path / "packed.npz")]) == 2
    assert "outside of [-1, 1]" in capsys.readouterr().err
    assert not (tmp_path / "packed.npz").exists()
    assert main([]) == 2
