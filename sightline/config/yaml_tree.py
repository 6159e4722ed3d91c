"""YAML text to a tree of located values: PyYAML's safe parser with our own short table of scalars."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import yaml

from sightline.config.faults import ConfigFaults
from sightline.config.other_tools import find_file
from sightline.config.shipped import suggest_shipped
from sightline.contract.errors import ConfigError
from sightline.contract.regular_files import parse_json, read_regular_file
from sightline.contract.schema import find_similar
from sightline.contract.types import SourceLocation

DEFAULT = "default"
"""Origin of a value that neither file nor command line states."""
MAX_BYTES = 200_000
MAX_NODES = 10_000
MAX_DEPTH = 40
MAX_KEY_LENGTH = 100
_GIVE = "give a YAML file ('sightline list configs' prints those that come along) or the folder of a run"

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)")
_PLAIN_TAGS = {"tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"}
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")
_SURROGATES = re.compile("[\ud800-\udbff][\udc00-\udfff]")
"""Pattern of a character beyond U+FFFF as JSON escapes it (`\\ud83d\\ude00`)."""
_CORE_SCALARS: Mapping[str, bool | None] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("null", "Null", "NULL", "~", ""), None),
}
"""Scalars of YAML 1.2's core schema that are not text."""


@dataclass(frozen=True)
class _DocumentKind:
    """Kind of document: its name, maximal number of values, special scalars, and allowed keys."""

    name: str = "a config"
    max_nodes: int = MAX_NODES
    scalars: Mapping[str, bool | None] = field(
        default_factory=lambda: {"true": True, "false": False, "null": None, "": None}
    )
    has_number_keys: bool = False
    instead_of_merging: str = "a config inherits from one `base:`"


