"""Names to builders: what may be registered, what a config may give, what the framework gives."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Annotated, Any, get_args

import pytest
from annotated_types import Ge, Gt, Le, Lt

from sightline.contract import registry
from sightline.contract.arguments import PointEncoder, TransformBlock
from sightline.contract.binding import UnknownKeyError
from sightline.contract.errors import CheckpointError, ConfigError, DataError
from sightline.contract.facts import check_data_facts
from sightline.contract.registry import REGISTRIES, Need, Registry, find_mismatch, locate_errors
from sightline.contract.types import ComponentConfig, SourceLocation
from tests.cases import run_each

HERE = SourceLocation("mine.yaml", 3, "model")


@pytest.fixture
def empty_registry() -> Registry:
    """A registry of its own, whose room holds nothing."""
    return Registry("models", "model", modules={})


def block(name: str, **arguments: Any) -> ComponentConfig:
    origins = {key: SourceLocation("mine.yaml", 4 + i, f"model.{key}") for i, key in enumerate(arguments)}
    return ComponentConfig(name, arguments, location=HERE, origins=origins)


def make(*, num_classes: int, width: int = 3, names: tuple[str, ...] = ()) -> dict[str, Any]:
    """A part.

    Source: nobody 2020, eq. 1;
    in two lines.
    """
    return {"num_classes": num_classes, "width": width, "names": names}


# --- registering -----------------------------------------------------------------------------------------------------


def positional(width: int) -> None: ...


class Positional:
    def __init__(self, width: int, how: str | None = "a") -> None: ...


class Starred:
    def __init__(self, *widths: int) -> None: ...


def starred(*, width: int, **rest: int) -> None: ...
def bare(*, width) -> None: ...  # type: ignore[no-untyped-def]
def reserved(*, name: str) -> None: ...
def eleven(
    *, a: int, b: int, c: int, d: int, e: int, f: int, g: int, h: int, i: int, j: int, k: int
) -> None: ...  # fmt: skip


@pytest.mark.parametrize(
    ("builder", "expected"),
    [
        (positional, r"every argument must be keyword-only and named .*; write `def positional\(\*, width: int\)`$"),
        (starred, r"every argument must be keyword-only and named .*; write `def starred\(\*, width: int\)`$"),
        (Positional, r".*; write `def __init__\(self, \*, width: int, how: str \| None = 'a'\)`$"),
        (Starred, r".*; write `def __init__\(self\)`$"),
        (bare, "annotate the argument 'width'"),
        (reserved, "'name' has a meaning of its own in a config; rename it"),
        (eleven, "11 arguments, at most 10"),
    ],
)
def test_signatures_that_are_no_schema_are_refused_at_definition(
    empty_registry: Registry, builder: Callable[..., Any], expected: str
) -> None:
    with pytest.raises(AssertionError, match=f"'bad': {expected}"):
        empty_registry.add("bad")(builder)


def test_the_weight_of_a_loss_is_not_an_argument_of_it() -> None:
    def weighted(*, weight: float) -> None: ...

    with pytest.raises(AssertionError, match="'weight' has a meaning of its own in a config"):
        Registry("losses", "loss", modules={}).add("bad")(weighted)


def test_one_name_is_one_part(empty_registry: Registry) -> None:
    empty_registry.add("mine")(make)
    empty_registry.add("mine")(make)  # the same one, when its module is run again
    with pytest.raises(AssertionError, match=r"the model 'mine' is registered already, by tests\.test_registry\.make"):
        empty_registry.add("mine")(lambda: None)


def test_summary_and_source_come_from_the_docstring(empty_registry: Registry) -> None:
    empty_registry.add("mine")(make)
    entry = empty_registry.get_entry("mine")
    assert (entry.summary, entry.source) == ("A part.", "nobody 2020, eq. 1; in two lines.")
    assert (list(entry.arguments), entry.facts) == (["width", "names"], ["num_classes"])


# --- what a config may give ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("component", "expected"),
    [
        (block("mine", widht=3), ["4: widht: 'mine' has no such argument; did you mean 'width'?"]),
        (block("mine", zzz=3), ["4: zzz: 'mine' has no such argument; allowed: width, names"]),
        (block("mine", num_classes=3), ["4: num_classes: 'num_classes' is given by the data set; remove it here"]),
        (block("mine", up_axis="z"), ["4: up_axis: 'up_axis' is given by the data set; remove it here"]),
        (block("mine", world=3), ["4: world: 'world' is given by the run; remove it here"]),
        (
            block("mine", width="3", names=["a", 5]),
            [
                "4: width: found the text '3', allowed is a whole number; did you mean 3?",
                '5: names.1: found 5, allowed is text; did you mean "5"?',
            ],
        ),
        (
            block("min"),
            ["3: name: no model is called 'min'; did you mean 'mine'? Parts of your own need --plugin FILE.py"],
        ),
        (
            block("zzz"),
            ["3: name: no model is called 'zzz'; there are mine, strict; parts of your own need --plugin FILE.py"],
        ),
        (block("strict"), ["3: lr: is required and missing: 'strict' needs a number here"]),
    ],
)  # fmt: skip
def test_faults_of_a_block_have_place_and_remedy(
    empty_registry: Registry, component: ComponentConfig, expected: list[str]
) -> None:
    empty_registry.add("mine")(make)

    @empty_registry.add("strict")
    def strict(*, lr: float) -> None: ...

    places = [line.partition(": ") for line in expected]
    lines = [f"mine.yaml:{line}: model.{text}" for line, _, text in places]
    assert [str(fault) for fault in empty_registry.bind(component).faults] == lines
    with pytest.raises(ConfigError) as error:
        empty_registry.build(component, facts={"num_classes": 5})
    assert list(error.value.faults) == lines


def test_facts_are_injected_by_name(empty_registry: Registry) -> None:
    empty_registry.add("mine")(make)
    built = empty_registry.build(block("mine", names=["a"]), facts={"num_classes": 5, "in_channels": 3})
    assert built == {"num_classes": 5, "width": 3, "names": ("a",)}


def test_a_fact_of_a_data_set_has_a_known_name() -> None:
    data = ComponentConfig("pebbles", location=SourceLocation("a.yaml", 3, path="data"))
    told = (
        "a.yaml:3: data: data set 'pebbles' states the fact 'num_clases', which is not one; did you mean 'num_classes'?"
    )
    with pytest.raises(ConfigError, match=re.escape(told)):
        check_data_facts(data, {"num_clases": 3})


def test_a_fact_that_no_one_offers_names_both_sides(empty_registry: Registry) -> None:
    empty_registry.add("mine")(make)
    with pytest.raises(ConfigError) as error:
        empty_registry.build(block("mine"), facts={"in_channels": 3, "up_axis": "z"})
    assert str(error.value) == (
        "mine.yaml:3: model: model 'mine' needs num_classes; the data set offers in_channels, up_axis"
    )


def test_an_optional_fact_may_be_absent(empty_registry: Registry) -> None:
    @empty_registry.add("tolerant")
    def tolerant(*, ignore_index: int | None = None) -> int | None:
        return ignore_index

    assert empty_registry.build(block("tolerant"), facts={}) is None
    assert empty_registry.build(block("tolerant"), facts={"ignore_index": 255}) == 255


# --- blocks in blocks ------------------------------------------------------------------------------------------------


def made_of(*, inner: PointEncoder | None = None, several: tuple[TransformBlock, ...] = ()) -> tuple[Any, ...]:
    """A part made of parts."""
    return inner, several


def test_a_block_may_be_null_where_it_says_so(empty_registry: Registry) -> None:
    empty_registry.add("made")(made_of)
    assert empty_registry.build(block("made"), facts={}) == (None, ())
    assert empty_registry.build(block("made", inner=None), facts={}) == (None, ())
    with pytest.raises(ConfigError, match=r"mine\.yaml:4: model\.inner: found the text 'dgcnn', allowed is a block"):
        empty_registry.build(block("made", inner="dgcnn"), facts={})


def test_blocks_are_built_first_and_with_the_same_facts(empty_registry: Registry) -> None:
    empty_registry.add("made")(made_of)
    given = block("made", inner={"name": "dgcnn", "embedding": 8}, several=[{"name": "jitter", "std": 0.5}])
    assert empty_registry.bind(given).needed_facts == {"in_channels"}
    inner, several = empty_registry.build(given, facts={"in_channels": 6})
    assert (inner.in_channels, inner.feature_width, [each.std for each in several]) == (6, 16, [0.5])


def test_components_stand_for_blocks_too(empty_registry: Registry) -> None:
    """As a config holds them once it is read."""
    empty_registry.add("made")(made_of)
    inner, _ = empty_registry.build(
        block("made", inner=ComponentConfig("dgcnn", {"embedding": 8})), facts={"in_channels": 3}
    )
    assert inner.feature_width == 16


def test_each_value_is_checked_once(empty_registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """However deep its block is, and though it is bound, then built."""
    empty_registry.add("made")(made_of)
    checked: list[object] = []
    check = registry.check_value

    def counted(annotation: Any, value: object) -> Any:
        checked.append(value)
        return check(annotation, value)

    monkeypatch.setattr(registry, "check_value", counted)
    given = block("made", inner={"name": "dgcnn", "embedding": 8}, several=[{"name": "jitter", "std": 0.5}])
    bound = empty_registry.bind(given)
    bound.build(facts={"in_channels": 3})
    assert checked == [8, 0.5]
    assert [part.entry.name for part in bound.iterate()] == ["made", "dgcnn", "jitter"]


def test_what_is_needed_is_offered_or_named() -> None:
    met = Need("priors", "mine", {"anchors", "points"}, "Head", {"points"})
    unmet = Need("priors", "mine", {"anchors", "points"}, "Head", {"rays"})
    assert find_mismatch([met]) is None
    assert find_mismatch([met, unmet]) == "mine needs priors anchors or points; Head offers rays"
    assert find_mismatch([unmet._replace(offered=())]) == "mine needs priors anchors or points; Head offers none"


# --- what builders refuse --------------------------------------------------------------------------------------------


@run_each("raised, kind, expected", [
        (ConfigError("width: too odd"), ConfigError, "mine.yaml:4: model.width: too odd"),
        (ConfigError("mine.width: too odd"), ConfigError, "mine.yaml:4: model.width: too odd"),
        (ConfigError("model.groups.0.modules: none"), ConfigError, "mine.yaml:5: model.groups.0.modules: none"),
        (ConfigError("model.other: absent"), ConfigError, "mine.yaml:3: model.other: absent"),
        (ConfigError("mine: low above high"), ConfigError, "mine.yaml:3: model: mine: low above high"),
        (ConfigError("no place at all"), ConfigError, "mine.yaml:3: model: no place at all"),
        (ConfigError("width: a", "b"), ConfigError, "mine.yaml:4: model.width: a\nmine.yaml:3: model: b"),
        (ValueError("p > 1"), ConfigError, "mine.yaml:3: model: 'mine' refuses its arguments: p > 1"),
        (DataError("/data: no such folder"), DataError, "mine.yaml:3: model: /data: no such folder"),
        (UnknownKeyError("losses.a needs 'b'"), UnknownKeyError, "losses.a needs 'b'"),
        (CheckpointError("a: damaged"), CheckpointError, "a: damaged"),
        (RuntimeError("ours"), RuntimeError, "ours"),
    ])  # fmt: skip
def test_errors_of_builders_get_the_place_of_their_block(
    raised: Exception, kind: type[Exception], expected: str
) -> None:
    with pytest.raises(kind) as error, locate_errors(block("mine", width=1, groups=[])):
        raise raised
    assert str(error.value) == expected


def test_a_missing_folder_is_blamed_on_the_argument_that_named_it() -> None:
    with (
        pytest.raises(DataError, match=r"^mine\.yaml:5: model\.views: /views: is not a view store$"),
        locate_errors(block("m", root="/data", views="/views")),
    ):
        raise DataError("/views: is not a view store")


# --- what there is ---------------------------------------------------------------------------------------------------


@run_each("kind", REGISTRIES)
def test_built_in_parts_are_found_lazily_and_described(kind: str) -> None:
    names = REGISTRIES[kind].names()
    assert names == sorted(names)
    assert names
    for name in names:
        entry = REGISTRIES[kind].get_entry(name)
        assert not entry.summary.endswith(","), f"{name}: the first line of the docstring stands by itself"
        assert entry.source or not entry.builder.__module__.startswith("sightline."), f"{name}: names no source"


def test_bounds_of_every_component_hold_for_calls_from_python() -> None:
    """A number beside a bound is refused before anything else, with the argument and its range; null is no number."""
    num_checked = 0
    for kind, parts in REGISTRIES.items():
        for name in parts.names():
            entry = parts.get_entry(name)
            for argument, parameter in entry.parameters.items():
                marks = [
                    mark for part in (parameter.annotation, *get_args(parameter.annotation)) for mark in marks_of(part)
                ]
                for bad in [number for mark in marks for number in beside(mark)]:
                    subject = f"{kind} {name}.{argument}={bad}"
                    with pytest.raises(ValueError, match=rf"^\w+: {argument}: found {bad}, allowed is ") as refused:
                        entry.builder(**{argument: bad})
                    assert "\n" not in str(refused.value), subject
                    num_checked += 1
    assert num_checked > 500


def marks_of(annotation: Any) -> tuple[Any, ...]:
    return getattr(annotation, "__metadata__", ())


def beside(mark: Any) -> list[float]:
    """Numbers just outside of a bound."""
    match mark:
        case Ge(bound):
            return [bound - 1, -math.inf]
        case Gt(bound):
            return [bound]
        case Le(bound):
            return [bound + 1, math.inf]
        case Lt(bound):
            return [bound, math.nan]
    return []


def test_lists_and_defaults_are_held_to_bounds_as_in_a_config(empty_registry: Registry) -> None:
    @empty_registry.add("edged")
    def edged(
        *, edges: tuple[Annotated[float, Gt(0)], ...] | None = None, share: Annotated[float, Ge(0)] = -1.0
    ) -> Any:
        return edges, share

    assert edged(edges=(1, 2.5), share=0) == ((1, 2.5), 0)
    assert edged(edges=None) == (None, -1.0), "a default is the builder's own"
    assert edged(edges=[1.0, 2.0]) == ([1.0, 2.0], -1.0)
    assert empty_registry.build(block("edged", edges=[1, 2]), facts={}) == ((1.0, 2.0), -1.0)
    with pytest.raises(ValueError, match=r"edged: edges\.1: found 0\.0, allowed is a number, above 0"):
        edged(edges=(1.0, 0.0))
