"""Blocks that state facts for the blocks after them: what is handed on, what a config may not give, what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch import nn

from sightline.contract import registry
from sightline.contract.arguments import BackboneBlock, Count, HeadBlock, NeckBlock
from sightline.contract.errors import ConfigError
from sightline.contract.model import Backbone, Head, Model, Neck
from sightline.contract.types import ComponentConfig, SourceLocation


class Thing(nn.Module):
    """Keeps what it was built with."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.arguments = arguments

    def forward(self) -> None: ...


class Stem(Thing, Backbone):
    def __init__(self, *, in_channels: int, width: Count = 4) -> None:
        super().__init__(in_channels=in_channels)
        self.channels, self.strides = (width, 2 * width), (8, 16)


class Silent(Thing, Backbone):
    """States nothing."""

    def __init__(self) -> None:
        super().__init__()


class Odd(Silent):
    """States a number in the place of a tuple."""

    channels = 7
    strides = (8,)


class Middle(Thing, Neck):
    def __init__(self, *, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__(channels=channels, strides=strides)
        self.channels, self.strides = (9,) * len(channels), strides


class End(Thing, Head):
    priors = "points"

    def __init__(self, *, num_classes: int, channels: tuple[int, ...], offset: float = 0.5) -> None:
        super().__init__(num_classes=num_classes, channels=channels)
        self.priors_per_cell = 1


class Whole(Thing, Model):
    def __init__(self, *, first: BackboneBlock, second: NeckBlock | None = None, third: HeadBlock) -> None:
        super().__init__(first=first, second=second, third=third)


TOYS = {
    "models": {"toy": Whole},
    "backbones": {"toy_stem": Stem, "toy_silent": Silent, "toy_odd": Odd},
    "necks": {"toy_middle": Middle},
    "heads": {"toy_end": End},
}
FACTS = {"num_classes": 3, "in_channels": 5}


@pytest.fixture(autouse=True)
def _toys() -> Iterator[None]:
    for kind, toys in TOYS.items():
        registry.REGISTRIES[kind].names()  # whatever the package has is loaded first
        for name, toy in toys.items():
            registry.REGISTRIES[kind].add(name)(toy)
    yield
    for kind, toys in TOYS.items():
        for name in toys:
            del registry.REGISTRIES[kind]._entries[name]


def whole(first: str = "toy_stem", **arguments: Any) -> ComponentConfig:
    """A block whose arguments stand in another order than those of its signature."""
    given = {"third": {"name": "toy_end"}, "second": {"name": "toy_middle"}, "first": {"name": first}} | arguments
    return ComponentConfig("toy", given, location=SourceLocation("mine.yaml", 3, "model"))


def refused(component: ComponentConfig) -> list[str]:
    with pytest.raises(ConfigError) as error:
        registry.models.build(component, facts=FACTS)
    return list(error.value.faults)


def test_each_block_is_given_what_the_one_before_it_states() -> None:
    """In the order of the builder's signature, whatever that of the config is."""
    parts = registry.models.build(whole(first="toy_stem"), facts=FACTS).arguments
    assert parts["first"].arguments == {"in_channels": 5}
    assert parts["second"].arguments == {"channels": (4, 8), "strides": (8, 16)}
    assert parts["third"].arguments == {"num_classes": 3, "channels": (9, 9)}


@pytest.mark.parametrize("second", [None, {"name": "toy_middle"}])
def test_a_block_that_is_null_is_passed_over(second: Any) -> None:
    parts = registry.models.build(whole(second=second), facts=FACTS).arguments
    assert parts["third"].arguments["channels"] == ((4, 8) if second is None else (9, 9))


def test_the_data_set_is_not_asked_for_them() -> None:
    assert registry.models.bind(whole()).needed_facts == {"num_classes", "in_channels"}
    assert set(registry.models.bind(whole()).accepted_facts) == {"num_classes", "in_channels"}
    assert list(registry.heads.get_entry("toy_end").arguments) == ["offset"]
    facts = {**FACTS, "channels": (1,), "strides": (1,)}
    assert registry.models.build(whole(), facts=facts).arguments["second"].arguments["channels"] == (4, 8)


def test_no_config_may_give_them() -> None:
    (fault,) = refused(whole(third={"name": "toy_end", "channels": [9, 9]}))
    assert fault == "mine.yaml:3: model.third.channels: 'channels' is given by an earlier block; remove it here"


def test_a_block_that_states_nothing_is_named_with_what_it_should_state() -> None:
    for more in ({}, {"second": None}):
        assert refused(whole(first="toy_silent", **more)) == [
            "mine.yaml:3: model.first: toy_silent: its base class asks it to set channels (Channels of each map), "
            "strides (Pixels of the image that a cell of each map is wide and high)"
        ]


def test_a_block_that_states_something_else_is_named() -> None:
    assert refused(whole(first="toy_odd")) == [
        "mine.yaml:3: model.second: neck 'toy_middle' takes channels of the backbone 'toy_odd' before it: found 7, "
        "allowed is a list, each a whole number; did you mean [7]?"
    ]


def test_a_block_without_one_before_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="head 'toy_end' needs channels; a block before it should state it"):
        registry.heads.build(ComponentConfig("toy_end"), facts=FACTS)


def test_the_names_stay_arguments_elsewhere() -> None:
    """`point_transformer` has strides of its own."""
    assert "strides" in registry.models.get_entry("point_transformer").arguments
