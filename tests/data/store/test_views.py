"""A view store is found by names, opened fast, pure to draw from; data sets pair clouds and views of one object."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.areas.clouds.sets.cloud_folder import CloudFolder
from sightline.areas.clouds.sets.modelnet import ModelNet40
from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.contract.errors import ConfigError, DataError, MissingDataError
from sightline.contract.types import SampleKey
from sightline.ops.views.cameras import ring_cameras
from sightline.ops.views.rendering import on_background, render_cloud
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.prepared.prepared_writer import ColumnSpec, PreparationPlan, SampleRow, Shard, write_prepared_set
from sightline.store.prepared.views import IMAGE, VIEWS_SET, Views
from tests.data.clouds.cloud_writers import prepare_folder, write_folder
from tests.data.clouds.modelnet_writers import SHAPES, prepare, write_npz
from tests.limits import count_calls

NAMES = SHAPES["train"] + SHAPES["test"]
SIZE = 4


def picture(name: str, view: int) -> np.ndarray:
    """A view that tells whose it is: brightness 20 times the object's place plus the view, one pixel of background."""
    levels = np.full((SIZE, SIZE), 20 * NAMES.index(name) + view + 1, dtype=np.uint8)
    levels[0, 0] = 0
    return levels


def write_store(root: Path, names: dict[str, list[str]], *, counts: int | dict[str, int] = 3, **about: Any) -> Path:
    """A store in which every object has its own pictures; with `background` they are in colour."""
    is_coloured = "background" in about

    def rows(split: str) -> Any:
        for name in names[split]:
            views = counts if isinstance(counts, int) else counts[name]
            drawn = np.stack([picture(name, view) for view in range(views)])
            yield SampleRow(name, name, {IMAGE: on_background(drawn, about["background"]) if is_coloured else drawn})

    parts = tuple(Shard(split, split, len(each), (), lambda split=split: rows(split)) for split, each in names.items())
    shape = (SIZE, SIZE, 3) if is_coloured else (SIZE, SIZE)
    columns = {IMAGE: ColumnSpec(shape, "uint8", is_ragged=True)}
    plan = PreparationPlan(
        VIEWS_SET, "test", Path("test"), columns, parts, {"background": None, **about}, lambda prepared: {}
    )
    write_prepared_set(plan, root, progress=lambda *told: None)
    return root


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_store(tmp_path / "views", SHAPES)


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    prepare(write_npz(tmp_path / "in.npz"), tmp_path / "set")
    return tmp_path / "set"


def keys(*indices: int, epoch: int = 0) -> list[SampleKey]:
    return [SampleKey(index, epoch, 5) for index in indices]


# --- the store -------------------------------------------------------------------------------------------------------


def test_views_are_found_by_name_in_every_split(store: Path) -> None:
    views = Views.open(store)
    assert views.names == tuple(NAMES)
    assert (views.num_views, views.size_px) == (3, SIZE)
    for name in NAMES:
        for view in range(3):
            assert np.array_equal(views.image(name, view), np.repeat(picture(name, view)[..., None], 3, axis=-1))
    white = views.image("bed_0001", 0, background="white")
    assert white[0, 0].tolist() == [255, 255, 255]
    assert np.array_equal(white[1:], views.image("bed_0001", 0)[1:])


def test_what_is_read_is_a_copy(store: Path) -> None:
    views = Views.open(store)
    views.image("bed_0001", 0)[:] = 9
    assert np.array_equal(views.image("bed_0001", 0)[..., 0], picture("bed_0001", 0))


def test_objects_may_have_different_numbers_of_views(tmp_path: Path) -> None:
    counts = {name: 1 + place for place, name in enumerate(NAMES)}
    views = Views.open(write_store(tmp_path / "views", SHAPES, counts=counts))
    assert views.num_views == 1
    assert views.counts(views.row_indices(NAMES, set_name="all")).tolist() == list(range(1, 9))
    assert np.array_equal(views.image(NAMES[-1], 7)[..., 0], picture(NAMES[-1], 7))
    with pytest.raises(IndexError, match="'airplane_0001' has the views 0 to 0, asked for 1"):
        views.image("airplane_0001", 1)


def test_missing_names_are_counted_and_named(store: Path) -> None:
    wanted = ["bed_0001", *(f"chair_{number:04d}" for number in range(7))]
    with pytest.raises(DataError, match=r"7 of 8 objects of my set have no views here: chair_0000, .*chair_0004 and 2"):
        Views.open(store).row_indices(wanted, set_name="my set")


