"""WiderPerson, CityPersons and EuroCity Persons from their archives to samples, and all of them as one set."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.areas.detect.sets.people import CityPersons, EuroCityPersons, WiderPerson
from sightline.areas.detect.sets.synthetic_crowds import SyntheticCrowds
from sightline.contract import registry
from sightline.contract.errors import ConfigError
from sightline.contract.types import SampleKey
from sightline.store.boxes.detections import BoxImages, Detections, read_results
from sightline.store.boxes.people.ecp import ecp_visible_share
from sightline.store.loading.concat import Concat
from tests.data.boxes.people_writers import write_citypersons, write_ecp, write_widerperson
from tests.data.preparing import cut, prepare_set, refuse

WIDER = [[1, 2, 3, 12, 33], [2, 20, 5, 30, 40], [3, -2, 0, 6, 20], [4, 40, 0, 64, 20], [5, 30, 30, 60, 48]]
CITY = [
    [1, 2, 3, 10, 30, 24000, 2, 3, 10, 15],
    [2, 20, 5.5, 10, 35, 25001, 20, 5.5, 10, 35],
    [0, 40, 0, 24, 20, 0, 0, 0, 0, 0],
    [3, 30, 30, 8, 8, 24002, 30, 30, 8, 6],
    [5, 30, 30, 30, 18, 24003, 30, 30, 30, 18],
]


def child(identity: str, box: tuple[int, ...], *tags: str, **more: Any) -> dict[str, Any]:
    return {"identity": identity, "tags": list(tags), **dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)), **more}


FRAME = [
    child("pedestrian", (2, 3, 12, 33), "occluded>10", "truncated>40", Orient=1.5),
    child("rider", (20, 5, 30, 40), children=[child("bicycle", (18, 20, 32, 44))]),
    child("pedestrian", (30, 30, 36, 48), "sitting-lying"),
    child("person-group-far-away", (40, 0, 64, 20)),
    child("car", (0, 0, 64, 48)),
    child("rider+vehicle-group-far-away", (50, 20, 60, 30)),
]
PEOPLE = ("widerperson", "citypersons", "ecp")


def written(name: str, root: Path) -> Path:
    if name == "widerperson":
        images = {"000001": WIDER, "000002": [], "011765": [[1, 0, 0, 1, 1]]}
        return write_widerperson(root, train=images, val={"000003": WIDER[:1]}, test={"000004": None})
    if name == "citypersons":
        rows = {"aachen_000000_000019_leftImg8bit.png": CITY, "ulm_000000_000019_leftImg8bit.png": []}
        return write_citypersons(root, train=rows, val={"lindau_000000_000019_leftImg8bit.png": CITY[:1]})
    names = ("day/train/amsterdam/amsterdam_00000", "night/train/berlin/berlin_00000", "day/val/roma/roma_00000")
    return write_ecp(root, dict(zip(names, (FRAME, [], FRAME[:1]), strict=True)), wrapped=names[:1])


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("people")
    for name in PEOPLE:
        prepare_set(name, written(name, folder / "in" / name), folder / name)
    return {name: str(folder / name) for name in PEOPLE}


def test_widerperson_has_three_kinds_of_people(roots: dict[str, str]) -> None:
    images = WiderPerson(split="train", root=roots["widerperson"], validation_share=0.0)
    assert images.info.split_sizes == {"train": 2, "test": 1}
    assert images.info.facts["class_names"] == ("person",)
    sample = images[SampleKey(0, 0, 0)]
    assert sample["boxes"].tolist() == [row[1:] for row in WIDER]
    assert sample["is_ignored"].tolist() == [False, False, False, True, True]
    assert sample["truth"][:, 4].tolist() == [0, 0, 0, -1, -1]
    assert sample["truth_visible"].isnan().all()
    riders = WiderPerson(split="train", root=roots["widerperson"], validation_share=0.0, people=("rider",))
    assert riders.record(0).is_ignored.tolist() == [True, False, True, True, True]
    manifest = json.loads((Path(roots["widerperson"]) / "manifest.json").read_text())
    left, bare = manifest["differences"][:2]
    assert "011765.jpg.txt is left out" in left
    assert bare == "1 images of test.txt have no annotations and are left out"
    with pytest.raises(ConfigError, match="people: widerperson marks 'crowd' as not to be found"):
        WiderPerson(split="train", root=roots["widerperson"], people=("crowd",))
    with pytest.raises(ConfigError, match="has no class 'riders'; did you mean 'rider'"):
        WiderPerson(split="train", root=roots["widerperson"], people=("riders",))


def test_citypersons_has_full_and_visible_boxes(roots: dict[str, str]) -> None:
    images = CityPersons(split="train", root=roots["citypersons"], validation_share=0.0, scored_box="visible")
    sample = images[SampleKey(0, 0, 0)]
    assert sample["boxes"].tolist() == [[a, b, a + c, b + d] for _, a, b, c, d, *_ in CITY]
    assert sample["is_ignored"].tolist() == [False, True, True, True, True]
    scored = [CITY[0][6:], CITY[1][6:], CITY[2][1:5], CITY[3][6:], CITY[4][6:]]
    assert sample["truth"][:, :4].tolist() == [[a, b, a + c, b + d] for a, b, c, d in scored]
    np.testing.assert_array_equal(sample["truth_visible"], [0.5, 1, np.nan, 0.75, np.nan])
    both = CityPersons(split="test", root=roots["citypersons"], people=("pedestrian", "rider"))
    assert both.classes == (("person",), (1,))
    assert both.image(0).image_id == 1
    assert both.sample_name(0) == "leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png"


def test_tags_of_thousands_of_digits_state_nothing() -> None:
    assert ecp_visible_share([f"occluded>{'9' * 5000}", "truncated>40"]) == 0.6


def test_ecp_states_what_is_visible_by_tags(roots: dict[str, str]) -> None:
    images = EuroCityPersons(split="train", root=roots["ecp"], people=("pedestrian", "rider"), validation_share=0.0)
    assert len(images) == 2
    sample = images[SampleKey(0, 0, 0)]
    assert sample["boxes"].tolist() == [[c["x0"], c["y0"], c["x1"], c["y1"]] for c in FRAME if c["identity"] != "car"]
    assert sample["is_ignored"].tolist() == [False, False, True, True, True]
    np.testing.assert_array_equal(sample["truth_visible"], [0.6, 1, np.nan, np.nan, np.nan])
    assert EuroCityPersons(split="test", root=roots["ecp"]).record(0).is_ignored.tolist() == [False]
    shares = {("occluded>80", "truncated>10"): 0.2, ("truncated>10", "unsure_orientation"): 0.9, (): 1.0}
    assert {tags: ecp_visible_share(tags) for tags in shares} == shares


def test_all_of_them_are_trained_on_as_one(roots: dict[str, str], tmp_path: Path) -> None:
    """`concat` takes sets whose class is `person`, and whose scored boxes have one name."""
    crowds = SyntheticCrowds(split="train", train_size=2, height=48, width=64)
    three = {name: registry.data.get_entry(name).builder for name in PEOPLE}
    sets: list[Any] = [each(split="train", root=roots[name], validation_share=0.3) for name, each in three.items()]
    both = Concat(sets=(*sets, crowds), split="train")
    assert len(both) == sum(map(len, sets)) + 2
    assert both.info.facts["class_names"] == ("person",)
    samples = [both[SampleKey(index, 0, 0)] for index in range(len(both))]
    assert all(each.keys() == samples[0].keys() for each in samples)
    assert all(len(each["truth_visible"]) == len(each["truth"]) for each in samples)
    assert both.sample_name(0) == f"1/{sets[0].sample_name(0)}"
    assert both.info.facts["box_type"] == "full"
    assert isinstance(both, BoxImages)
    assert [both.image(index).image_id for index in range(len(both))] == [*range(1, len(both) + 1)]
    assert both.image(len(both) - 1)[0] == "4/train_00001"
    assert np.array_equal(both.record(len(both) - 1).boxes, crowds.record(1).boxes)
    found = Detections(both.image(1), np.ones((1, 4)), np.ones(1), np.zeros(1)).to_coco(both.classes.ids)
    (tmp_path / "found.json").write_text(json.dumps(found))
    assert [len(each.boxes) for each in read_results(tmp_path / "found.json", both).detections][:3] == [0, 1, 0]


def broken(name: str, root: Path, place: str, old: str, new: str) -> Path:
    source = written(name, root)
    file = source / place
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    return source


_WIDER = "Annotations/000001.jpg.txt"
_ROMA = "day/labels/val/roma/roma_00000.json"


@pytest.mark.parametrize(
    ("name", "place", "old", "new", "message"),
    [
        ("widerperson", _WIDER, "5\n", "4\n", r"000001.jpg.txt:1: states '4' boxes, 5 follow"),
        ("widerperson", _WIDER, "1 2 3", "6 2 3", r"jpg.txt:2: '6 2 3 12 33' \(classes are 1 to 5"),
        ("widerperson", _WIDER, "1 2 3 12", "1 2 3 nan", r"jpg.txt:2: .*'nan' is not finite"),
        ("widerperson", _WIDER, "2 20 5 30", "2 20 5 20", r"txt:3: .*width and height above 0"),
        ("widerperson", "train.txt", "000002", "000009", r"000009.jpg.txt: cannot be read"),
        ("widerperson", _WIDER, "5\n", f"{'5' * 5000}\n", r"jpg.txt:1: states '5{40}' boxes"),
        ("widerperson", _WIDER, "5\n", "\u0665\n", r"jpg.txt:1: states '\u0665' boxes"),
        ("widerperson", _WIDER, "1 2 3 12", "1 2 3 1e308", r"txt:2: .*at most 16,777,216 from"),
        ("widerperson", "train.txt", "000002", "x" * 5000, r"train.txt: entry 2: 'x{40}' is not the name of an image"),
        ("ecp", _ROMA, '"x1": 12', '"x1": 1e308', r"roma_00000.json: child 0: .*at most 16,777,216 from"),
        ("ecp", _ROMA, '"x1": 12', f'"x1": {"9" * 400}', r"roma_00000.json: child 0: .*int too large"),
        ("ecp", _ROMA, '"x1": 12', f'"x1": {"9" * 5000}', r"roma_00000.json: .*a number has thousands of digits"),
        ("ecp", _ROMA, '["occluded>10", "truncated>40"]', '"occluded>10"', r"child 0: .*tags are a list of words"),
        ("ecp", _ROMA, '["occluded>10", "truncated>40"]', "5", r"child 0: .*tags are a list of words"),
        ("ecp", _ROMA, '"occluded>10"', "[1]", r"child 0: .*tags are a list of words"),
        ("ecp", _ROMA, "occluded>10", "\\ud800", r"roma_00000.json: .*text holds half a character, U\+D800"),
        ("ecp", _ROMA, "{", "", r"roma_00000.json: does not read as JSON"),
        ("ecp", _ROMA, "frame", "fame", r"roma_00000.json: a frame with imagewidth"),
        ("ecp", _ROMA, '"x1": 12', '"x1": 2', r"roma_00000.json: child 0: .*above 0"),
        ("ecp", _ROMA, "64", "65", r"is 64 wide and 48 high, the annotations state 65"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, place: str, old: str, new: str, message: str) -> None:
    source = broken(name, tmp_path / "in", place, old, new)
    refuse(name, source, message)


@pytest.mark.parametrize(
    ("name", "place", "old", "new"),
    [
        ("widerperson", _WIDER, "5\n", "4\n"),
        ("widerperson", "train.txt", "000002", "000009"),
        ("ecp", _ROMA, "{", ""),
        ("ecp", _ROMA, "frame", "fame"),
    ],
)
def test_an_image_of_a_damaged_file_is_left_out_and_counted(
    tmp_path: Path, name: str, place: str, old: str, new: str
) -> None:
    sound = prepare_set(name, written(name, tmp_path / "sound"), tmp_path / "all")
    source = broken(name, tmp_path / "in", place, old, new)
    manifest = prepare_set(name, source, tmp_path / "set", faulty="leave_out")
    num_images = [sum(split["num_rows"] for split in each["splits"].values()) for each in (sound, manifest)]
    assert num_images[1] == num_images[0] - 1
    assert "left out: 1 annotation files that are missing or damaged, first: " in " ".join(manifest["differences"])


def test_broken_mats_and_other_layouts_are_named(tmp_path: Path) -> None:
    rows = {"aachen_000000_000019_leftImg8bit.png": [[7, *CITY[0][1:]], CITY[1]]}
    source = write_citypersons(tmp_path / "in", train=rows, val={"ulm_0.png": CITY[:1]})
    refuse("citypersons", source, r"anno_train.mat: image 1, aachen_.*, box 1: \[7.*classes are 0 to 5")
    prepare_set("citypersons", source, tmp_path / "set", faulty="leave_out")
    assert len(CityPersons(split="train", root=str(tmp_path / "set"), validation_share=0.0).record(0).boxes) == 1
    for place, number in itertools.product((1, 5, 6), (np.nan, 1e308)):
        row = [*CITY[0][:place], number, *CITY[0][place + 1 :]]
        odd = write_citypersons(tmp_path / f"{place} {number}", train={"aachen_0.png": [row]})
        if place == 5 and number == 1e308:  # the number of an instance, which nobody computes with
            continue
        refuse("citypersons", odd, r"image 1, aachen_0.png, box 1: .*(is not finite|at most 16,777,216 from)")
    (source / "leftImg8bit" / "val" / "ulm" / "ulm_0.png").unlink()
    refuse("citypersons", source, r"anno_val.mat: image 1: there is no image 'ulm_0.png' below")
    cut(source / "annotations" / "anno_val.mat", by=40)
    refuse("citypersons", source, r"anno_val\.mat: anno_val_aligned cannot be read")
    for name, needed in zip(PEOPLE, ("train.txt and val.txt", "anno_train.mat", "day/labels/train"), strict=True):
        refuse(name, tmp_path / "nothing", f"there is no such folder; .* has {needed}.*give the folder with them")
