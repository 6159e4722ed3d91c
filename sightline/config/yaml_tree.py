"""Text to a tree of located values: PyYAML's safe parser with our own short table of scalars."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import yaml

from sightline.errors import ConfigError
from sightline.types import Where

__all__ = ["Located", "read_file", "read_value"]

MAX_BYTES = 1_000_000
MAX_NODES = 10_000
MAX_DEPTH = 40

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,30})")
_FLOAT = re.compile(r"[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)")
_PLAIN_TAGS = {"tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"}


@dataclass(frozen=True)
class Located:
    """A value of a config and where it stands; containers hold located values."""

    value: Tree
    where: Where

    def plain(self) -> object:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


Tree: TypeAlias = "bool | int | float | str | None | dict[str, Located] | list[Located]"


class _Loader(yaml.SafeLoader):
    """Every plain scalar stays text for `_scalar` to read: the stock table turns `yes`, `010`, `1:30` and dates into others."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - the parent class declares it so


def read_file(path: Path) -> Located:
    """The tree of a YAML file. Raises ConfigError with file and line for whatever is not plain, unambiguous YAML."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: is {path.stat().st_size} bytes; a config has at most {MAX_BYTES}")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder, not a config file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    tree = _Converter(str(path), line_offset=1).parse(text)
    if not isinstance(tree.value, dict):
        raise ConfigError(f"{path}: found {'nothing' if tree.value is None else 'no mapping'}; a config is `key: value` lines")
    return tree


def read_value(text: str, origin: str) -> Located:
    """The tree of one value given on the command line, read by the same rules as a file."""
    return _Converter(origin, line_offset=None).parse(text)


class _Converter:
    """Turns composed YAML nodes into located values, refusing what two readers could understand differently."""

    def __init__(self, origin: str, *, line_offset: int | None) -> None:
        self.origin = origin
        self.line_offset = line_offset
        self.num_nodes = 0

    def parse(self, text: str) -> Located:
        try:
            node = yaml.compose(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f":{mark.line + 1}" if mark and self.line_offset is not None else ""
            raise ConfigError(f"{self.origin}{line}: {self._syntax(error)}") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"{self.origin}: {' '.join(str(error).split())[:200]}") from None
        except RecursionError:
            raise ConfigError(f"{self.origin}: nested deeper than {MAX_DEPTH} levels") from None
        if node is None:
            return Located(None, Where(self.origin))
        return self.convert(node, path="", depth=0)

    @staticmethod
    def _syntax(error: yaml.MarkedYAMLError) -> str:
        problem = " ".join(filter(None, (error.context, error.problem)))
        hint = "; indent with spaces, not tabs" if "'\\t'" in problem else ""
        return f"not valid YAML: {problem}{hint}"

    def where(self, node: yaml.Node, path: str) -> Where:
        line = None if self.line_offset is None else node.start_mark.line + self.line_offset
        return Where(self.origin, line, path)

    def convert(self, node: yaml.Node, *, path: str, depth: int) -> Located:
        where = self.where(node, path)
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES:
            raise ConfigError(f"{where}: more than {MAX_NODES} values (anchors expanded); a config this large is not one")
        if depth > MAX_DEPTH:
            raise ConfigError(f"{where}: nested deeper than {MAX_DEPTH} levels, or an anchor that contains itself")
        if node.tag not in _PLAIN_TAGS:
            raise ConfigError(f"{where}: the tag '{node.tag}' is not allowed; write a plain value")
        if isinstance(node, yaml.MappingNode):
            return Located(self._mapping(node, path, depth), where)
        if isinstance(node, yaml.SequenceNode):
            items = [self.convert(n, path=f"{path}.{i}".lstrip("."), depth=depth + 1) for i, n in enumerate(node.value)]
            return Located(items, where)
        return Located(_scalar(node, where), where)

    def _mapping(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, Located]:
        mapping: dict[str, Located] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in _PLAIN_TAGS:
                raise ConfigError(f"{self.where(key_node, path)}: a key must be plain text")
            key = key_node.value
            place = f"{path}.{key}".lstrip(".")
            if key in mapping:
                first = mapping[key].where
                raise ConfigError(f"{self.where(key_node, place)}: '{key}' is given twice, first on line {first.line}")
            child = self.convert(value_node, path=place, depth=depth + 1)
            mapping[key] = Located(child.value, self.where(key_node, place))
        return mapping


def _scalar(node: yaml.ScalarNode, where: Where) -> bool | int | float | str | None:
    """true, false, null, plain integers and floats; anything else, and anything quoted, is text."""
    text = node.value
    if node.style is not None:
        return text
    words: dict[str, bool | None] = {"true": True, "false": False, "null": None, "": None}
    if text in words:
        return words[text]
    if _INTEGER.fullmatch(text):
        if abs(int(text)) >= 2**63:
            raise ConfigError(f"{where}: {text[:40]} is too large for a 64-bit integer")
        return int(text)
    if _FLOAT.fullmatch(text):
        if not math.isfinite(float(text)):
            raise ConfigError(f"{where}: {text[:40]} is too large for a 64-bit float")
        return float(text)
    return text
