"""Strict XML reader for the user's own files: no document types, so no entities, which can expand without end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from sightline.contract.errors import DataError
from sightline.store.files.input_files import read_file


@dataclass
class XmlElement:
    """Element of an XML document: its name, attributes, line in the file, elements within it, and own text."""

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
        elements = [self]
        for tag in tags:
            elements = elements[0].find_all(tag) if elements else []
        return elements[0].content.strip() if elements else ""


def read_xml(path: Path) -> XmlElement:
    """Read the outermost element of an XML file. Raises DataError with the line for anything but plain XML."""
    root = XmlElement("", {}, 0)
    stack = [root]
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def begin(tag: str, attributes: dict[str, str]) -> None:
        element = XmlElement(tag, attributes, parser.CurrentLineNumber)
        stack[-1].children.append(element)
        stack.append(element)

    def add_text(text: str) -> None:
        stack[-1].content += text

    def refuse(*_: object) -> None:
        raise DataError(
            f"{path}:{parser.CurrentLineNumber}: has a DOCTYPE, whose entities are not read; remove it from the file"
        )

    parser.StartElementHandler, parser.CharacterDataHandler = begin, add_text
    parser.EndElementHandler = lambda _: stack.pop()
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(read_file(path), True)
    except DataError:
        raise
    except expat.ExpatError as error:
        fault = expat.ErrorString(error.code)
        raise DataError(f"{path}:{error.lineno}: does not read as XML ({fault}); export it again") from None
    except (LookupError, ValueError) as error:
        raise DataError(f"{path}: is text in another encoding ({error}); save it as UTF-8") from None
    return root.children[0]