def test_many_objects_open_with_a_few_calls_for_each(tmp_path: Path) -> None:
    """As many as ModelNet40 has, with one view of one pixel each."""
    names = [f"chair_{number:05d}" for number in range(12_311)]
    drawn = np.ones((1, 1, 1), dtype=np.uint8)
    part = Shard("train", "train", len(names), (), lambda: (SampleRow(name, name, {IMAGE: drawn}) for name in names))
    columns = {IMAGE: ColumnSpec((1, 1), "uint8", is_ragged=True)}
    plan = PreparationPlan(VIEWS_SET, "test", Path("test"), columns, (part,), {"background": None}, lambda prepared: {})
    write_prepared_set(plan, tmp_path / "views", progress=lambda *told: None)
    assert count_calls(lambda: Views.open(tmp_path / "views").image("chair_12310", 0)) < 6 * len(names)  # 3.9


def test_what_is_no_store_is_refused(tmp_path: Path, prepared: Path) -> None:
    with pytest.raises(MissingDataError, match=r"give data\.views=FOLDER; to make one: sightline data render SET"):
        Views.open(tmp_path / "none")
    with pytest.raises(DataError, match="holds the data set 'modelnet40', a view store is needed"):
        Views.open(prepared)


def test_two_objects_of_one_name_are_refused(tmp_path: Path) -> None:
    root = write_store(tmp_path / "views", {"train": ["bed_0001"], "test": ["bed_0001"]})
    with pytest.raises(DataError, match="names an object twice"):
        Views.open(root)


# --- data sets -------------------------------------------------------------------------------------------------------


def test_clouds_and_views_are_of_the_same_object(store: Path, prepared: Path) -> None:
    for split, names in SHAPES.items():
        shapes = ModelNet40(split=split, root=str(prepared), views=str(store))
        for epoch in range(10):
            image = shapes.get_batch(keys(*range(len(names)), epoch=epoch))[IMAGE]
            assert image.shape == (len(names), SIZE, SIZE, 3)
            assert image.dtype == torch.uint8
            owner, view = divmod(image[:, 1, 1, 0].numpy() - 1, 20)
            assert [NAMES[place] for place in owner] == names
            assert view.max() < 3