@dataclass(frozen=True)
class LocatedValue:
    """Value of a config and its location; containers contain located values."""

    value: Tree
    where: SourceLocation

    def plain(self) -> object:
        """Return the value without locations."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


Tree: TypeAlias = "bool | int | float | str | dict[str, LocatedValue] | list[LocatedValue] | None"


def read_yaml(path: Path, faults: ConfigFaults) -> LocatedValue:
    """Read the tree of a YAML file; duplicate keys and forbidden syntax are noted in `faults`.

    Raises ConfigError with file and line for a file that cannot be read, or is not plain YAML.
    """
    tree = _Converter(str(path), faults, has_lines=True).parse(_read_text(path), path="")
    if not isinstance(tree.value, dict):
        content = "nothing" if tree.value is None else "a list" if isinstance(tree.value, list) else "a single value"
        raise ConfigError(f"{path}: found {content}, allowed are lines of `key: value`")
    return tree


def read_mapping(mapping: Mapping[str, Any], faults: ConfigFaults, *, origin: str = "dict") -> LocatedValue:
    """Read the tree of a mapping in memory by the rules of a file.

    Paths become text, tuples lists, NumPy scalars those of Python. Raises ConfigError for a value that no
    file can hold, with its dotted path.
    """
    text = json.dumps(_to_json(mapping, origin, ""))
    return _Converter(origin, faults, has_lines=False).parse(text, path="")


def _to_json(value: Any, origin: str, path: str) -> Any:
    """Convert nested mappings and sequences of plain values to those that JSON has."""
    if isinstance(value, Mapping):
        wrong = next((key for key in value if not isinstance(key, str)), None)
        if wrong is not None:
            raise ConfigError(f"{SourceLocation(origin, path=path)}: the key {wrong!r} is not text")
        return {key: _to_json(item, origin, f"{path}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item, origin, f"{path}.{index}") for index, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic):
        value = value.item()
    is_finite = not isinstance(value, float) or math.isfinite(value)
    if value is None or (type(value) in (bool, int, float, str) and is_finite):
        return value
    raise ConfigError(
        f"{SourceLocation(origin, path=path)}: found {_shorten(repr(value))} ({type(value).__name__}), allowed are "
        "text, finite numbers, true and false, None, and lists and dicts of these"
    )


def read_value(text: str, origin: str, path: str, faults: ConfigFaults) -> LocatedValue:
    """Read a value of the command line by the rules of a file."""
    return _Converter(origin, faults, has_lines=False).parse(text, path=path)


def read_tables(text: str, origin: str, faults: ConfigFaults, *, name: str, max_nodes: int) -> LocatedValue:
    """Read a document that other tools also write: keys may be whole numbers, which stay text.

    `name` is the document's name in errors. Raises ConfigError as `read_yaml`.
    """
    form = _DocumentKind(
        name, max_nodes, _CORE_SCALARS, has_number_keys=True, instead_of_merging="write the entries out"
    )
    return _Converter(origin, faults, has_lines=True, form=form).parse(text, path="")


def _read_text(path: Path) -> str:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            advice = describe_prepared(path).removeprefix("; ") or _GIVE
            raise ConfigError(f"{path}: is a folder, neither a config nor a run (no config.yaml in it); {advice}")
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path}: is not a plain file; a config is read from one")
        if status.st_size > MAX_BYTES:
            raise ConfigError(f"{path}: has {status.st_size:,} bytes; a config has at most {MAX_BYTES:,}")
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        hint = _suggest_similar(path) or _suggest_place(path) or suggest_shipped(path)
        raise ConfigError(f"{path}: no such file{hint or f'; {_GIVE}'}") from None
    except UnicodeDecodeError as error:
        hint = _suggest_place(path) or "; save it as UTF-8"
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}){hint}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def describe_prepared(path: Path) -> str:
    """Return the end of a refusal of a folder that is a prepared set: how it is given; of other paths "".

    A checkpoint has a manifest, too, which names no set.
    """
    try:
        manifest = parse_json(read_regular_file(path / "manifest.json"))
    except (OSError, ValueError):
        return ""
    name = manifest.get("set") if isinstance(manifest, dict) else None
    root = shlex.quote(str(path))
    return "" if name is None else f"; it is a prepared set of '{name}': give a config and data.root={root}"


def _suggest_similar(path: Path) -> str:
    """Suggest a config in the same folder, or the correct order of config and overrides.

    A config whose name begins with _ is a part of others, and cannot train.
    """
    key, equals, value = str(path).partition("=")
    if equals:
        instead = find_file(key, value)
        return f"; the config comes first, key=value after it{f'; {instead}' if instead else ''}"
    try:
        names = [name for name in os.listdir(path.parent) if name.endswith((".yaml", ".yml"))]
    except OSError:
        return ""
    stems = {Path(name).stem: name for name in names if path.name.startswith("_") or not name.startswith("_")}
    holding = sorted((stem for stem in stems if path.stem in stem), key=len)
    similar = holding[0] if holding else find_similar(path.stem, stems)
    return "" if similar is None else f"; did you mean '{stems[similar]}'?"


def _suggest_place(path: Path) -> str:
    """Say where a file of weights, or a Python file, is given: after the config."""
    instead = find_file("config", str(path))
    return f"; {instead}" if instead else ""


class _LimitError(yaml.MarkedYAMLError):
    """Document that is too large for its kind."""


class _Loader(yaml.SafeLoader):
    """YAML loader that leaves plain scalars as text: the stock table converts `yes`, `010`, `1:30` and dates.

    Nodes are counted while reading, so that a hostile file is refused early; a tag that is written out stays visible.
    """

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - the parent class declares it so

    def __init__(self, text: str, max_nodes: int) -> None:
        super().__init__(text)
        self.max_nodes = max_nodes
        self.num_nodes = 0
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        self.num_nodes += 1
        self.depth += 1
        if self.num_nodes > self.max_nodes:
            raise _LimitError(problem=f"has more than {self.max_nodes:,} values", problem_mark=event.start_mark)
        if self.depth > MAX_DEPTH:
            raise _LimitError(problem=f"is nested deeper than {MAX_DEPTH} levels", problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node is not None and getattr(event, "tag", None) is not None:
            node.tag = f"written:{event.tag}"
        return node


_MAX_KEPT_TEXT = 2**14


@functools.lru_cache(maxsize=128)
def _compose(text: str, max_nodes: int) -> yaml.Node | None:
    """Parse a document to nodes, which nobody changes; a process reads configs and their bases again and again."""
    node: yaml.Node | None = _Loader(text, max_nodes).get_single_node()
    return node


class _Converter:
    """Converter of YAML nodes to located values, which notes what two readers could understand differently."""

    def __init__(
        self, origin: str, faults: ConfigFaults, *, has_lines: bool, form: _DocumentKind | None = None
    ) -> None:
        self.form = _DocumentKind() if form is None else form
        self.origin = origin
        self.faults = faults
        self.has_lines = has_lines
        self.num_nodes = 0

    def parse(self, text: str, *, path: str) -> LocatedValue:
        """Parse a document. Raises ConfigError if it is not YAML, or too large."""
        top = SourceLocation(self.origin, path=path)
        try:
            node = (_compose if len(text) <= _MAX_KEPT_TEXT else _compose.__wrapped__)(text, self.form.max_nodes)
        except _LimitError as error:
            raise ConfigError(
                f"{self._locate_error(error, path)}: {error.problem}; {self.form.name} this large is not one"
            ) from None
        except yaml.MarkedYAMLError as error:
            hint = "" if self.has_lines else _suggest_quotes(text)
            raise ConfigError(f"{self._locate_error(error, path)}: {_describe_syntax_error(error)}{hint}") from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1 if self.has_lines else None
            location = SourceLocation(self.origin, line, path)
            raise ConfigError(f"{location}: holds the character U+{int(error.character):04X}; remove it") from None
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            raise ConfigError(f"{top}: not valid YAML: {' '.join(str(error).split())[:200]}") from None
        return LocatedValue(None, top) if node is None else self.convert(node, path=path, depth=0)

    def _locate_error(self, error: yaml.MarkedYAMLError, path: str) -> SourceLocation:
        mark = error.problem_mark or error.context_mark
        return SourceLocation(self.origin, mark.line + 1 if mark and self.has_lines else None, path)

    def where(self, node: yaml.Node, path: str) -> SourceLocation:
        return SourceLocation(self.origin, node.start_mark.line + 1 if self.has_lines else None, path)

    def convert(self, node: yaml.Node, *, path: str, depth: int, key: SourceLocation | None = None) -> LocatedValue:
        """Convert a node to a located value, at the location of its key if it has one."""
        where = key or self.where(node, path)
        self.num_nodes += 1
        if self.num_nodes > self.form.max_nodes:
            raise ConfigError(
                f"{where}: more than {self.form.max_nodes:,} values once anchors are expanded; write them out, fewer"
            )
        if depth > MAX_DEPTH:
            raise ConfigError(f"{where}: an anchor that contains itself")
        if node.tag not in _PLAIN_TAGS:
            self.faults.add(where, f"the tag '{_format_tag(node)}' is not allowed; write a plain value")
            return LocatedValue(None, where)
        if isinstance(node, yaml.MappingNode):
            return LocatedValue(self._convert_mapping(node, path, depth), where)
        if isinstance(node, yaml.SequenceNode):
            items = [self.convert(n, path=f"{path}.{i}".lstrip("."), depth=depth + 1) for i, n in enumerate(node.value)]
            return LocatedValue(items, where)
        assert isinstance(node, yaml.ScalarNode)
        return LocatedValue(self._convert_scalar(node, where), where)

    def _convert_mapping(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, LocatedValue]:
        mapping: dict[str, LocatedValue] = {}
        for key_node, value_node in node.value:
            key = self._convert_key(key_node, path)
            if key is None:
                continue
            child_path = f"{path}.{key}".lstrip(".")
            where = self.where(key_node, child_path)
            if key in mapping:
                first = mapping[key].where.line
                self.faults.add(where, f"'{key}' is given twice{f', first on line {first}' if first else ''}")
                continue
            mapping[key] = self.convert(value_node, path=child_path, depth=depth + 1, key=where)
        return mapping

    def _convert_key(self, node: yaml.Node, path: str) -> str | None:
        where = self.where(node, path)
        if not isinstance(node, yaml.ScalarNode) or node.tag not in _PLAIN_TAGS:
            self.faults.add(where, "a key must be plain text")
            return None
        if node.value == "<<":
            self.faults.add(where, f"merge keys (<<) are not read; {self.form.instead_of_merging}")
            return None
        is_number = self.form.has_number_keys and _INTEGER.fullmatch(node.value)
        if node.style is None and not is_number and not isinstance(self._convert_scalar(node, where), str):
            self.faults.add(where, f"the key {node.value or 'null'} is not text")
            return None
        if not node.value.isprintable() or len(node.value) > MAX_KEY_LENGTH:
            self.faults.add(where, f"the key {node.value[:20]!r}... is longer than a line, or not printable")
            return None
        return node.value

    def _convert_scalar(self, node: yaml.ScalarNode, where: SourceLocation) -> bool | int | float | str | None:
        """Convert the special scalars of the document kind, plain integers and floats; anything else is text."""
        text = _SURROGATES.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), node.value)
        if node.style is None and text in self.form.scalars:
            return self.form.scalars[text]
        if node.style is None and _INTEGER.fullmatch(text):
            if len(text) < 21 and -(2**63) <= int(text) < 2**63:
                return int(text)
            self.faults.add(where, f"found {_shorten(text)}, which does not fit into 64 bits")
            return None
        if node.style is None and _FLOAT.fullmatch(text):
            if math.isfinite(float(text)):
                return float(text)
            self.faults.add(where, f"found {_shorten(text)}, which is too large for a 64-bit float")
            return None
        unwritable = _UNWRITABLE.search(text)
        if unwritable:
            self.faults.add(where, f"holds the character U+{ord(unwritable[0]):04X}, which no file can; remove it")
            return None
        return text


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."


def _format_tag(node: yaml.Node) -> str:
    return str(node.tag).removeprefix("written:").replace("tag:yaml.org,2002:", "!!")


def _suggest_quotes(text: str) -> str:
    """Suggest quotes for a value of the command line that ends within a list or a mapping."""
    is_open = any(text.count(one) > text.count(other) for one, other in ("[]", "{}"))
    return "; the shell split it at a blank? put it in quotes" if is_open else ""


def _describe_syntax_error(error: yaml.MarkedYAMLError) -> str:
    problem = " ".join(" ".join(filter(None, (error.context, error.problem))).split())
    hint = "; indent with spaces, not tabs" if "'\\t'" in problem else ""
    return f"not valid YAML: {problem}{hint}"
