"""Mutations of files: bytes flipped, cut, doubled and overwritten, numbers and words of text changed, JSON of other
types, YAML of merge keys and aliases."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["ALIASES", "MERGES", "mutated"]

_SIZES = (0, 1, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)
_DIGITS = b"9" * 5000
"""More than Python turns into a number."""
_WORDS = (
    *(b"nan", b"inf", b"-inf", b"-1", b"0", b"1e308", b"-1e308", b"1e400", b"999999999999999999999", b"4294967296"),
    *(b"", _DIGITS, b"-" + _DIGITS, b"0x1F", "\u00b2".encode(), "\u0663".encode(), b"[1]", b'"x"', b"{}", b"~"),
)
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
_VALUE = re.compile(rb"^[ \w]+: +([^\s#].*)$", re.MULTILINE)
_WORD = re.compile(rb"[^\s,:]+")
_DEEP = 100_000
_OTHERS: tuple[Any, ...] = (
    *(None, True, -1, 0, 1.5, 2**70, 1e300, float("nan"), "", "x", "../x", "\n\x1b[31m", [], {}, [[]]),
    *([None], {"": None}, "[" * 300, [1] * 300),
    *(1e308, -1e308, 2**64, "\ud800", "\udcff", "\ud800.png", "x" * 5000, "9" * 5000, "occluded>" + "9" * 5000, False),
)
_LEVELS = 9
_TENFOLD = [", ".join([f"*m{level}"] * 10) for level in range(_LEVELS)]
ALIASES = "m0: &m0 [x]\n" + "".join(f"m{n + 1}: &m{n + 1} [{each}]\n" for n, each in enumerate(_TENFOLD))
MERGES = "m0: &m0 {x: 1}\n" + "".join(f"m{n + 1}: &m{n + 1} {{<<: [{each}]}}\n" for n, each in enumerate(_TENFOLD))


def mutated(content: bytes, draw: random.Random) -> bytes:
    """The content after one mutation, or up to three."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        content = draw.choice(_MUTATIONS)(content, draw)
    return content


def _flipped(content: bytes, draw: random.Random) -> bytes:
    if not content:
        return content
    changed = bytearray(content)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _flipped_early(content: bytes, draw: random.Random) -> bytes:
    return _flipped(content[:200], draw) + content[200:]


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def _doubled(content: bytes, draw: random.Random) -> bytes:
    start, stop = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    return content[:stop] + content[start:]


def _left_out(content: bytes, draw: random.Random) -> bytes:
    start, stop = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    return content[:start] + content[min(stop, start + 64) :]


def _resized(content: bytes, draw: random.Random) -> bytes:
    """A binary number near the start, where counts are, set to an extreme one."""
    length = draw.choice((1, 2, 4, 8))
    place = draw.randrange(max(1, min(len(content), 400)))
    number = (draw.choice(_SIZES) % 256**length).to_bytes(length, draw.choice(("little", "big")))
    return content[:place] + number + content[place + length :]


def _renumbered(content: bytes, draw: random.Random) -> bytes:
    return _replaced(content, draw, _NUMBER, draw.choice(_WORDS))


def _reworded(content: bytes, draw: random.Random) -> bytes:
    return _replaced(content, draw, _WORD, draw.choice((*_WORDS, b"\xff\xfe", b"x" * 5000, b"\0")))


def _replaced(content: bytes, draw: random.Random, pattern: re.Pattern[bytes], word: bytes) -> bytes:
    found = list(pattern.finditer(content[:20_000]))
    if not found:
        return _flipped(content, draw)
    place = draw.choice(found)
    return content[: place.start()] + word + content[place.end() :]


def _retyped(content: bytes, draw: random.Random) -> bytes:
    """Of JSON: a value that is of another type, lost, or nested deeply; other files are flipped."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return _flipped(content, draw)
    places = list(_places(document))
    if not places or draw.random() < 0.02:
        return json.dumps(draw.choice(_OTHERS)).encode()
    holder, key = draw.choice(places)
    kind = draw.random()
    if kind < 0.15:
        del holder[key]
    elif kind < 0.2:
        holder[key] = "DEEP"
        depth = draw.choice((200, 900, _DEEP))
        return json.dumps(document).encode().replace(b'"DEEP"', b"[" * depth + b"]" * depth)
    elif kind < 0.25:
        holder[key] = "DIGITS"
        return json.dumps(document).encode().replace(b'"DIGITS"', draw.choice((b"", b"-")) + _DIGITS)
    else:
        holder[key] = draw.choice(_OTHERS)
    return json.dumps(document).encode()


def _entangled(content: bytes, draw: random.Random) -> bytes:
    """Of YAML: anchors that expand a thousand millionfold come before it, and one of its values names the last, or is
    one that contains itself; other files are flipped."""
    found = list(_VALUE.finditer(content))
    if not found or content.lstrip()[:1] in (b"{", b"["):
        return _flipped(content, draw)
    before, word = draw.choice(((ALIASES, "*m9"), (MERGES, "*m9"), (MERGES, "{<<: *m9}"), ("", "&s [*s]")))
    place = draw.choice(found)
    return before.encode() + content[: place.start(1)] + word.encode() + content[place.end(1) :]


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every mapping and list with every key or place in it."""
    waiting = [document]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            yield holder, key
            waiting.append(holder[key])


_MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_flipped, _flipped_early, _cut, _doubled, _left_out, _resized, _renumbered, _reworded),
    *(_renumbered, _retyped, _retyped, _retyped, _entangled),
)
