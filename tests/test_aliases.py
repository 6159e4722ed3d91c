"""Old names of members and keywords: read, set, overridden and given as before."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, Generic, NamedTuple, TypeVar

import pytest
import torch

from sightline.aliases import NAMES, keep_old_keywords, keep_old_members, old_names

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


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("areas.detect.anchors", "areas.detect.anchor_coverage"),
        ("areas.detect.backbones", "areas.detect.networks"),
        ("areas.detect.combined_images", "areas.detect.transforms"),
        ("areas.detect.free_anchor", "areas.detect.free_anchor_losses"),
        ("losses.free_anchor", "areas.detect.free_anchor_losses"),
        ("metrics.box_bins", "areas.detect.metrics.label_bins"),
        ("metrics.box_header", "areas.detect.metrics.detection_curves"),
        ("metrics.detection_curves", "areas.detect.metrics.detection_curves"),
        ("models.detection.backbones", "areas.detect.networks"),
        ("models.detection.fpn", "areas.detect.networks"),
        ("tasks.detection_decoding", "areas.detect.output"),
        ("tasks.detection_pictures", "areas.detect.pictures"),
        ("tasks.target_pictures", "areas.detect.pictures"),
        ("transforms.boxes", "areas.detect.transforms"),
        ("transforms.combined_images", "areas.detect.transforms"),
    ],
)
def test_a_renamed_module_of_detection_is_imported_by_its_old_path(old: str, new: str) -> None:
    assert importlib.import_module(f"sightline.{old}") is importlib.import_module(f"sightline.{new}")


@pytest.mark.parametrize("module", ["metrics.box_ap", "output"])
def test_a_name_that_moved_to_another_file_is_found_in_the_old_one(module: str) -> None:
    old = importlib.import_module(f"sightline.areas.detect.{module}")
    for name, place in NAMES[old.__name__].items():
        there = importlib.import_module(place) if "." in place else old
        assert getattr(old, name) is getattr(there, name if "." in place else place)


def test_renamed_members_of_detection_keep_their_old_names() -> None:
    assigners, output = (
        importlib.import_module(f"sightline.areas.detect.{name}") for name in ("assigners.base", "output")
    )
    assignment = assigners.Assignment(matched=torch.zeros(2), num_candidates=torch.ones(2))
    assert assignment.num_candidates is assignment.num_claims
    detection_filter = output.DetectionFilter(None, score=0.1, per_level=7, most=3)
    assert (detection_filter.score, detection_filter.per_level, detection_filter.most) == (0.1, 7, 3)
    assert (detection_filter.min_score, detection_filter.max_detections) == (0.1, 3)
    assert detection_filter.candidates.__func__ is detection_filter.decode.__func__


def test_modules_of_a_folder_that_is_a_function_by_now_are_imported_in_every_form() -> None:
    found: dict[str, Any] = {}
    for statement in (
        "import sightline.compare.steps as module",
        "from sightline.compare import steps as module",
        "import sightline.compare.steps; module = sightline.compare.steps",
        "from sightline.compare.steps import __dict__ as names; import sightline.workbench.compare.steps as module",
    ):
        exec(statement, found)
        assert found["module"] is importlib.import_module("sightline.workbench.compare.steps"), statement
    assert callable(found["sightline"].compare)
