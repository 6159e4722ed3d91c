"""Records of commands: a field carries its option or argument; command lines derive from it; no slow imports here."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, dataclass_transform

_KEY = "parameter"


class MoreHelp(NamedTuple):
    """Part of a help text that depends on the words before `--help`: rows of option and text, and examples of these."""

    title: str = ""
    rows: Sequence[tuple[str, str]] = ()
    examples: Sequence[str] = ()


@dataclass(frozen=True)
class CommandParameter:
    """Option of a command, or with no `flag` an argument; help, range and default as `--help` prints them.

    An option is not `is_passed_on` to launched processes if it is about the launch. The values of a file option
    (`is_written`) are refused before any work if the file cannot be written. `key_values` names the field that gets
    the KEY=VALUE words among the values of an argument.
    """

    flag: str
    metavar: str | None
    help: str
    default: Any = MISSING
    min: float | None = None
    max: float | None = None
    is_written: bool = False
    is_passed_on: bool = True
    key_values: str = ""


def option(flag: str, metavar: str | None, help: str, *, default: Any = None, **more: Any) -> Any:
    """Declare an option with a value; `default=MISSING` makes it required."""
    return CommandParameter(flag, metavar, help, default, **more)


def switch(flag: str, help: str, **more: Any) -> Any:
    """Declare an option without a value."""
    return CommandParameter(flag, None, help, default=False, **more)


def argument(metavar: str, help: str, *, default: Any = MISSING, key_values: str = "") -> Any:
    """Declare an argument, which is given by its position."""
    return CommandParameter("", metavar, help, default, key_values=key_values)


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Command:
    """Record of a command: the options of a call are an instance, made of keywords.

    `name` is what the user types, `opening` the function below `sightline.verbs` that first says what will be done,
    before slow imports, `run` the function below `sightline.verbs` that takes the record, `run_if` names
    another one for a field that is given, and `environment` has the variables that are set before its module is
    imported. The docstring of a command is its help text, which ends with `sections`, rows of subject and text by their
    title, and with `examples`, lines as users type them, without "sightline"; `help_rows` names the function that
    returns `MoreHelp` by the words that are typed.
    """

    name: ClassVar[str] = ""
    run: ClassVar[str] = ""
    opening: ClassVar[str] = ""
    run_if: ClassVar[Mapping[str, str]] = {}
    environment: ClassVar[Mapping[str, str]] = {}
    help_rows: ClassVar[str] = ""
    sections: ClassVar[Mapping[str, Sequence[tuple[str, str]]]] = {}
    examples: ClassVar[Sequence[str]] = ()

    def __init_subclass__(
        cls,
        name: str = "",
        run: str = "",
        opening: str = "",
        run_if: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        help_rows: str = "",
        sections: Mapping[str, Sequence[tuple[str, str]]] | None = None,
        examples: Sequence[str] = (),
    ) -> None:
        cls.name, cls.run, cls.run_if, cls.environment = name, run, run_if or {}, environment or {}
        cls.opening = opening
        cls.help_rows, cls.sections, cls.examples = help_rows, sections or {}, examples
        for field_name, value in list(vars(cls).items()):
            if isinstance(value, CommandParameter):
                metadata = {_KEY: value}
                setattr(cls, field_name, dataclasses.field(default=value.default, metadata=metadata))
        dataclass(frozen=True, kw_only=True)(cls)

    @classmethod
    def summary(cls) -> str:
        """Return the first line of the help text."""
        return (cls.__doc__ or "").partition("\n")[0]

    def function(self) -> str:
        """Return the name of the function that these options run."""
        return next((name for field, name in self.run_if.items() if getattr(self, field) is not None), self.run)

    @classmethod
    def parameters(cls) -> Iterator[tuple[str, CommandParameter]]:
        """List fields with their options or arguments: those of the class itself, then of its bases in turn."""
        depths = {}
        for depth, base in enumerate(cls.__mro__):
            for name in vars(base).get("__annotations__", {}):
                field = getattr(base, "__dataclass_fields__", {}).get(name)
                if field is not None and _KEY in field.metadata:
                    depths[name] = depth  # that of the first class in which it is an option
        fields: dict[str, dataclasses.Field[Any]] = cls.__dataclass_fields__  # type: ignore[attr-defined]
        order = [name for name in fields if name in depths]
        for name in sorted(order, key=lambda name: depths[name]):
            yield name, fields[name].metadata[_KEY]

    @classmethod
    def from_words(cls, values: Mapping[str, Any]) -> Any:
        """Build the record from parsed values: lists become tuples, KEY=VALUE words move to their field."""
        converted = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        for name, parameter in cls.parameters():
            if parameter.key_values:
                converted[name], converted[parameter.key_values] = split_words(converted[name] or ())
            elif converted[name] is None and parameter.default == ():
                converted[name] = ()
        return cls(**converted)

    def list_flags(self, group: type[Command]) -> list[str]:
        """List the flags of the options of a group whose values differ from their defaults."""
        return [p.flag for name, p in group.parameters() if p.flag and getattr(self, name) != p.default]

    def echo(self, group: type[Command]) -> dict[str, Any]:
        """Return the options of a group, as documents state them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(group)}  # type: ignore[arg-type]

    def command_line(self) -> list[str]:
        """Return the words that give these options, for launched processes; defaults are left out."""
        arguments: list[str] = [*self.name.split()]
        options: list[str] = []
        for name, parameter in self.parameters():
            value = getattr(self, name)
            if not parameter.flag:
                values = value if isinstance(value, tuple) else (value,)
                arguments += map(str, (*values, *(getattr(self, parameter.key_values) if parameter.key_values else ())))
            elif parameter.is_passed_on and value != parameter.default:
                options += _option_words(parameter.flag, value)
        return [*arguments, *options]


