"""ScanObjectNN is read back as it was written, in every variant; what is broken is refused with file and place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.areas.clouds.sets.scanobjectnn import ScanObjectNN
from sightline.config import read_config
from sightline.contract.errors import DataError, MissingDataError
from sightline.contract.types import SampleKey
from sightline.engine.build import build
from sightline.engine.distributed import World
from tests.command import refuse, succeed
from tests.data import preparing
from tests.data.clouds.scanobjectnn_writers import CLASSES, FILES, NUM_POINTS, SIZES, object_of, prepare, write_variant
from tests.data.preparing import Damage, put, set_key


@pytest.fixture(scope="module")
def obj_bg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("obj_bg")
    prepare(write_variant(folder / "h5_files", "obj_bg"), folder / "set")
    return folder / "set"


def opened(root: Path, split: str = "train", **options: Any) -> ScanObjectNN:
    return ScanObjectNN(split=split, root=str(root), **{"variant": "obj_bg", **options})


def in_sphere(points: np.ndarray) -> np.ndarray:
    centred = points.astype(np.float64) - points.astype(np.float64).mean(axis=0)
    return centred / np.linalg.norm(centred, axis=1).max()


# --- what is read back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", FILES)
def test_every_variant_is_read_from_its_own_files(tmp_path: Path, variant: str) -> None:
    root = tmp_path / "h5_files"
    for other in FILES:
        write_variant(root, other, is_column=other < "pb_t3")
    prepare(tmp_path if variant == "pb_t50_r" else root, tmp_path / "set", variant)  # the folder around it will do
    for split, word in (("train", "training"), ("test", "test")):
        dataset = opened(tmp_path / "set", split, variant=variant)
        assert len(dataset) == SIZES[word]
        for index in (0, SIZES[word] - 1):
            expected, sample = object_of(variant, word, index), dataset[SampleKey(index, 0, 0)]
            np.testing.assert_allclose(sample["points"], in_sphere(expected.points), atol=1e-6)
            assert sample["label"] == expected.label
            assert dataset.sample_name(index) == f"{word}_{FILES[variant][1]}/{index:05d}"


def test_facts(obj_bg: Path) -> None:
    info = opened(obj_bg).info
    assert info.facts["class_names"] == tuple(CLASSES)
    assert info.facts["class_counts"] == (2,) * 15
    assert (info.facts["num_classes"], info.facts["in_channels"], info.facts["up_axis"]) == (15, 3, "y")
    assert info.split_sizes == {"train": 30, "test": 16}
    assert info.clouds is not None
    assert info.clouds.unit_sphere == "applied"


@pytest.mark.parametrize("normals", ["none", "estimated"])
def test_what_is_promised_before_the_set_is_there(obj_bg: Path, normals: Any) -> None:
    promised, found = ScanObjectNN.expected_info(num_points=20, normals=normals), opened(obj_bg, normals=normals).info
    assert promised.facts == {name: value for name, value in found.facts.items() if name != "class_counts"}
    assert (promised.fields, promised.features) == (found.fields, found.features)
    assert promised.clouds is not None
    assert found.clouds is not None
    assert promised.clouds.unit_sphere == found.clouds.unit_sphere


def test_coordinates_as_stored_on_request(tmp_path: Path) -> None:
    found = prepare(write_variant(tmp_path / "h5_files", "obj_bg"), tmp_path / "set", unit_sphere=False)
    assert found["normalisation"].startswith("none: metres")
    dataset = opened(tmp_path / "set")
    np.testing.assert_array_equal(dataset[SampleKey(3, 0, 0)]["points"], object_of("obj_bg", "training", 3).points)
    assert dataset.info.fields["points"].unit == "metre"
    assert dataset.info.clouds is not None
    assert dataset.info.clouds.unit_sphere == "none"


def test_background_told_point_by_point(obj_bg: Path) -> None:
    dataset = opened(obj_bg, background="tell", num_points=11)
    batch = dataset.get_batch([SampleKey(index, 0, 0) for index in (5, 2)])
    expected = [object_of("obj_bg", "training", index).mask[:11] != -1 for index in (5, 2)]
    np.testing.assert_array_equal(batch["part"], np.array(expected))
    assert batch["part"].dtype == torch.int64
    assert set(dataset[SampleKey(0, 0, 0)]) == set(dataset.info.fields) == {"points", "label", "part"}


def test_background_dropped(obj_bg: Path) -> None:
    """The object's own points in their order, from the first one again, about their own mean."""
    found = object_of("obj_bg", "training", 4)
    alone = found.points[found.mask != -1]
    assert len(alone) == 14
    expected = in_sphere(alone[np.arange(NUM_POINTS) % 14])
    sample = opened(obj_bg, background="drop")[SampleKey(4, 0, 0)]
    np.testing.assert_allclose(sample["points"], expected, atol=1e-5)
    few = opened(obj_bg, background="drop", num_points=6)[SampleKey(4, 0, 0)]
    np.testing.assert_allclose(few["points"], in_sphere(alone[:6]), atol=1e-5)