def test_names_pair_whatever_the_order_of_the_store(tmp_path: Path, prepared: Path) -> None:
    mixed = {"test": [*SHAPES["test"][::-1], *SHAPES["train"][3:]], "train": SHAPES["train"][2::-1]}
    shapes = ModelNet40(split="train", root=str(prepared), views=str(write_store(tmp_path / "mixed", mixed)))
    image = shapes.get_batch(keys(*range(6)))[IMAGE]
    assert [NAMES[place] for place in (image[:, 1, 1, 0].numpy() - 1) // 20] == SHAPES["train"]


def test_views_are_pure_and_all_are_drawn(store: Path, prepared: Path) -> None:
    shapes = ModelNet40(split="train", root=str(prepared), views=str(store))
    copy = pickle.loads(pickle.dumps(shapes))
    batch = [key for epoch in range(40) for key in keys(0, 3, 5, epoch=epoch)]
    together = shapes.get_batch(batch)[IMAGE]
    alone = torch.stack([copy[key][IMAGE] for key in reversed(batch)]).flip(0)
    assert torch.equal(together, alone)
    drawn = (together[0::3, 1, 1, 0] - 1).tolist()
    assert set(drawn) == {0, 1, 2}
    expected = [int(SampleKey(0, epoch, 5).generator().integers(3)) for epoch in range(40)]
    assert drawn == expected


def test_without_views_nothing_changes(prepared: Path, store: Path) -> None:
    plain = ModelNet40(split="train", root=str(prepared))
    pictured = ModelNet40(split="train", root=str(prepared), views=str(store))
    assert IMAGE not in plain.info.fields
    assert IMAGE not in plain.get_batch(keys(0))
    assert {**pictured.info.fields, IMAGE: None} == {**plain.info.fields, IMAGE: None}
    assert pictured.info.facts == plain.info.facts


def test_an_image_is_promised_before_the_data_is_there(store: Path, tmp_path: Path) -> None:
    assert IMAGE not in ModelNet40.expected_info().fields
    assert ModelNet40.expected_info(views=str(store)).fields[IMAGE].shape == f"{SIZE} {SIZE} 3"
    assert ModelNet40.expected_info(views=str(tmp_path / "none")).fields[IMAGE].shape == "96 96 3"


def test_background_is_told_and_kept(prepared: Path, store: Path, tmp_path: Path) -> None:
    white = ModelNet40(split="test", root=str(prepared), views=str(store), background="white")
    assert white.get_batch(keys(0))[IMAGE][0, 0, 0].tolist() == [255, 255, 255]
    assert white.info.fields[IMAGE].frame.endswith("on white")
    black = ModelNet40(split="test", root=str(prepared), views=str(store))
    assert black.get_batch(keys(0))[IMAGE][0, 0, 0].tolist() == [0, 0, 0]
    fixed = write_store(tmp_path / "fixed", SHAPES, background="white")
    stored = ModelNet40(split="test", root=str(prepared), views=str(fixed))
    assert stored.info.fields[IMAGE].frame.endswith("on white")
    assert stored.get_batch(keys(0))[IMAGE][0, 0, 0].tolist() == [255, 255, 255]
    with pytest.raises(DataError, match="were stored on white, black is wanted; set background: white"):
        ModelNet40(split="test", root=str(prepared), views=str(fixed), background="black")


def test_a_background_needs_views(prepared: Path) -> None:
    with pytest.raises(ConfigError, match="set views: FOLDER too"):
        ModelNet40(split="test", root=str(prepared), background="black")


def test_a_fraction_needs_views_of_its_own_shapes_alone(tmp_path: Path, prepared: Path) -> None:
    half = ModelNet40(split="train", root=str(prepared), fraction=0.5)
    names = [half.sample_name(index) for index in range(len(half))]
    root = str(write_store(tmp_path / "half", {"train": names}))
    assert len(ModelNet40(split="train", root=str(prepared), fraction=0.5, views=root)) == len(names) < 6


def test_a_folder_of_your_own_takes_views_too(tmp_path: Path) -> None:
    prepare_folder(write_folder(tmp_path / "in", per_class=3), tmp_path / "set")
    root = str(write_store(tmp_path / "views", SHAPES))
    with pytest.raises(DataError, match="3 of 3 objects of cloud_folder train have no views here: ball/"):
        CloudFolder(split="train", root=str(tmp_path / "set"), views=root)


# --- the embedded shapes ---------------------------------------------------------------------------------------------


def test_embedded_shapes_show_their_own_clouds() -> None:
    views = {"count": 5, "size_px": 24}
    shapes = SyntheticShapes(split="train", train_size=24, num_points=200, views=views)
    batch = shapes.get_batch(keys(3, 11, epoch=2))
    cameras = ring_cameras(5, size_px=24)
    for key, cloud, image in zip(keys(3, 11, epoch=2), batch["points"], batch[IMAGE], strict=True):
        expected = render_cloud(cloud.numpy(), cameras)[key.generator().integers(5)]
        assert np.array_equal(image.numpy(), on_background(expected, "black"))


def test_embedded_views_are_the_same_alone_and_in_a_copy() -> None:
    shapes = SyntheticShapes(split="test", test_size=12, num_points=100, views=4)
    batch = [key for epoch in range(3) for key in keys(0, 7, epoch=epoch)]
    together = shapes.get_batch(batch)
    copy = pickle.loads(pickle.dumps(shapes))
    for place in reversed(range(len(batch))):
        assert torch.equal(copy[batch[place]][IMAGE], together[IMAGE][place])
    together[IMAGE].zero_()
    assert shapes.get_batch(batch)[IMAGE].any()


def test_embedded_views_change_nothing_else() -> None:
    plain = SyntheticShapes(split="test", test_size=12, num_points=100)
    pictured = SyntheticShapes(split="test", test_size=12, num_points=100, views={"count": 2, "background": "white"})
    before, after = plain.get_batch(keys(1, 2)), pictured.get_batch(keys(1, 2))
    assert after.keys() - before.keys() == {IMAGE}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert after[IMAGE].shape == (2, 64, 64, 3)
    assert (after[IMAGE][:, 0, 0] == 255).all()
    assert pictured.info.fields[IMAGE].frame.endswith("on white")
    assert BatchReader(pictured).keys == {*pictured.info.fields, "sample_index"}
