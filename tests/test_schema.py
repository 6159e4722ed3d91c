"""A signature is a schema: what a value may be, and how that is said."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import pytest
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import TypedDict

from sightline.contract.arguments import Count, NonNegativeFloat, PositiveFloat, Probability
from sightline.contract.schema import (
    check_value,
    describe_type,
    format_value,
    signature_parameters,
    suggest,
    suggest_beside,
)
from tests.cases import run_each


class Group(TypedDict):
    modules: str
    factor: NonNegativeFloat
    until: NotRequired[Count]


@run_each(
    "annotation, words",
    [
        (bool, "true or false"),
        (int, "a whole number"),
        (float, "a number"),
        (str, "text"),
        (Any, "anything"),
        (None, "null"),
        (Count, "a whole number, at least 1"),
        (Probability, "a number from 0 to 1"),
        (PositiveFloat, "a number, above 0"),
        (NonNegativeFloat, "a number, at least 0"),
        (Annotated[float, Ge(0), Lt(1)], "a number, at least 0 and below 1"),
        (Annotated[float, Gt(-1), Le(1)], "a number, above -1 and at most 1"),
        (Annotated[int, Le(5)], "a whole number, at most 5"),
        (Annotated[float, Lt(0.5)], "a number, below 0.5"),
        (Literal["max", "min"], "one of 'max', 'min'"),
        (str | None, "text or null"),
        (Count | None, "a whole number, at least 1, or null"),
        (tuple[float, ...], "a list, each a number"),
        (list[int], "a list, each a whole number"),
        (tuple[Probability, Probability], "a list of 2, each a number from 0 to 1"),
        (dict[str, int], "a mapping, each value a whole number"),
        (Group, "a mapping {modules: text; factor: a number, at least 0; until: a whole number, at least 1}"),
    ],
)
def test_types_in_words(annotation: Any, words: str) -> None:
    assert describe_type(annotation) == words


@run_each(
    "annotation, value, expected",
    [
        (float, 3, 3.0),
        (Count, 3, 3),
        (tuple[float, ...], [1, 2.5], (1.0, 2.5)),
        (tuple[str, ...] | None, None, None),
        (list[int], (1, 2), [1, 2]),
        (bool, True, True),
        (dict[str, float], {"a": 1}, {"a": 1.0}),
        (tuple[Group, ...], [{"modules": "a", "factor": 1}], ({"modules": "a", "factor": 1.0},)),
        (Any, {"a": [1]}, {"a": [1]}),
    ],
)
def test_values_become_what_the_annotation_says(annotation: Any, value: object, expected: object) -> None:
    found, misfits = check_value(annotation, value)
    assert not misfits
    assert found == expected
    assert type(found) is type(expected)


@run_each("annotation, value, expected", [
        (bool, "False", [("", "found the text 'False', allowed is true or false; did you mean false?")]),
        (bool, 1, [("", "found 1, allowed is true or false; did you mean true?")]),
        (int, True, [("", "found true, allowed is a whole number, such as 10")]),
        (float, False, [("", "found false, allowed is a number, such as 0.001")]),
        (float, "1", [("", "found the text '1', allowed is a number; did you mean 1.0?")]),
        (str, 1, [("", 'found 1, allowed is text; did you mean "1"?')]),
        (int, 2.0, [("", "found 2.0, allowed is a whole number; did you mean 2?")]),
        (float, float("nan"), [("", "found nan, allowed is a number")]),
        (float, float("inf"), [("", "found inf, allowed is a number")]),
        (float, 1 + 2j, [("", "found (1+2j), allowed is a number, such as 0.001")]),
        (Probability, 1.5, [("", "found 1.5, allowed is a number from 0 to 1")]),
        (Literal["a"], "b", [("", "found the text 'b', allowed is 'a'")]),
        (Count | None, 0, [("", "found 0, allowed is a whole number, at least 1, or null")]),
        (Count, 2**31, [("", "found 2147483648, allowed is a whole number from 1 to 2147483647")]),
        (PositiveFloat, 2e9, [("", "found 2000000000.0, allowed is a number, above 0 and at most 1000000000")]),
        (tuple[float, ...], 5, [("", "found 5, allowed is a list, each a number; did you mean [5]?")]),
        (tuple[float, ...], [1, "a", None], [
            ("1", "found the text 'a', allowed is a number, such as 0.001"),
            ("2", "found null, allowed is a number, such as 0.001"),
        ]),
        (tuple[NonNegativeFloat, ...] | None, [1, -1], [("1", "found -1, allowed is a number, at least 0")]),
        (
            tuple[PositiveFloat, PositiveFloat],
            [1],
            [("", "found the list [1], allowed is a list of 2, each a number, above 0")],
        ),
        (tuple[tuple[int, ...], ...], [[1], [2, "x"]], [
            ("1.1", "found the text 'x', allowed is a whole number, such as 10")]),
        (dict[str, float], {"a": 1, "b": "c"}, [("b", "found the text 'c', allowed is a number, such as 0.001")]),
        (PositiveFloat, "fast", [("", "found the text 'fast', allowed is a number, above 0, such as 0.001")]),
        (PositiveFloat, "1,5", [("", "found the text '1,5', allowed is a number, above 0; did you mean 1.5?")]),
        (Count | None, "None", [
            ("", "found the text 'None', allowed is a whole number, at least 1, or null; did you mean null?")]),
        (Literal["max"], "MAX", [("", "found the text 'MAX', allowed is 'max'; did you mean \"max\"?")]),
        (Probability, [0.5], [("", "found the list [0.5], allowed is a number from 0 to 1; did you mean 0.5?")]),
        (Group, {"modules": "a"}, [("factor", "is required and missing; give a number, at least 0")]),
        (tuple[Group, ...], [{"modules": "a", "factor": 1, "untl": 2}], [
            ("0.untl", "unknown key 'untl'; did you mean 'until'?")]),
        (tuple[Group, ...], [{"modules": 1, "factor": 2}, 3], [
            ("0.modules", 'found 1, allowed is text; did you mean "1"?'),
            ("1", f"found 3, allowed is {describe_type(Group)}"),
        ]),
    ])  # fmt: skip
def test_what_does_not_fit_is_named_part_by_part(annotation: Any, value: object, expected: list) -> None:
    found, misfits = check_value(annotation, value)
    assert found is value
    assert misfits == expected


def test_a_type_that_no_config_can_give_is_a_fault_and_not_a_crash() -> None:
    class Thing:
        pass

    _, misfits = check_value(Thing, 5)
    assert misfits == [("", "is of the type Thing, which a config cannot give")]


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
TYPES = st.sampled_from(
    [
        bool,
        Count,
        float,
        str,
        PositiveFloat | None,
        tuple[int, ...],
        tuple[str, float],
        list[Group],
        dict[str, Count],
        Group | int,
    ]
)


@given(TYPES, VALUES)
def test_any_value_fits_or_is_explained(annotation: Any, value: object) -> None:
    found, misfits = check_value(annotation, value)
    if misfits:
        assert all(misfit.text and "\n" not in misfit.text for misfit in misfits)
    else:
        assert check_value(annotation, found) == (found, []), "what fits, fits again"


@run_each(
    "value, words",
    [
        (None, "null"),
        (True, "true"),
        (0.1, "0.1"),
        ("a", "the text 'a'"),
        ("a" * 99, "the text '" + "a" * 59 + "..."),
        ("\x1b[2J", "the text '\\x1b[2J'"),
        ([], "an empty list"),
        ([1, "a"], 'the list [1, "a"]'),
        ({}, "an empty mapping"),
        ({"a": 1, "b": 2}, "a mapping with a, b"),
    ],
)
def test_values_as_a_user_wrote_them(value: object, words: str) -> None:
    assert format_value(value) == words


@pytest.mark.parametrize(
    ("word", "choices", "expected"),
    [
        ("epoch", ["epochs", "every"], "; did you mean 'epochs'?"),
        ("Cross-Entropy", ["cross_entropy"], "; did you mean 'cross_entropy'?"),
        ("zzz", ["b", "a"], "; allowed: a, b"),
        ("zzz", [], ""),
    ],
)
def test_the_nearest_word(word: str, choices: list[str], expected: str) -> None:
    assert suggest(word, choices) == expected
    assert suggest("zzz", choices, otherwise="; none") == "; none"


def test_parameters_of_functions_classes_and_dataclasses() -> None:
    def function(*, a: int, b: Count = 3) -> None: ...

    class Plain:
        """Without a constructor."""

    @dataclass(kw_only=True)
    class Data:
        a: int
        b: str = "x"

    assert [(p.name, p.is_required) for p in signature_parameters(function).values()] == [("a", True), ("b", False)]
    assert signature_parameters(function)["b"].annotation == Count
    assert signature_parameters(function)["a"].default is inspect.Parameter.empty
    assert signature_parameters(Plain) == {}
    assert [(p.name, p.annotation) for p in signature_parameters(Data).values()] == [("a", int), ("b", str)]


def test_a_folder_is_suggested_by_its_own_name() -> None:
    """A long folder before both names made any run beside it alike: runs/photos for runs/scans."""
    folder = Path("/home/somebody/projects/perception/runs")
    others = [folder / "photos", folder / "rooms"]
    assert suggest_beside(folder / "scans", others) == ""
    assert suggest_beside(folder / "photo", others) == f"; did you mean '{folder / 'photos'}'?"
    assert suggest_beside(Path("rom"), [Path("rooms")]) == "; did you mean 'rooms'?"
    assert suggest_beside(Path("rooms"), []) == ""
