"""XML read element by element: text and lines as they stand, and documents that would expand, nest or run on."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sightline.contract.errors import DataError
from sightline.store.files.xml_files import XmlElement, _Tree, iterate_xml, read_xml
from tests.cases import run_each
from tests.limits import limited

_LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
_BOMB = f'<!DOCTYPE a [<!ENTITY l0 "lol">{_LAUGHS}]>\n<a>&l9;</a>'


def _compare(ours: XmlElement, theirs: ElementTree.Element) -> None:
    assert (ours.tag, ours.attributes, ours.content) == (theirs.tag, theirs.attrib, _own_text(theirs))
    for child, other in zip(ours.children, theirs, strict=True):
        _compare(child, other)


def _own_text(element: ElementTree.Element) -> str:
    return (element.text or "") + "".join(child.tail or "" for child in element)


@run_each("encoding", ("utf-8", "utf-16", "latin-1"))
def test_elements_are_those_of_the_standard_library(encoding: str, tmp_path: Path) -> None:
    text = (
        f'<?xml version="1.0" encoding="{encoding}"?>\n<a b="1&amp;2">x<c>\n<d e="é"/> y &lt;<!-- z --></c>w<c/></a>\n'
    )
    path = tmp_path / "a.xml"
    path.write_bytes(text.encode(encoding))
    document = read_xml(path)
    _compare(document, ElementTree.fromstring(path.read_bytes()))
    assert [each.line for each in document.children] == [2, 3]
    assert [each.tag for each in iterate_xml(path)] == ["a", "c", "c"]
    assert (document.text("c"), document.text("c", "d"), document.text("d", "c")) == ("y <", "", "")


_DEEP, _LONG = b"<a>" * 100_000, b"<a>" + b"<!--" + b"x" * 20_000_000
REFUSED = {
    "expanding": (_BOMB.encode(), "a.xml:1: has a DOCTYPE, whose entities are not read; remove it from the file"),
    "expanding, in UTF-16": (_BOMB.encode("utf-16"), "a.xml:1: has a DOCTYPE"),
    "external": (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "a.xml:1: has a DOCTYPE"),
    "deep": (b"\n" + _DEEP, "a.xml:2: elements are nested more than 200 deep"),
    "long": (_LONG, "a.xml:1: is followed by a tag of more than 16,777,216 bytes"),
    "many": (b"<a><b>" + b"<c/>" * 300_000, "a.xml:1: more than 262,144 elements are in one"),
    "cut": (b"<a>\n<b/>", "a.xml:2: does not read as XML (no element found); export it again"),
    "NUL": (b"<a>\0</a>", "a.xml:1: does not read as XML (not well-formed (invalid token))"),
    "undefined": (b"<a>&lol;</a>", "a.xml:1: does not read as XML (undefined entity)"),
    "Chinese": ('<?xml version="1.0" encoding="gbk"?><a>\u4e2d</a>'.encode("gbk"), "is text in another encoding"),
    "unknown": (b'<?xml version="1.0" encoding="none"?><a/>', "is text in another encoding (unknown encoding: none)"),
    "empty": (b"", "a.xml:1: does not read as XML (no element found)"),
}


@run_each("kind", REFUSED)
def test_refused_in_a_line_and_soon(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After no more bytes and elements than the bounds let through."""
    content, text = REFUSED[kind]
    (tmp_path / "a.xml").write_bytes(content)
    feed, begin, fed, begun = _Tree.feed, _Tree._begin, [], []
    monkeypatch.setattr(_Tree, "feed", lambda tree, piece, **last: fed.append(len(piece)) or feed(tree, piece, **last))
    monkeypatch.setattr(_Tree, "_begin", lambda tree, *element: begun.append(element[0]) or begin(tree, *element))
    with limited(), pytest.raises(DataError, match=re.escape(text)) as refused:
        read_xml(tmp_path / "a.xml")
    assert str(refused.value).isprintable()
    assert sum(fed) <= 2**24 + 2 * 2**20
    assert len(begun) <= 2**18 + 200