def test_counts_are_compared_with_the_published_ones(tmp_path: Path) -> None:
    found = prepare(write_variant(tmp_path / "h5_files", "obj_bg"), tmp_path / "set")
    assert found["differences"] == ["train: 30 objects, published 2309", "test: 16 objects, published 581"]
    other = prepare(write_variant(tmp_path / "h5_files", "pb_t25"), tmp_path / "other", "pb_t25")
    assert other["differences"] == []  # no counts were published of it


def test_a_background_where_there_is_none_is_told(tmp_path: Path) -> None:
    root = write_variant(tmp_path / "h5_files", "obj_bg")
    (root / "main_split").rename(root / "main_split_nobg")
    told = prepare(root, tmp_path / "set", "obj_only")["differences"]
    assert any("train: 30.0% of the points are background" in line and "right folder?" in line for line in told)


def test_commands(tmp_path: Path) -> None:
    root = write_variant(tmp_path / "h5_files", "obj_only")
    words = ("data", "prepare", "scanobjectnn", "--from", root, "--to", tmp_path / "set")
    assert "variant: is required and missing: variant=VALUE, part of the release to read (one of 'obj_bg'" in refuse(
        *words
    )
    assert "look at this: train: 30 objects, published 2309" in succeed(*words, "variant=obj_only").err
    told = succeed("data", "info", tmp_path / "set")
    assert "variant: obj_only (OBJ_ONLY: each object once, alone)" in told.out
    assert "normalisation: by prepare: about the mean of the points" in " ".join(told.out.split())
    assert "pb_t50_rs: PB_T50_RS, the hardest" in succeed("data", "info", "scanobjectnn").out
    succeed("data", "verify", tmp_path / "set")


def test_the_recipe_builds(obj_bg: Path) -> None:
    config = read_config(
        Path("configs/classify/scanobjectnn_dgcnn.yaml"),
        (f"data.root={obj_bg}", "data.variant=obj_bg", "data.num_points=20", "model.num_neighbours=4"),
    )
    built = build(config, World())
    assert (built.data.facts["num_classes"], len(built.data.test.indices)) == (15, 16)


# --- what is refused --------------------------------------------------------------------------------------------------


def list_classes(names: list[str]) -> Damage:
    return lambda path: path.write_text("\n".join(names) + "\n")


