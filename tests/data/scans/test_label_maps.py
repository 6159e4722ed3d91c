"""Label maps: the published ones entry by entry, the authors' scripts on their scans, and maps that are not whole."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from sightline.areas.scans.sets.semantic_kitti import LABEL_MAPS
from sightline.contract.errors import DataError
from sightline.store.label_maps import LabelMap, read_label_map
from tests.golden_parity import load_golden

OWN = """
labels: {0: nothing, 4: ground, 9: thing, 10: moving-thing}
learning_map: {0: 0, 4: 1, 9: 2, 10: 2}
learning_map_inv: {0: 0, 1: 4, 2: 9}
learning_ignore: {0: true, 1: false, 2: false}
"""


def own(tmp_path: Path, text: str) -> LabelMap:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return read_label_map(str(path), LABEL_MAPS)


def spec_rows(shared: Path) -> list[list[str]]:
    """The table of section 3.1 of the specification."""
    lines = (shared / "spec/lidar.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| \d+ \|", line)]
    assert len(rows) == 20
    return rows


def test_the_single_scan_map_is_that_of_the_specification(shared: Path) -> None:
    found = read_label_map("single", LABEL_MAPS)
    rows = spec_rows(shared)
    assert found.class_names == tuple(row[1].removesuffix(" (ignore)") for row in rows)
    assert found.ids_of_classes == tuple(int(row[2]) for row in rows)
    assert found.colors_rgb == tuple(tuple(int(each) for each in row[3].split(","))[::-1] for row in rows)
    assert np.allclose(found.frequencies, [float(row[4]) for row in rows], rtol=0, atol=0.6e-6)
    assert sum(found.frequencies) == pytest.approx(1, abs=1e-5)  # as published: ids that hardly occur are left out
    assert found.ignore_index == 0


@pytest.mark.parametrize("name", ["single", "multi"])
def test_ids_and_classes_are_those_of_the_authors_scripts(shared: Path, name: str) -> None:
    golden, found = load_golden(shared, "semantic_kitti_scripts", area="lidar").arrays, read_label_map(name, LABEL_MAPS)
    for scan in range(3):
        ids = golden[f"scan{scan}/prediction"] & 0xFFFF
        classes = found.classes(ids, where="scan")
        assert np.array_equal(classes, golden[f"scan{scan}/remapped_{name}"] & 0xFFFF)
        of_ids = np.unique(ids, return_counts=True)
        assert np.array_equal(found.counts(*of_ids, where="scan"), np.bincount(classes, minlength=found.num_classes))
        # What is recorded as the way back is the map applied once more to classes, as if these were ids: the script
        # was run so. Those that are ids of the map agree with that, which says nothing of the inverse.
        known = [raw for raw in range(found.num_classes) if raw in (0, 1, 10, 11, 13, 15, 16, 18, 20)]
        is_known = np.isin(classes, known)
        again = found.classes(classes[is_known], where="scan")
        assert np.array_equal(again, golden[f"scan{scan}/remapped_back_{name}"][is_known] & 0xFFFF)
        assert np.array_equal(found.classes(found.ids(classes), where="scan"), classes)
    # The published frequencies, of which the files here keep eight decimals.
    assert np.abs(found.frequencies - golden[f"weights/frequency_{name}"]).max() <= 0.5e-8


def test_the_multi_scan_map_tells_moving_things_apart() -> None:
    found = read_label_map("multi", LABEL_MAPS)
    assert found.class_names[20:] == (
        *("moving-car", "moving-bicyclist", "moving-person", "moving-motorcyclist"),
        *("moving-other-vehicle", "moving-truck"),
    )
    assert found.classes(np.array([256, 257, 259, 258, 252]), where="x").tolist() == [24, 24, 24, 25, 20]
    assert found.colors_rgb[20] == found.colors_rgb[1]
    assert found.class_names[:20] == read_label_map("single", LABEL_MAPS).class_names


def test_unknown_ids_are_named_and_counted() -> None:
    found = read_label_map("single", LABEL_MAPS)
    ids = np.array([10, 7, 7, 300, 40], dtype=np.uint16)
    with pytest.raises(DataError, match=r"^08/000003: the label ids 7 \(2 points\), 300 \(1 points\) not in the map"):
        found.classes(ids, where="08/000003")
    with pytest.raises(DataError, match=r"^set: the label id 7 \(2 points\) not in the map single; add them"):
        found.counts(np.array([7, 8]), np.array([2, 0]), where="set")


def test_ones_own_map_merges_classes(tmp_path: Path) -> None:
    found = own(tmp_path, OWN)
    assert found.class_names == ("nothing", "ground", "thing")
    assert found.classes(np.array([10, 9, 4]), where="x").tolist() == [2, 2, 1]
    assert found.ids(np.array([0, 1, 2])).tolist() == [0, 4, 9]
    as_json = {"labels": {"0": "a", "5": "b"}, "learning_map": {"0": 0, "5": 1}, "learning_map_inv": {"0": 0, "1": 5}}
    other = own(tmp_path, json.dumps(as_json))
    assert (other.ignore_index, other.ids_of_classes) == (255, (0, 5))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("10: 2}", "10: 5}", "learning_map: 10 maps to class 5, learning_map_inv has the classes 0 to 2"),
        ("2: 9}", "2: 4}", "learning_map_inv: class 2 has the id 4, which learning_map maps to 1"),
        ("2: 9}", "3: 9}", "learning_map_inv: has no class 2, but class 3"),
        ("9: thing", "8: thing", "labels: has no entry for the id 9"),
        ("9: thing", "9: ground", "labels: two classes are called 'ground'"),
        ("10: 2}", "10: -1}", "10 is -1, a whole number from 0 to 65535 is needed"),
        ("10: 2}", "10: 2.0}", "10 is 2.0"),
        ("10: 2}", "70000: 2}", "the key 70000 is not a whole number"),
        ("10: 2}", "09: 1}", "learning_map: names 9 a second time"),
        ("10: 2}", "\u0663: 1}", "learning_map: the key \u0663 is not a whole number"),
        ("10: 2}", f"{'9' * 90}: 1}}", "learning_map: the key 9+ is not a whole number"),
        ("learning_ignore: {", "learning_ignore: [", r"mine\.yaml:5: not valid YAML"),
        ("1: false", "1: 'false'", "learning_ignore: 1 is 'false', true or false is needed"),
        ("1: false", "car: false", "learning_ignore: the key car is not a whole number"),
        ("labels:", "color_map: {0: [0, 0, 0], 4: [0, 0, 2.0], 9: [1, 1, 1]}\nlabels:", "color_map: 4 is"),
        ("labels:", "color_map: {car: [0, 0, 0]}\nlabels:", "color_map: the key car is not"),
        ("labels:", "color_map: 5\nlabels:", "color_map: is 5, not a table"),
        ("2: false", "2: true", "learning_ignore: ignores class 2"),
        ("learning_map:", "learning_mop:", "has no table 'learning_map'"),
        ("labels:", "color_map: {0: [0, 0, 0], 4: [0, 0, 256]}\nlabels:", "color_map: 4 is"),
    ],
)
def test_maps_that_are_not_whole_are_refused(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in OWN
    with pytest.raises(DataError, match=told):
        own(tmp_path, OWN.replace(old, new, 1))


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ("{0: 0.5, 1: 0.5}", "class_frequency: has no entry for the class 2"),
        ("{0: 0.5, 1: 0.3, 2: 0.1, 3: 0.1}", "needs a share of each of the classes 0 to 2, and of no other"),
        ("{0: 0.5, 4: 0.3, 9: 0.1}", "class_frequency: has no entry for the class 1"),
        ("{0: 0.5, 1: -0.3, 2: 0.1}", "class_frequency: 1 is -0.3, a share from 0 to 1 is needed"),
        ("{0: 0.5, 1: 1e308, 2: 0.1}", "class_frequency: 1 is 1e[+]308"),
        ("{0: 0.5, 1: .nan, 2: 0.1}", "class_frequency: 1 is '.nan'"),
        ("{0: 0, 1: 0.0, 2: 0}", "class_frequency: needs .* one above 0"),
        ("[0.5, 0.3, 0.2]", "class_frequency: is .*, not a table"),
    ],
)
def test_frequencies_are_a_share_for_every_class(tmp_path: Path, shares: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        own(tmp_path, f"{OWN}class_frequency: {shares}\n")


def test_frequencies_stand_in_the_order_of_the_classes(tmp_path: Path) -> None:
    assert own(tmp_path, f"{OWN}class_frequency: {{2: 0.25, 0: 0.5, 1: 0.125}}\n").frequencies == (0.5, 0.125, 0.25)
    assert own(tmp_path, OWN).frequencies == ()


def test_what_is_no_map_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.*: cannot be read as a label map.*built-in maps: single, multi"):
        read_label_map(str(tmp_path / "nowhere"), LABEL_MAPS)
    for text in ("", "[1, 2]", "text", "!!python/object:os.system {}"):
        with pytest.raises(DataError, match=r"mine\.yaml: is not a label map|mine\.yaml:1: the tag"):
            own(tmp_path, text)


def test_names_of_ids_in_order_are_a_map() -> None:
    """An id without a name is ignored: as class 0 if it is id 0, else as the ignore index."""
    ids = np.array([0, 1, 2, 3])
    first, later = (read_label_map(names, {}) for names in ((None, "car", None, "road"), ("sky", None, "car", "road")))
    assert (first.class_names, first.ignore_index) == (("unlabeled", "car", "road"), 0)
    assert first.classes(ids, where="scan").tolist() == [0, 1, 0, 2]
    assert first.ids(np.array([1, 2])).tolist() == [1, 3]
    assert (later.class_names, later.ignore_index) == (("sky", "car", "road"), 255)
    assert later.classes(ids, where="scan").tolist() == [0, 255, 1, 2]
    for names, told in (
        ((None,), "names no class"),
        ((), "names no class"),
        (("a", "a"), "two classes are called 'a'"),
    ):
        with pytest.raises(DataError, match=rf"data\.label_map: .*{told}"):
            read_label_map(names, {})
    with pytest.raises(DataError, match=r"the label id 4 \(1 points\) .* in the map data\.label_map"):
        first.classes(np.array([4]), where="scan")
