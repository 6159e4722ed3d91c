"""Every argument of every component, and every option of preparing, says in a sentence what it does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sightline.config.argument_texts import explain_arguments, read_texts, strip_links
from sightline.contract.registry import REGISTRIES
from sightline.contract.schema import signature_parameters
from tests.command import succeed

_GIVEN = {"source", "target", "name", "progress"}
"""What `data prepare` gives itself."""


def list_arguments(kind: str) -> Iterator[tuple[str, dict[str, str], list[str]]]:
    """Yield the name of each component of a kind, or of each set to prepare, its explained and all its arguments."""
    registry = REGISTRIES["data" if kind == "prepare" else kind]
    for name in registry.modules:
        entry = registry.get_entry(name)
        arguments = [*entry.arguments]
        if kind == "prepare":
            prepare = getattr(registry.get_class(name), "prepare", None)
            arguments = [key for key in signature_parameters(prepare) if key not in _GIVEN] if prepare else []
        yield name, explain_arguments(kind, name, entry.builder, arguments), arguments


@pytest.mark.parametrize("kind", ["prepare", *REGISTRIES])
def test_every_argument_has_a_sentence(kind: str) -> None:
    missing, unfit = [], []
    for name, texts, arguments in list_arguments(kind):
        missing += [f"{name}.{argument}" for argument in arguments if argument not in texts]
        plain = {key: strip_links(text) for key, text in texts.items()}
        unfit += [
            f"{name}.{key}: {text}"
            for key, text in plain.items()
            if not 2 <= len(text.split()) <= 40 or text.endswith(".") or "](" in text or "\n" in text
        ]
    assert not missing, "say what they do in sightline/config/argument_texts.json"
    assert not unfit


def test_every_sentence_is_of_an_argument() -> None:
    used: dict[str, set[str]] = {section: set() for section in read_texts()}
    for kind in ("prepare", *REGISTRIES):
        section = kind if kind in used else "parts"
        for name, _, arguments in list_arguments(kind):
            keys = ([f"{name}.{key}", f"{kind}.{key}", key] for key in arguments)
            used[section] |= {next(key for key in choices if key in read_texts()[section]) for choices in keys}
    assert used == {section: set(texts) for section, texts in read_texts().items()}


class Layer:
    """A base.

    `depth` and `width` are the layers and their channels. `rate` is a share; it falls.
    """


class Own(Layer):
    """A part of one's own. The `size` is not explained here.

    `width` is the number of channels:
    of every layer.
    """


def test_a_part_of_ones_own_is_explained_by_its_docstring_and_those_of_its_bases() -> None:
    found = explain_arguments("models", "own", Own, ["width", "depth", "size", "rate"])
    assert found == {
        "width": "the number of channels: of every layer",
        "depth": "`depth` and `width` are the layers and their channels",
        "rate": "a share; it falls",
    }


def test_list_shows_what_arguments_do(tmp_path: Path) -> None:
    done = succeed("list", "dgcnn", "--json", tmp_path / "list.json")
    shown = " ".join(done.out.split())
    assert "dropout: 0.5 share of values that are set to 0 in training (a number from 0 to 1)" in shown
    rows = json.loads((tmp_path / "list.json").read_text())["models"][0]["arguments"]
    assert {row["name"]: row["meaning"] for row in rows}["dropout"] == "share of values that are set to 0 in training"
