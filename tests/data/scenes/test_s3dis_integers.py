"""S3DIS as others have converted it: labels are bare integers, so the order of the classes has to be given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.areas.scenes.sets.s3dis import S3dis
from sightline.areas.scenes.sets.s3dis_files import CLASS_NAMES
from sightline.contract.errors import DataError
from sightline.contract.types import SampleKey
from tests.data.preparing import refuse
from tests.data.scenes.scene_writers import no_progress, write_s3dis


def prepare(source: Path, target: Path, **options: Any) -> dict[str, Any]:
    return S3dis.prepare(source=source, target=target, name="s3dis", progress=no_progress, **options)


def table(num_points: int = 26) -> np.ndarray:
    """x y z red green blue label, every class twice."""
    generator = np.random.default_rng(num_points)
    points = generator.uniform(0, 5, (num_points, 3)).astype("f4")
    return np.column_stack((points, generator.integers(0, 256, (num_points, 3)), np.arange(num_points) % 13))


def write_npy(root: Path, rows: np.ndarray) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    np.save(root / "Area_1_office_1.npy", rows)
    np.save(root / "Area_5_WC_2.npy", rows)
    return root


def test_both_orders_lead_to_the_same_classes(tmp_path: Path) -> None:
    rows = table()
    source = write_npy(tmp_path / "in", rows)
    labels = {}
    for order in ("A", "B"):
        prepare(source, tmp_path / order, order=order)
        rooms = S3dis(split="test", root=str(tmp_path / order), test_area=1)
        assert rooms.info.facts["class_names"] == CLASS_NAMES
        labels[order] = rooms[SampleKey(0, 0, 0)]["label"].numpy()
    assert np.array_equal(labels["A"], rows[:, 6])
    exchanged = {7: "chair", 8: "table", 9: "bookcase", 10: "sofa"}  # of order B, spec 4.6
    assert [CLASS_NAMES[label] for label in labels["B"]] == [
        exchanged.get(int(n), CLASS_NAMES[int(n)]) for n in rows[:, 6]
    ]


def test_an_order_is_asked_for_where_it_matters_and_nowhere_else(tmp_path: Path) -> None:
    source = write_npy(tmp_path / "in", table())
    refuse(prepare, source, r"two orders are in use; give one \(order=A: table, chair, sofa, bookcase")
    refuse(prepare, write_s3dis(tmp_path / "raw"), "raw text names its classes; leave order=B out", order="B")
    prepare(source, tmp_path / "set", order="A")
    with pytest.raises(DataError, match="was prepared with order = A, now it is B"):
        prepare(source, tmp_path / "set", order="B")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t[:, :6], r"float64 \(26, 6\), numbers \(points, 7\) are needed"),
        (lambda t: t[:0], r"holds float64 \(0, 7\)"),
        (lambda t: t + np.eye(7)[6], "the label of point 12 is 13.0, 0 to 12 is possible"),
        (lambda t: t - np.eye(7)[6] / 2, "the label of point 0 is -0.5"),
        (lambda t: t + 300 * np.eye(7)[3], "the colour of point 0 is .*, 0 to 255 is possible"),
        (lambda t: np.where(np.arange(7) == 1, np.nan, t), "points.* is nan"),
    ],
)
def test_wrong_tables_are_named(tmp_path: Path, change: Any, words: str) -> None:
    source = write_npy(tmp_path / "in", change(table()))
    with pytest.raises(DataError, match=f"Area_1_office_1.npy: .*{words}"):
        prepare(source, tmp_path / "set", order="A")


def test_a_file_of_another_name_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "office_1.npy", table())
    refuse(prepare, tmp_path, r"office_1.npy: is not named Area_<1 to 6>_<room>", order="A")