def _option_words(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag.split("/")[0 if value else 1]]
    values = value if isinstance(value, tuple) else (value,)
    return [word for one in values for word in (flag, str(one))]


def split_words(words: Sequence[str]) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Split arguments into paths and key=value overrides; an existing file with `=` in its name is a path."""
    is_override = ["=" in word and not os.path.exists(word) for word in words]  # Path raises for long words
    paths = tuple(Path(word) for word, is_key_value in zip(words, is_override, strict=True) if not is_key_value)
    return paths, tuple(word for word, is_key_value in zip(words, is_override, strict=True) if is_key_value)


CONFIG: Any = argument("CONFIG", "a YAML config, a name of 'sightline list configs', or a run")
OVERRIDES: Any = argument(
    "[KEY=VALUE]...",
    "override values of the config: train.epochs=10; imgsz=640 or 640x480 (width x height) sets all sizes of images, "
    "base=CONFIG builds on another config",
    default=(),
)
CHECKPOINT: Any = option("--checkpoint", "last|best|PATH", "weights to load", default="last")
PROCESSES: Any = option("--processes", "N", "processes on this machine", is_passed_on=False)
PLUGINS: Any = option("--plugin", "FILE.py", "Python file with your own components; repeatable", default=())
DEVICE: Any = option("--device", "auto|cpu|cuda", "device to run on", default="auto")
JSON: Any = option("--json", "FILE", "write the result as JSON", is_written=True)


class TracedCommand(Command):
    """Base of all commands."""

    traceback: bool = switch("--traceback", "print the traceback of an error", is_passed_on=False)


class DocumentCommand(TracedCommand):
    """Base of commands with a document."""

    json: Path | None = JSON


class PluginCommand(TracedCommand):
    """Base of commands that load plugins and have a document."""

    plugins: tuple[Path, ...] = PLUGINS
    json: Path | None = JSON


class DeviceCommand(TracedCommand):
    """Base of commands that run a model."""

    plugins: tuple[Path, ...] = PLUGINS
    device: str = DEVICE
    json: Path | None = JSON
