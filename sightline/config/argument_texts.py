"""What the arguments of components and the options of preparing do, a sentence each, for help and tables."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any

_LEAD = re.compile(r"(?:`\w+`(?:, and |, | and )?)+")
"""Arguments that a sentence begins with: "`size` and `side_mm` are ..."."""
_ROOMS = ("sightline.areas.", "sightline.parts.", "sightline.store.")
"""Beginnings of the modules of classes whose arguments a class of somebody else may have inherited."""
_LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")


@cache
def read_texts() -> dict[str, dict[str, str]]:
    """Read the texts of the package by section: `data`, `prepare` (options of `data prepare`), `parts` (all others).

    A key is an argument, or KIND.ARGUMENT or COMPONENT.ARGUMENT where it differs there.
    """
    texts: dict[str, dict[str, str]] = json.loads(
        Path(__file__).with_name("argument_texts.json").read_text(encoding="utf-8")
    )
    return texts


def explain_arguments(kind: str, name: str, builder: Callable[..., Any], arguments: Collection[str]) -> dict[str, str]:
    """Return the sentence of each argument of a component that has one, with links as Markdown writes them.

    That of a component of the package is in its texts. Any other has the sentence of its docstring, or of a base
    class's, that begins with the argument in backticks: "`width` is ..."; one that derives from a component's class has
    that class's texts besides.
    """
    texts, sentences = read_texts()[kind if kind in ("data", "prepare") else "parts"], _read_docstrings(builder)
    is_shipped = builder.__module__.startswith("sightline.")
    parents = builder.__mro__ if inspect.isclass(builder) else ()
    own = texts if is_shipped or any(parent.__module__.startswith(_ROOMS) for parent in parents) else {}
    explained = {}
    for argument in arguments:
        text = own.get(f"{name}.{argument}") or own.get(f"{kind}.{argument}") or own.get(argument)
        choices = (text, sentences.get(argument)) if is_shipped else (sentences.get(argument), text)
        explained[argument] = choices[0] or choices[1]
    return {key: text for key, text in explained.items() if text}


def strip_links(text: str) -> str:
    """Return a text without the addresses of its links."""
    return _LINK.sub(r"\1", text)


def _read_docstrings(builder: Callable[..., Any]) -> dict[str, str]:
    """Return the first sentence about each argument, of a class, its constructor, and then its bases."""
    parts: list[Any] = [builder]
    if inspect.isclass(builder):
        parts = [part for base in builder.__mro__[:-1] for part in (base, vars(base).get("__init__"))]
    sentences: dict[str, str] = {}
    for part in parts:
        for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(getattr(part, "__doc__", None) or "")):
            for sentence in re.split(r"(?<=[.;])\s+(?=[A-Z`])", " ".join(paragraph.split())):
                lead = _LEAD.match(sentence)
                for argument in re.findall(r"`(\w+)`", lead[0]) if lead else ():
                    sentences.setdefault(argument, re.sub(r"^`\w+` (?:is|are) ", "", sentence).rstrip(".;"))
    return sentences