SWAPPED = [*CLASSES[:9], "bed", "table", *CLASSES[11:]]
TRAINING = "main_split/training_objectdataset.h5"
TEST = "main_split/test_objectdataset.h5"
NAMES = "shape_names_ext.txt"


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (TRAINING, set_key("mask"), rf"{TRAINING}: has no key 'mask', it has data, label"),
        (TEST, set_key("label"), rf"{TEST}: has no key 'label'"),
        (TRAINING, set_key("label", put((7,), 15)), rf"{TRAINING}: label\[7\] is 15, there are 15 classes"),
        (TEST, set_key("label", put((2,), -1)), rf"{TEST}: label\[2\] is -1, there are 15 classes"),
        (TRAINING, set_key("label", lambda x: x[:-1]), rf"{TRAINING}: 'label' is int32 \(29,\), integers \(30,\)"),
        (
            TRAINING,
            set_key("mask", lambda x: x.astype(np.uint8)),
            rf"{TRAINING}: 'mask' is uint8 \(30, 20\), signed numbers \(30, 20\) are needed, -1 for the background",
        ),
        (TEST, set_key("mask", lambda x: x[:, :5]), rf"{TEST}: 'mask' is int32 \(16, 5\)"),
        (TEST, set_key("data", lambda x: x[..., :2]), rf"{TEST}: 'data' is float32 \(16, 20, 2\), floats"),
        (
            TEST,
            lambda path: [set_key(key, lambda x: x[:, :5])(path) for key in ("data", "mask")],
            rf"{TEST}: 'data' has 5 points an object, training_objectdataset\.h5 has 20",
        ),
        (TRAINING, set_key("data", put((4, 3, 1), np.nan)), rf"{TRAINING}: object 4: data\[3, 1\] is nan"),
        (
            TRAINING,
            set_key("data", lambda x: np.concatenate([x[:1] * 0, x[1:]])),
            rf"{TRAINING}: object 0: all 20 points coincide",
        ),
        (TEST, Path.unlink, rf"{TEST}: is missing, it is of 'obj_bg'; .*main_split holds training_objectdataset\.h5"),
        (TEST, lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 40), rf"{TEST}: is not a sound HDF5 file"),
        (
            "main_split",
            lambda path: path.rename(path.with_name("split9")),
            r"h5_files/main_split: is missing, 'obj_bg' is read from it; .*h5_files holds split9",
        ),
        (NAMES, list_classes(SWAPPED), r"shape_names_ext\.txt:10: has 'bed' where the release has 'table' \(label 9\)"),
        (
            NAMES,
            list_classes(sorted(CLASSES)),
            r"shape_names_ext\.txt:2: has 'bed' where the release has 'bin' \(label 1\)",
        ),
        (NAMES, list_classes(CLASSES[:14]), r"shape_names_ext\.txt:15: has nothing where the release has 'toilet'"),
        (NAMES, list_classes([*CLASSES, "tv"]), r"shape_names_ext\.txt:16: has 'tv' where the release has nothing"),
    ],
)
def test_broken_releases_are_refused(tmp_path: Path, file: str, damage: Damage, message: str) -> None:
    root = write_variant(tmp_path / "h5_files", "obj_bg")
    damage(root / file)
    preparing.refuse(prepare, root, message)


def test_a_list_in_the_right_order_is_welcome(tmp_path: Path) -> None:
    root = write_variant(tmp_path / "h5_files", "obj_bg")
    list_classes(CLASSES)(root / NAMES)
    assert prepare(root, tmp_path / "set")["outcome"] == "prepared"


def test_another_variant_than_was_prepared_is_refused(obj_bg: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"was prepared as the variant 'obj_bg', the config gives 'pb_t50_rs'; set var"):
        ScanObjectNN(split="train", root=str(obj_bg))
    with pytest.raises(MissingDataError, match=r"there is no such folder.*data prepare scanobjectnn .* variant=\w+$"):
        opened(tmp_path / "nowhere")
    source = write_variant(tmp_path / "h5_files", "obj_bg")
    prepare(source, tmp_path / "set")
    write_variant(source, "pb_t25")
    with pytest.raises(DataError, match="was prepared with variant = obj_bg, now it is pb_t25"):
        prepare(source, tmp_path / "set", "pb_t25")


def test_an_object_without_points_of_its_own_cannot_be_read_alone(tmp_path: Path) -> None:
    root = write_variant(tmp_path / "h5_files", "obj_bg")
    set_key("mask", lambda x: np.where(np.arange(30)[:, None] == 8, -1, x))(root / TRAINING)
    prepare(root, tmp_path / "set")
    with pytest.raises(DataError, match=r"train/training_objectdataset/00008: has no point of the object; set backg"):
        opened(tmp_path / "set", background="drop")[SampleKey(8, 0, 0)]
