"""Plain XML of user-given files, element by element: no entities, as no document type declares any; size is bounded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from sightline.contract.errors import DataError
from sightline.contract.regular_files import MAX_DEPTH
from sightline.store.files.input_files import read_file

_CHUNK_BYTES = 2**20
_MAX_TOKEN_BYTES = 2**24
"""Maximal length of a tag or another unit of markup, which Expat reads again with each chunk until it is complete."""
_MAX_ELEMENTS = 2**18
"""Maximal number of elements in an element directly within the outermost one, all of which are in memory."""


@dataclass(slots=True)
class XmlElement:
    """Element of an XML document: its name, attributes, line in the file, elements within it, and its own text."""

    tag: str
    attributes: dict[str, str]
    line: int
    children: list[XmlElement] = field(default_factory=list)
    content: str = ""

    def find_all(self, tag: str) -> list[XmlElement]:
        """Return the elements with this name directly within the element."""
        return [child for child in self.children if child.tag == tag]

    def text(self, *tags: str) -> str:
        """Return the text of the first element of a path of names, without white space around it; "" without one."""
        element: XmlElement | None = self
        for tag in tags:
            element = next((child for child in element.children if child.tag == tag), None) if element else None
        return element.content.strip() if element else ""


def iterate_xml(path: Path) -> Iterator[XmlElement]:
    """Yield the outermost element of an XML file, without those within it, then each element directly within it.

    At most one of the latter is in memory. Raises DataError with the line for a DOCTYPE that is more than a name, for
    elements more than `MAX_DEPTH` deep in each other, for tags and numbers of elements beyond all use, and for anything
    but XML in an encoding that Expat reads (UTF-8, UTF-16, those of one byte a character).
    """
    content, tree = read_file(path), _Tree(path)
    try:
        for start in range(0, len(content), _CHUNK_BYTES):
            tree.feed(content[start : start + _CHUNK_BYTES])
            yield from tree.take()
        tree.feed(b"", is_last=True)
    except expat.ExpatError as error:
        fault = expat.ErrorString(error.code)
        raise DataError(f"{path}:{error.lineno}: does not read as XML ({fault}); export it again") from None
    except (LookupError, UnicodeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}:1: is text in another encoding ({error}); save it as UTF-8") from None
    yield from tree.take()


def read_xml(path: Path) -> XmlElement:
    """Read the outermost element of an XML file with all elements within it. Raises DataError as `iterate_xml`."""
    outermost, *children = iterate_xml(path)
    outermost.children = children
    return outermost


class _Tree:
    """Elements that Expat has opened, and those that are complete and not yet taken."""

    def __init__(self, path: Path) -> None:
        self._path, self._fed, self._count = path, 0, 0
        self._complete: list[XmlElement] = []
        self._open: list[tuple[XmlElement, list[str]]] = []
        self._parser = parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler, parser.EndElementHandler = self._begin, self._end
        parser.CharacterDataHandler = self._add_text
        parser.StartDoctypeDeclHandler, parser.EntityDeclHandler = self._check_type, self._refuse_type

    def feed(self, content: bytes, *, is_last: bool = False) -> None:
        """Read the next bytes. Raises DataError for a bound, ExpatError and others for anything but XML."""
        self._fed += len(content)
        self._parser.Parse(content, is_last)
        if self._fed - self._parser.CurrentByteIndex > _MAX_TOKEN_BYTES:
            raise self._fault(f"is followed by a tag of more than {_MAX_TOKEN_BYTES:,} bytes; export the file again")

    def take(self) -> list[XmlElement]:
        """Return the complete elements, and forget them."""
        complete, self._complete = self._complete, []
        return complete

    def _begin(self, tag: str, attributes: dict[str, str]) -> None:
        depth = len(self._open)
        self._count = self._count + 1 if depth > 1 else 0
        if depth >= MAX_DEPTH:
            raise self._fault(f"elements are nested more than {MAX_DEPTH} deep; export the file again")
        if self._count > _MAX_ELEMENTS:
            raise self._fault(f"more than {_MAX_ELEMENTS:,} elements are in one; export the file in parts")
        element = XmlElement(tag, attributes, self._parser.CurrentLineNumber)
        if depth == 0:
            self._complete.append(element)
        elif depth > 1:
            self._open[-1][0].children.append(element)
        self._open.append((element, []))

    def _end(self, tag: str) -> None:
        element, pieces = self._open.pop()
        element.content = "".join(pieces)
        if len(self._open) == 1:
            self._complete.append(element)

    def _add_text(self, text: str) -> None:
        self._open[-1][1].append(text)

    def _check_type(self, name: str, system: str | None, public: str | None, has_subset: int) -> None:
        """Accept a document type that is a name alone, as of Boost's archives: it brings no entities."""
        if has_subset or system or public:
            self._refuse_type()

    def _refuse_type(self, *_: object) -> None:
        raise self._fault("has a DOCTYPE, whose entities are not read; remove it from the file")

    def _fault(self, text: str) -> DataError:
        return DataError(f"{self._path}:{self._parser.CurrentLineNumber}: {text}")
