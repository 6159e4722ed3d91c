"""ModelNet prepared from every layout, and opened: counts, labels, bits, the same way up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.areas.clouds.sets.modelnet import ModelNet10, ModelNet40
from sightline.contract.errors import DataError
from sightline.contract.types import SampleKey
from sightline.store.files.cloud_files import read_cloud
from tests.data.clouds.modelnet_writers import (
    CLASS_NAMES,
    LAYOUTS,
    NUM_POINTS,
    SHAPES,
    cloud,
    label_of,
    prepare,
    write_hdf5,
    write_layout,
    write_npz,
    write_off,
    write_text,
)
from tests.data.preparing import refuse
from tests.limits import count_bytes, count_calls

TEN = ["bathtub", "bed", "chair", "desk", "dresser", "monitor", "night_stand", "sofa", "table", "toilet"]


def _keys(*indices: int) -> list[SampleKey]:
    return [SampleKey(index, 0, 0) for index in indices]


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A small set with normals, prepared from the text layout."""
    prepare(write_text(tmp_path / "release"), tmp_path / "set")
    return tmp_path / "set"


# --- every layout -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "up_axis"), [("npz", "z"), ("hdf5", "y"), ("text", "y"), ("off", "z")])
def test_layouts_say_which_axis_is_up(tmp_path: Path, layout: str, up_axis: str) -> None:
    source = write_layout(layout, tmp_path / "in")
    manifest = prepare(source, tmp_path / "set")
    assert (manifest["layout"], manifest["up_axis"], manifest["outcome"]) == (layout, up_axis, "prepared")
    assert manifest["source"]["path"] == str(source.resolve())
    shapes = ModelNet40(split="train", root=str(tmp_path / "set"))
    assert shapes.info.facts["up_axis"] == up_axis
    assert up_axis in shapes.info.fields["points"].frame
    assert not (tmp_path / "set.partial").exists()


def test_text_is_centred_and_scaled_and_sorted_by_number(prepared: Path) -> None:
    shapes = ModelNet40(split="train", root=str(prepared), normals="file")
    assert [shapes.sample_name(index) for index in range(len(shapes))] == SHAPES["train"]
    batch = shapes.get_batch(_keys(*range(6)))
    for index, name in enumerate(SHAPES["train"]):
        expected = cloud(name)
        # The writer rounds to float32 once; centring and scaling those values again moves them by as much at most.
        np.testing.assert_allclose(batch["points"][index], expected[:, :3], atol=4 * np.finfo(np.float32).eps)
        np.testing.assert_array_equal(batch["normals"][index], expected[:, 3:])
        assert batch["label"][index] == label_of(name)


def test_npz_holds_the_stored_bits(tmp_path: Path) -> None:
    prepare(write_npz(tmp_path / "in.npz"), tmp_path / "set")
    shapes = ModelNet40(split="test", root=str(tmp_path / "set"))
    assert [shapes.sample_name(index) for index in range(2)] == SHAPES["test"]
    stored = np.stack([cloud(name)[:, :3] for name in SHAPES["test"]]).astype(np.float16)
    np.testing.assert_array_equal(shapes.get_batch(_keys(0, 1))["points"], stored.astype(np.float32))


@pytest.mark.parametrize("has_lists", [True, False])
def test_hdf5_files_follow_their_numbers(tmp_path: Path, has_lists: bool) -> None:
    manifest = prepare(write_hdf5(tmp_path / "in", has_normals=True, has_lists=has_lists), tmp_path / "set")
    shapes = ModelNet40(split="train", root=str(tmp_path / "set"), normals="file")
    assert len(shapes) == 24
    batch = shapes.get_batch(_keys(*range(24)))
    for index in range(24):
        name = SHAPES["train"][index % 6]
        np.testing.assert_array_equal(
            torch.cat([batch["points"][index], batch["normals"][index]], dim=1), cloud(f"{name}{index // 2}")
        )
        assert batch["label"][index] == label_of(name)
    assert shapes.sample_name(21) == "ply_data_train10/0001"
    assert "train: 24 shapes, published 9843" in manifest["differences"]
    assert any("leaves out 3" in line for line in manifest["differences"])


def test_hdf5_without_normals_in_every_file_has_none(tmp_path: Path) -> None:
    prepare(write_hdf5(tmp_path / "in"), tmp_path / "set")
    with pytest.raises(DataError, match="holds no normals"):
        ModelNet40(split="train", root=str(tmp_path / "set"), normals="file")


