"""Rows of published layouts: groups in names worked out by hand, and every row held against the model that it names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

from sightline.contract.errors import DataError
from sightline.published import rows
from sightline.published.files import make_meta_model
from sightline.published.rows import AxisSize, ImageSide, NumModules, expand_names, list_layouts, list_names
from sightline.published.translation import CHANGES
from tests.cases import run_each

FACTS = {"num_classes": 2, "in_channels": 9, "num_categories": 2, "num_joints": 2}
PLANTED = """# a comment

_block:
  names:
    conv{1,2}: layers.{0,1}

net:
  base: _block
  url: https://example.org
  names:
    fc: head
    fc: tail
"""


@pytest.fixture
def replaced_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The rows of a folder of one file instead of the package's."""
    readers = (rows.read_layout, rows._find_rows, rows._read_row, rows._read_names)
    monkeypatch.setattr(rows, "FOLDER", tmp_path)
    for reader in readers:
        reader.cache_clear()
    yield tmp_path / "nets.yaml"
    for reader in readers:
        reader.cache_clear()


@run_each(
    "theirs, ours, expected",
    [
        ("fc", "head", ["fc head"]),
        ("bn{1..3}.x", "{0..2}.norm.x", ["bn1.x 0.norm.x", "bn2.x 1.norm.x", "bn3.x 2.norm.x"]),
        ("up{2..0}", "{0..2}", ["up2 0", "up1 1", "up0 2"]),
        ("{9..10}", "{10..9}", ["9 10", "10 9"]),
        ("a{,2}", "{x.y,z}", ["a x.y", "a2 z"]),
        ("a{1,2}{b,c}", "{3,4}.{5,6}", ["a1b 3.5", "a1c 3.6", "a2b 4.5", "a2c 4.6"]),
        (
            "p.{1,2}.<basic_block>",
            "q{0,1}.<basic_block>",
            [
                *("p.1.conv1 q0.layers.0.conv", "p.1.conv2 q0.layers.1.conv"),
                *("p.1.bn1 q0.layers.0.norm", "p.1.bn2 q0.layers.1.norm"),
                *("p.2.conv1 q1.layers.0.conv", "p.2.conv2 q1.layers.1.conv"),
                *("p.2.bn1 q1.layers.0.norm", "p.2.bn2 q1.layers.1.norm"),
            ],
        ),
    ],
)
def test_groups_count_together(theirs: str, ours: str, expected: list[str]) -> None:
    assert [" ".join(pair) for pair in expand_names(theirs, ours)] == expected


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("a{1,2}", "b"), ("a", "b{1,2}"), ("a{1..3}", "{0..1}"), ("<resnet18>", "{0,1}"), ("<resnet18>", "<resnet34>")],
)
def test_groups_that_do_not_match_are_refused(theirs: str, ours: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        list(expand_names(theirs, ours))


def test_mappings_of_a_base_merge_and_lists_are_replaced() -> None:
    below = {"names": {"a": "b"}, "losses": [1, 2], "task": {"grid": {"x": 1, "y": 2}}}
    above = {"names": {"c": "d"}, "losses": [3], "task": {"grid": {"y": 3}}}
    expected = {"names": {"a": "b", "c": "d"}, "losses": [3], "task": {"grid": {"x": 1, "y": 3}}}
    assert rows._merge(below, above) == expected
    assert below["names"] == {"a": "b"}


def test_every_shared_row_is_a_part_of_another() -> None:
    text = "".join(file.read_text() for file in rows.FOLDER.glob("*.yaml"))
    for name in rows._find_rows():
        if name.startswith("_"):
            assert re.search(rf"<{name[1:]}>|base: .*\b{name}\b", text), f"{name} is used by no row"


def test_a_fault_is_named_with_its_line(replaced_rows: Path) -> None:
    replaced_rows.write_text(PLANTED)
    with pytest.raises(DataError, match=rf"{replaced_rows}:12: .*'fc' is given twice, first on line 11"):
        rows.read_layout("net")


def test_a_name_of_two_rows_is_refused(replaced_rows: Path) -> None:
    good = PLANTED.replace("fc: tail", "fb: tail")
    replaced_rows.write_text(good)
    replaced_rows.with_name("others.yaml").write_text(good)
    with pytest.raises(AssertionError, match=r"others\.yaml: a row is in another file"):
        list_names()


def list_expected(layout: rows.PublishedLayout) -> dict[str, Tensor]:
    """The tensors of a layout's model, without an optional module that no file of the layout has."""
    state = make_meta_model(layout, **FACTS).state_dict()
    absent = f"{layout.optional}."
    if any(f"{name}.".startswith(absent) for name in layout.names.values()):
        return state
    return {name: value for name, value in state.items() if not name.startswith(absent)}


@pytest.mark.parametrize("layout", list_layouts(), ids=lambda layout: layout.name)
def test_a_row_fits_its_model(layout: rows.PublishedLayout) -> None:
    """Its names reach every module with state and no other, a parameter outside any module by a name of its own."""
    assert re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", layout.url)
    assert layout.makes.startswith(layout.model)
    state = make_meta_model(layout, **FACTS).state_dict()
    places = {*layout.names.values()}
    reached = {name if name in places else name.rpartition(".")[0] for name in list_expected(layout)}
    has_depths = any(isinstance(size, NumModules) for size in layout.sizes.values())
    assert reached <= places if has_depths else reached == places  # a network of another depth has fewer modules
    for size in layout.sizes.values():
        if isinstance(size, AxisSize):
            assert size.axis < state[size.name].ndim
        elif isinstance(size, ImageSide):
            assert {size.positions, size.patches} <= state.keys()
        else:
            assert size.read(state) > 0
    assert layout.changes.keys() <= CHANGES.keys()
    for argument in layout.changes.values():
        named = argument if isinstance(argument, list | dict) else ()
        assert set(named) <= state.keys()
    if layout.optional is not None:
        assert any(name.startswith(f"{layout.optional}.") for name in state)
