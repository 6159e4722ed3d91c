"""Keys find parameters by name, and a mismatch names both sides before a step is taken."""

from __future__ import annotations

from typing import TypedDict

import pytest

from sightline.binding import AvailableKeys, UnknownKeyError, bind, declared_outputs
from sightline.errors import ConfigError

BATCH = AvailableKeys("data set 'scans'", {"points", "offsets", "label"})
OUTPUTS = AvailableKeys("model 'salsanext'", {"logits"})


def test_parameters_are_bound_and_called_by_name() -> None:
    def loss(*, logits: int, label: int) -> str:
        return f"{logits} for {label}"

    bound = bind(loss, BATCH, OUTPUTS, owner="losses.mine")
    assert bound.names == ("logits", "label")
    assert bound({"label": 3, "points": 0, "offsets": 0}, {"logits": 4}) == "4 for 3"


def test_what_is_not_named_is_not_handed_over() -> None:
    bound = bind(lambda *, label: label, BATCH, owner="losses.mine")
    assert bound.select({"label": 1, "points": 2}) == {"label": 1}


def test_a_key_that_nobody_offers_names_both_sides() -> None:
    with pytest.raises(UnknownKeyError) as error:
        bind(lambda *, logits, labels: None, BATCH, OUTPUTS, owner="losses.cross_entropy")
    assert str(error.value) == (
        "losses.cross_entropy needs 'labels'; data set 'scans' offers label, offsets, points; "
        "model 'salsanext' offers logits"
    )


def test_an_offer_of_nothing_is_said() -> None:
    with pytest.raises(UnknownKeyError, match="needs 'a'; model 'mute' offers nothing"):
        bind(lambda *, a: None, AvailableKeys("model 'mute'", ()), owner="losses.mine")


@pytest.mark.parametrize("default", [False, True])
def test_a_key_that_two_sides_offer_names_both_even_where_it_is_optional(default: bool) -> None:
    def needs(*, label: int) -> None: ...
    def may_take(*, label: int = 0) -> None: ...

    other = AvailableKeys("model 'echo'", {"label"})
    with pytest.raises(UnknownKeyError) as error:
        bind(may_take if default else needs, BATCH, other, owner="metrics.mine")
    assert str(error.value) == (
        "metrics.mine takes 'label', which data set 'scans' and model 'echo' both offer; rename one of them"
    )


def test_a_key_that_two_sides_offer_harms_nobody_who_does_not_take_it() -> None:
    bind(lambda *, points: None, BATCH, AvailableKeys("model 'echo'", {"label"}), owner="metrics.mine")


def test_an_optional_parameter_is_given_where_it_is_offered() -> None:
    def forward(*, points: int, features: int = -1) -> int:
        return features

    assert bind(forward, BATCH, owner="model")({"points": 1, "offsets": 2, "label": 3}) == -1
    offer = AvailableKeys("data set 'rich'", {"points", "features"})
    assert bind(forward, offer, owner="model")({"points": 1, "features": 7}) == 7


def test_parameters_given_elsewhere_are_skipped() -> None:
    def update(self: object, state: dict, *, label: int) -> None: ...

    assert bind(update, BATCH, owner="metrics.mine", exclude=("state",)).names == ("label",)


def test_parameters_without_names_are_a_broken_promise() -> None:
    def anything(**batch: int) -> None: ...
    def rows(*batch: int) -> None: ...

    for function in (anything, rows):
        with pytest.raises(AssertionError, match="parameters must be named"):
            bind(function, BATCH, owner="losses.mine")


class Output(TypedDict):
    logits: int
    feature_transform: int


def test_outputs_are_read_from_the_annotation() -> None:
    def forward(*, points: int) -> Output: ...  # type: ignore[empty-body]

    assert declared_outputs(forward, owner="model 'mine'") == {"logits", "feature_transform"}


def test_a_forward_that_does_not_say_what_it_returns_is_refused() -> None:
    def silent(*, points: int): ...  # type: ignore[no-untyped-def]
    def vague(*, points: int) -> dict[str, int]: ...  # type: ignore[empty-body]

    for function in (silent, vague):
        with pytest.raises(ConfigError, match=r"model 'mine': annotate the return value of '.*' with a TypedDict"):
            declared_outputs(function, owner="model 'mine'")