def test_off_cubes_are_sampled_on_their_faces(tmp_path: Path) -> None:
    manifest = prepare(write_off(tmp_path / "ModelNet40"), tmp_path / "set")
    assert manifest["columns"]["points"]["shape"] == [2048, 3]
    assert "drawn evenly by area" in manifest["normalisation"]
    shapes = ModelNet40(split="train", root=str(tmp_path / "set"), normals="file")
    for index in range(6):
        sample = shapes[SampleKey(index, 0, 0)]
        along = (sample["points"] * sample["normals"]).sum(dim=1)
        # A face of a cube lies at one height along its normal; two faces of an axis are one side apart.
        for axis in range(3):
            heights = along[sample["normals"][:, axis].abs() == 1]
            signs = sample["normals"][:, axis][sample["normals"][:, axis].abs() == 1]
            for sign in (-1, 1):
                side = heights[signs == sign]
                assert 200 < len(side) < 500  # 2048 / 6 = 341, standard deviation 17
                assert np.ptp(side.numpy()) < 1e-6
    # The same bytes in other hands, under another name: another draw of the same cube.
    first, second = (shapes[SampleKey(index, 0, 0)]["points"] for index in (0, 1))
    assert not torch.equal(first, second)


def test_a_mesh_is_drawn_alike_in_both_sets(tmp_path: Path) -> None:
    source = write_off(tmp_path / "in")
    prepare(source, tmp_path / "forty")
    prepare(source, tmp_path / "ten", "modelnet10")
    forty, ten = (ModelNet10(split="train", root=str(tmp_path / name)) for name in ("forty", "ten"))
    assert torch.equal(forty.get_batch(_keys(0, 1, 2))["points"], ten.get_batch(_keys(0, 1, 2))["points"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_modelnet10_takes_its_ten_classes_from_any_layout(tmp_path: Path, layout: str) -> None:
    source = write_layout(layout, tmp_path / "in")
    prepare(source, tmp_path / "ten", "modelnet10")
    prepare(source, tmp_path / "forty")
    for root in ("ten", "forty"):
        shapes = ModelNet10(split="train", root=str(tmp_path / root))
        labels = shapes.get_batch(_keys(*range(len(shapes))))["label"].tolist()
        expected = [TEN.index("bed"), TEN.index("night_stand"), TEN.index("night_stand")]
        assert labels == (expected * 4 if layout == "hdf5" else expected)
        assert shapes.info.facts["class_names"] == tuple(TEN)
        assert shapes.info.facts["num_classes"] == 10
        assert shapes.info.split_sizes == {"train": len(labels), "test": 1}
        assert shapes.info.facts["class_counts"] == tuple(np.bincount(labels, minlength=10))
    with pytest.raises(DataError, match="prepared as 'modelnet10', modelnet40 is needed"):
        ModelNet40(split="train", root=str(tmp_path / "ten"))


def test_modelnet10_lists_serve_where_the_others_are_absent(tmp_path: Path) -> None:
    source = write_text(tmp_path / "in")
    for split in SHAPES:
        kept = [name for name in SHAPES[split] if name.rpartition("_")[0] in TEN]
        (source / f"modelnet10_{split}.txt").write_text("\n".join(kept))
        (source / f"modelnet40_{split}.txt").unlink()
    assert prepare(source, tmp_path / "ten", "modelnet10")["splits"]["train"]["num_rows"] == 3
    refuse(prepare, source, r"modelnet40_train\.txt: is missing")


def test_symbolic_links_are_followed_and_reported(tmp_path: Path) -> None:
    source = write_off(tmp_path / "real")
    linked = tmp_path / "links"
    linked.mkdir()
    for folder in source.iterdir():
        (linked / folder.name).symlink_to(folder)
    (tmp_path / "link").symlink_to(linked)
    (tmp_path / "disk").mkdir()
    (tmp_path / "set").symlink_to(tmp_path / "disk")
    manifest = prepare(tmp_path / "link", tmp_path / "set")
    assert manifest["source"]["path"] == str(linked)
    assert manifest["root"] == str(tmp_path / "disk")
    assert len(ModelNet40(split="train", root=str(tmp_path / "set"))) == 6


# --- the manifest -----------------------------------------------------------------------------------------------------


def test_the_manifest_tells_what_was_found(prepared: Path) -> None:
    facts = ModelNet40.describe(prepared)
    assert facts["counts"]["train"]["airplane"] == 3
    assert facts["counts"]["train"]["night_stand"] == 2
    assert facts["sizes"] == {"train": 6, "test": 2}
    assert (facts["points_per_shape"], facts["has_normals"], facts["layout"]) == (NUM_POINTS, True, "text")
    assert facts["source"] == str(prepared.parent / "release")
    low, high = facts["ranges"]["points"]
    assert -1 <= low < high <= 1
    assert "train: 6 shapes, published 9843" in facts["differences"]
    assert "test/night_stand: 1 shapes, published 86" in facts["differences"]
    assert facts["duplicates"] == []
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert set(manifest["files"]) == {
        f"{split}.{name}" for split in SHAPES for name in ("points.npy", "normals.npy", "label.npy")
    }
    assert manifest["published"]["train"]["chair"] == 889
    assert ModelNet40.verify(prepared) == 6


def test_exact_duplicates_are_found_across_splits(tmp_path: Path) -> None:
    source = write_text(tmp_path / "in")
    shutil.copy(source / "bed/bed_0001.txt", source / "night_stand/night_stand_0201.txt")
    manifest = prepare(source, tmp_path / "set")
    assert manifest["duplicates"] == [["train/bed_0001", "test/night_stand_0201"]]


def test_an_archive_in_millimetres_is_reported(tmp_path: Path) -> None:
    clouds = np.stack([cloud(name)[:, :3] * 500 for name in SHAPES["train"]])
    manifest = prepare(write_npz(tmp_path / "in.npz", X_train=clouds), tmp_path / "set")
    assert any(line.startswith("points reach out to 500 ") for line in manifest["differences"])


def test_the_card_names_layouts_and_terms() -> None:
    card = ModelNet40.card()
    assert set(card["layouts"]) == set(LAYOUTS)
    assert all(facts["obtain"] and facts["looks_like"] for facts in card["layouts"].values())
    assert "academic" in card["terms"]
    assert list(card["splits"]["train"]) == CLASS_NAMES
    assert [sum(counts.values()) for counts in card["splits"].values()] == [9843, 2468]
    assert [sum(counts.values()) for counts in ModelNet10.card()["splits"].values()] == [3991, 908]
    json.dumps(card)


# --- opening and reading ----------------------------------------------------------------------------------------------


def test_samples_and_batches_have_the_same_bits(prepared: Path) -> None:
    shapes = ModelNet40(split="train", root=str(prepared), num_points=4, normals="file")
    batch = shapes.get_batch(_keys(5, 0, 5))
    assert batch["sample_index"].tolist() == [5, 0, 5]
    assert batch["points"].shape == (3, 4, 3)
    for place, index in enumerate((5, 0, 5)):
        sample = shapes[SampleKey(index, 7, 9)]
        assert set(sample) == {"points", "normals", "label"}
        for name, value in sample.items():
            assert torch.equal(value, batch[name][place]), name
            assert value.dtype == batch[name].dtype


def test_the_first_points_are_taken(prepared: Path) -> None:
    every = ModelNet40(split="test", root=str(prepared))
    few = ModelNet40(split="test", root=str(prepared), num_points=2)
    assert torch.equal(few.get_batch(_keys(1))["points"], every.get_batch(_keys(1))["points"][:, :2])
    with pytest.raises(DataError, match=f"num_points is {NUM_POINTS + 1}, {NUM_POINTS} points a shape are stored"):
        ModelNet40(split="test", root=str(prepared), num_points=NUM_POINTS + 1)


def test_info_says_what_samples_hold(prepared: Path) -> None:
    plain = ModelNet40(split="train", root=str(prepared)).info
    assert (plain.facts["in_channels"], plain.features, set(plain.fields)) == (3, (), {"points", "label"})
    info = ModelNet40(split="train", root=str(prepared), normals="file").info
    assert (info.facts["in_channels"], info.features) == (6, ("normals",))
    assert list(info.facts["class_names"]) == CLASS_NAMES
    assert sum(info.facts["class_counts"]) == 6
    assert info.facts["class_counts"][CLASS_NAMES.index("airplane")] == 3
    assert info.split_sizes == {"train": 6, "test": 2}
    assert (info.fields["label"].low, info.fields["label"].high) == (0, 39)


def test_the_default_root(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(prepared.parent)
    monkeypatch.delenv("SIGHTLINE_DATA", raising=False)
    command = "sightline data prepare modelnet40 --from PATH --to data/modelnet40"
    elsewhere = "if the set is elsewhere, give data.root=FOLDER, or without it SIGHTLINE_DATA=FOLDER around all sets"
    place = f"looked in {prepared.parent}"
    with pytest.raises(
        DataError, match=f"^data/modelnet40: there is no such folder; {place}; {elsewhere}; to make it: {command}$"
    ):
        ModelNet40(split="train")
    monkeypatch.setenv("SIGHTLINE_DATA", "")
    with pytest.raises(DataError, match=r"^data/modelnet40: "):
        ModelNet40(split="train")
    monkeypatch.setenv("SIGHTLINE_DATA", str(prepared.parent))
    shutil.copytree(prepared, prepared.parent / "modelnet40")
    assert len(ModelNet40(split="train")) == 6


def test_what_cannot_be_opened_is_named(prepared: Path) -> None:
    release = prepared.parent / "release"
    with pytest.raises(DataError, match="is not a prepared set, it holds airplane, bed, modelnet40_shape_names"):
        ModelNet40(split="train", root=str(release))
    with pytest.raises(DataError, match=r"has no split 'val'; it holds train \(6\), test \(2\)"):
        ModelNet40(split="val", root=str(prepared))


# --- the real samples -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_modelnet40(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("modelnet") / "modelnet40"
    prepare(shared / "data/modelnet40_1024.npz", target)
    return target


@pytest.mark.shared
def test_the_real_set_has_the_published_counts(real_modelnet40: Path) -> None:
    facts = ModelNet40.describe(real_modelnet40)
    assert facts["sizes"] == {"train": 9843, "test": 2468}
    assert facts["counts"] == ModelNet40.card()["splits"]
    assert (facts["differences"], facts["duplicates"], facts["up_axis"]) == ([], [], "z")
    assert ModelNet10(split="train", root=str(real_modelnet40)).info.split_sizes == {"train": 3991, "test": 908}


@pytest.mark.shared
def test_a_real_shape_has_the_stored_bits(real_modelnet40: Path, shared: Path) -> None:
    shapes = ModelNet40(split="test", root=str(real_modelnet40), num_points=512)
    with np.load(shared / "data/modelnet40_1024.npz", allow_pickle=False) as archive:
        for index in (0, 1234, 2467):
            sample = shapes[SampleKey(index, 0, 0)]
            np.testing.assert_array_equal(sample["points"], archive["X_test"][index, :512].astype(np.float32))
            assert sample["label"] == archive["y_test"][index]
            assert shapes.sample_name(index) == archive["name_test"][index]


@pytest.mark.shared
def test_the_real_set_opens_at_once(real_modelnet40: Path) -> None:
    """Its 121 MB are not read, and few calls are made for each of its 12,311 shapes."""

    def open_and_read() -> ModelNet40:
        opened = ModelNet40(split="train", root=str(real_modelnet40))
        opened[SampleKey(9842, 0, 0)]
        return opened

    open_and_read()  # imports what any set does
    assert count_calls(open_and_read) < 5 * 12_311  # 3.0 for each
    assert count_bytes(open_and_read) < 10_000_000


@pytest.mark.shared
def test_real_meshes_are_the_shapes_that_others_drew(real_modelnet40: Path, shared: Path, tmp_path: Path) -> None:
    """The archive's clouds were drawn from the same meshes by other hands: ours must lie on them, the same way up."""
    from scipy.spatial import cKDTree

    def distance(first: np.ndarray, second: np.ndarray) -> float:
        return max(cKDTree(first).query(second)[0].mean(), cKDTree(second).query(first)[0].mean())

    source = shared / "data/modelnet_off_samples"
    manifest = prepare(source, tmp_path / "set")
    assert manifest["source"]["path"].endswith("modelnet_off_samples/ModelNet10")
    assert "test: 0 shapes, published 2468" in manifest["differences"]
    ours, theirs = (ModelNet40(split="train", root=str(root)) for root in (tmp_path / "set", real_modelnet40))
    index_of = {theirs.sample_name(index): index for index in range(626, 732)}
    assert len(ours) == 5
    for index in range(5):
        mine = ours[SampleKey(index, 0, 0)]["points"].numpy()
        other = theirs[SampleKey(index_of[ours.sample_name(index)], 0, 0)]["points"].numpy()
        spacing = cKDTree(other).query(other, k=2)[0][:, 1].mean()
        assert distance(mine, other) < 1.5 * spacing
        assert distance(mine[:, [0, 2, 1]] * [1, 1, -1], other) > 2 * spacing  # y-up: far off


@pytest.mark.shared
def test_a_real_mesh_with_flat_faces_is_drawn_inside_its_box(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ModelNet40/toilet/test"
    folder.mkdir(parents=True)
    (folder / "toilet_0345.off").symlink_to(shared / "data/modelnet_off_samples/toilet_0345.off")
    prepare(tmp_path / "ModelNet40", tmp_path / "set")
    points = ModelNet40(split="test", root=str(tmp_path / "set"))[SampleKey(0, 0, 0)]["points"].numpy()
    assert np.linalg.norm(points, axis=1).max() == pytest.approx(1, abs=1e-6)
    sides = np.ptp(read_cloud(folder / "toilet_0345.off").points, axis=0)
    # Drawn points reach almost to the sides, never beyond: the proportions of the box agree within a few per cent.
    np.testing.assert_allclose(np.ptp(points, axis=0) / np.ptp(points), sides / sides.max(), rtol=0.1)
