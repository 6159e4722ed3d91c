"""Old names of members and keywords: read, set, overridden and given as before."""

from __future__ import annotations

import inspect
from typing import Any, Generic, NamedTuple, TypeVar

import pytest

from sightline.aliases import keep_old_keywords, keep_old_members, old_names

T = TypeVar("T")


@keep_old_members(speak="say", loud="is_loud", smell="scent")
class Animal(Generic[T]):
    is_loud = False

    def __init__(self, *, is_loud: bool = False) -> None:
        self.is_loud = is_loud

    def say(self) -> str:
        return "nothing"

    def tell(self) -> str:
        return self.say()


@keep_old_members(places="indices")
class Kept(NamedTuple):
    indices: list[int]
    scores: list[float]


class Dog(Animal[int]):
    loud = True

    def speak(self) -> str:
        return f"woof, not {super().speak()}"


def test_a_subclass_may_override_an_old_name() -> None:
    dog = Dog(is_loud=True)
    assert dog.tell() == dog.say() == dog.speak() == "woof, not nothing"
    assert Dog.is_loud is True
    assert Dog.__parameters__ == ()


def test_an_old_name_is_read_set_and_given() -> None:
    animal: Any = Animal(loud=True)
    assert animal.is_loud is animal.loud is True
    animal.loud = False
    assert animal.is_loud is False
    kept: Any = Kept(places=[1], scores=[0.5])
    assert kept.places == kept.indices == [1]
    assert kept == Kept([1], [0.5])


def test_an_old_name_of_an_optional_member_is_there_where_a_subclass_defines_it() -> None:
    class Skunk(Animal[int]):
        def smell(self) -> str:
            return "bad"

    assert not hasattr(Animal(), "smell")
    assert not hasattr(Animal(), "scent")
    skunk: Any = Skunk()
    assert skunk.scent() == skunk.smell() == "bad"


def test_a_subclass_of_a_subclass_may_override_the_new_name() -> None:
    class Puppy(Dog):
        def say(self) -> str:
            return "yip"

    assert Puppy().speak() == Puppy().tell() == "yip"


def test_keywords_have_their_old_names_and_the_signature_the_new_ones() -> None:
    @keep_old_keywords(most="max_length")
    def shorten(text: str, *, max_length: int) -> str:
        return text[:max_length]

    assert shorten("abc", most=2) == shorten("abc", max_length=2) == "ab"  # type: ignore[call-arg]
    assert list(inspect.signature(shorten).parameters) == ["text", "max_length"]
    with pytest.raises(TypeError, match="shorten: most and max_length name one argument; give only the second"):
        shorten("abc", most=2, max_length=3)  # type: ignore[call-arg]


def test_a_name_that_never_was_is_missing() -> None:
    with pytest.raises(AttributeError, match=r"module 'sightline\.contract\.types' has no attribute 'Gone'"):
        old_names("sightline.contract.types")("Gone")
