"""Config reader: YAML file, its base and command line overrides -> a frozen RunConfig; reports all faults at once.

Component blocks from a command line option, with key=value arguments. A config that a run recorded states every
argument: one that lacks any is refused, because its default may be another today.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from typing_extensions import TypedDict

from sightline.config.consistency import check_consistency
from sightline.config.faults import ConfigFaults
from sightline.config.image_size import WORD as SIZE_WORD
from sightline.config.other_tools import BASES, NAMES, find_document, find_file, find_setting
from sightline.config.overrides import COMMAND_LINE, apply_overrides, merge
from sightline.config.plain_values import flatten, to_plain
from sightline.config.prepared_name import take_prepared_name
from sightline.config.run_config import RunConfig
from sightline.config.shipped import find_config
from sightline.config.yaml_tree import DEFAULT, LocatedValue, read_mapping, read_value, read_yaml
from sightline.config.yaml_writer import format_inline
from sightline.contract import registry, schema
from sightline.contract.arguments import NonNegativeFloat, PositiveFloat
from sightline.contract.errors import ConfigError
from sightline.contract.registry import Registry
from sightline.contract.types import ComponentConfig, LinearRamp, SourceLocation


def parse_component(
    registry: Registry, name: str, words: Sequence[str], *, option: str = "--method"
) -> ComponentConfig:
    """Parse the component `name` of `option`, with `words` like folds=5 as arguments.

    Raises ConfigError for words that are not key=value, and for a name that is not registered.
    """
    faults = ConfigFaults()
    arguments: dict[str, Any] = {}
    origins = {"name": SourceLocation("command line", path=option)}
    for word in words:
        key, equals, text = word.partition("=")
        key = key.strip()
        if not equals or key in arguments:
            raise ConfigError(f"command line: found {word!r}, allowed is key=value, each key once, as folds=5")
        arguments[key] = read_value(text, "command line", key, faults).plain()
        origins[key] = SourceLocation("command line", path=key)
    faults.raise_any()
    component = ComponentConfig(name.replace("-", "_"), location=origins["name"], origins=origins)
    parameters = registry.entry(component).arguments
    for key, value in arguments.items():
        if key in parameters and typing.get_origin(parameters[key].annotation) is tuple and not isinstance(value, list):
            arguments[key] = [value]  # C=0.1 is the list of one
    return dataclasses.replace(component, arguments=arguments)


def is_recorded(path: Path) -> bool:
    """Return True if a config file is the recorded one of a run directory."""
    return path.name == "config.yaml" and (path.parent / "facts.json").exists()


def assert_recorded_whole(source: object, origins: Mapping[str, SourceLocation]) -> None:
    """Raise ConfigError if `source` is the recorded config of a run, which states every argument, and lacks one."""
    missing = sorted(path for path, where in origins.items() if where.source == DEFAULT)
    if missing and isinstance(source, Path) and is_recorded(source):
        raise ConfigError(
            f"{source}: lacks {missing[0]}, which this version of sightline records; read the run with the version "
            "that made it (environment.json), or train it again"
        )


MAX_BASES = 8
_KIND_OF_SECTION = {
    "data": "data",
    "model": "models",
    "task": "tasks",
    "losses": "losses",
    "metrics": "metrics",
    "optimizer": "optimizers",
    "schedule": "schedules",
    "transforms": "transforms",
}
_A_BLOCK = "a block of `name:` and its arguments"


class _RampBlock(TypedDict):
    """Weight of a loss that changes over epochs: LinearRamp."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    start: NonNegativeFloat
    end: NonNegativeFloat
    epochs: PositiveFloat


def read_config(source: Path | Mapping[str, Any] | RunConfig, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the config of a run, with `key=value` overrides applied, from a file, a mapping as in one, or a config.

    A path may be the name of a shipped config (`find_config`), as may a `base`, which in a mapping is relative to the
    working directory. Of the data only the name of a prepared folder is read (`take_prepared_name`), and no code is run
    except that of components named here, on arguments that fit their signatures.
    Raises ConfigError with every fault found: file and line, dotted path, what was found, what is allowed.
    """
    if isinstance(source, RunConfig) and not overrides:
        return source
    faults = ConfigFaults()
    tree = _insert_policy(read_tree(source, overrides, faults), faults)
    _resolve_run_paths(tree)
    take_prepared_name(tree)
    assert isinstance(tree.value, dict)
    name = source.stem if isinstance(source, Path) else _name_components(tree)
    tree.value.setdefault("name", LocatedValue(name, SourceLocation(DEFAULT, path="name")))
    reading = _SectionReader(faults)
    values = reading.section(RunConfig, tree, "")
    check_consistency(values, reading.origins, faults)
    faults.raise_any()
    config = RunConfig(**values, origins=reading.origins)
    if overrides and isinstance(source, Path) and is_recorded(source):
        read_config(source)  # what overrides replace has today's defaults
    elif not overrides:
        assert_recorded_whole(source, config.origins)
    return config


def _name_components(tree: LocatedValue) -> str:
    """Name a config that no file names: its data set and its model, as shipped configs are named."""
    assert isinstance(tree.value, dict)
    blocks = (tree.value[key].value for key in ("data", "model") if key in tree.value)
    names = (block["name"].value for block in blocks if isinstance(block, dict) and "name" in block)
    return "_".join(map(str, names)) or "config"


def read_sections(
    source: Path | Mapping[str, Any] | RunConfig, names: Sequence[str], overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Read only the named sections of a config, which may lack the others. Raises as `read_config`."""
    faults = ConfigFaults()
    tree = read_tree(source, overrides, faults)
    take_prepared_name(tree)
    assert isinstance(tree.value, dict)
    unknown = tree.value.keys() - _section_fields(RunConfig)
    selected = {key: child for key, child in tree.value.items() if key in names or key in unknown}
    reading = _SectionReader(faults)
    values = reading.section(RunConfig, LocatedValue(selected, tree.where), "", names)
    faults.raise_any()
    if overrides and isinstance(source, Path) and is_recorded(source):
        read_sections(source, names)  # what overrides replace has today's defaults
    elif not overrides:
        assert_recorded_whole(source, reading.origins)
    return {name: values[name] for name in names}


def read_tree(
    source: Path | Mapping[str, Any] | RunConfig, overrides: Sequence[str], faults: ConfigFaults
) -> LocatedValue:
    """Read the tree of a config under overrides, of which `base=NAME` replaces the base of its file."""
    texts = [text for text in overrides if text.partition("=")[0].strip() == "base"]
    bases = [read_value(text.partition("=")[2], COMMAND_LINE, "base", faults) for text in texts]
    if len(bases) > 1:
        faults.add(bases[1].where, "is given twice on the command line; keep one")
    if bases and (isinstance(source, RunConfig) or (isinstance(source, Path) and is_recorded(source))):
        raise ConfigError(f"{bases[0].where}: a run's config states every value, so that it has no base to replace")
    file_or_mapping: Path | Mapping[str, Any] = to_plain(source) if isinstance(source, RunConfig) else source
    tree = read_with_bases(file_or_mapping, faults, other_base=bases[0] if bases else None)
    return apply_overrides(tree, [text for text in overrides if text not in texts], faults)


def read_with_bases(
    source: Path | Mapping[str, Any], faults: ConfigFaults, *, other_base: LocatedValue | None = None
) -> LocatedValue:
    """Read the tree of a file or a mapping merged over its base, which may have a base, too.

    `other_base` is merged in the place of the base that `source` names, or under one that names none.
    """
    trees: list[LocatedValue] = []
    chain: list[str] = []
    base: LocatedValue | None = None
    following: Path | None = None
    if isinstance(source, Path):
        following = find_config(source)
    else:
        tree = read_mapping(source, faults)
        assert isinstance(tree.value, dict)
        trees.append(tree)
        base = tree.value.pop("base", None)
        base = base if other_base is None else other_base
        following = None if base is None else _resolve_base(base, Path("dict"), chain)
    while following is not None:
        chain.append(os.path.realpath(following))
        tree = _read_base(following, base, faults)
        assert isinstance(tree.value, dict)
        plain = tree.plain()
        if isinstance(plain, dict) and (instead := find_document(str(following), plain)):
            raise ConfigError(f"{following}: {instead}")
        trees.append(tree)
        base = tree.value.pop("base", None)
        if other_base is not None and len(trees) == 1:
            base, following = other_base, Path(COMMAND_LINE)  # its path is relative to the working directory
        following = None if base is None else _resolve_base(base, following, chain)
    merged = trees.pop()
    while trees:
        merged = merge(merged, trees.pop())
    return merged


def _insert_policy(tree: LocatedValue, faults: ConfigFaults) -> LocatedValue:
    """Insert the content of the file that `compress.policy` names, relative to the working directory."""
    section = tree.value.get("compress") if isinstance(tree.value, dict) else None
    if section is None or not isinstance(section.value, dict):
        return tree
    policy = section.value.get("policy")
    if policy is not None and isinstance(policy.value, str):
        try:
            section.value["policy"] = read_yaml(Path(policy.value), faults)
        except ConfigError as error:
            raise ConfigError(f"{policy.where}: {error}") from None
    return tree


def _resolve_run_paths(tree: LocatedValue) -> None:
    """Replace `~` at the start of `init.from` and `teacher.from`, as data sets do in `data.root`.

    The path of the teacher becomes absolute (relative to the working directory), for later processes.
    """
    for name in ("init", "teacher"):
        section = tree.value.get(name) if isinstance(tree.value, dict) else None
        entries = section.value if section is not None and isinstance(section.value, dict) else {}
        source = entries.get("from")
        if source is not None and isinstance(source.value, str):
            path = os.path.expanduser(source.value)
            entries["from"] = LocatedValue(os.path.abspath(path) if name == "teacher" else path, source.where)


def _read_base(path: Path, base: LocatedValue | None, faults: ConfigFaults) -> LocatedValue:
    try:
        return read_yaml(path, faults)
    except ConfigError as error:
        if base is None or not str(error).startswith(f"{path}: "):
            raise
        raise ConfigError(f"{base.where}: {error}") from None


def _resolve_base(base: LocatedValue, below: Path, chain: Sequence[str]) -> Path:
    """Return the path of a config's base, relative to the config's folder, or of a shipped config of this name."""
    if not isinstance(base.value, str) or not base.value:
        raise ConfigError(f"{base.where}: found {schema.format_value(base.plain())}, allowed is the path of one config")
    path = below.parent / base.value
    if not os.path.lexists(path):
        shipped = find_config(Path(base.value))
        path = shipped if shipped != Path(base.value) else path
    if os.path.realpath(path) in chain:
        raise ConfigError(f"{base.where}: '{path}' leads back to itself")
    if len(chain) == MAX_BASES:
        raise ConfigError(f"{base.where}: more than {MAX_BASES} configs are based on one another; merge some of them")
    return path


class _SectionReader:
    """Reader of a tree into config sections and component blocks; notes faults, and the origin of every value."""

    def __init__(self, faults: ConfigFaults) -> None:
        self.faults = faults
        self.origins: dict[str, SourceLocation] = {}
        self._paths: Mapping[str, str] = {}
        """Dotted paths by key: those of sections, and of the arguments that the config's components take."""
        self._model: str | None = None
        """Name of the config's model."""

    def section(self, cls: type, tree: LocatedValue, path: str, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Read the constructor arguments of a config section, those of `names` if given.

        Arguments with faults are left out.
        """
        if not isinstance(tree.value, dict):
            self._refuse(tree, f"a mapping of {', '.join(_section_fields(cls))}{_suggest_only_key(cls, tree, path)}")
            return {}
        hints = typing.get_type_hints(cls, include_extras=True)
        fields = _section_fields(cls)
        values: dict[str, Any] = {}
        if not path:
            self._paths = _list_arguments(tree.value) | _section_keys()
            self._model = _get_name(tree.value.get("model"))
        for key, child in tree.value.items():
            if key not in fields:
                is_foreign = not path or schema.find_similar(key, fields, cutoff=0.8) is None
                hint = _suggest_setting(key, child) if is_foreign else ""
                hint = hint or _suggest_base(key, is_top=not path)
                hint = hint or _suggest_key(key, fields, self._paths, is_top=not path)
                self.faults.add(child.where, f"unknown key '{key}'{hint}")
        for key, field in fields.items():
            if names is not None and key not in names:
                continue
            field_path = f"{path}.{key}".lstrip(".")
            if key in tree.value:
                values[field.name] = self._read_field(hints[field.name], tree.value[key], field_path)
            elif not _has_default(field):
                where = SourceLocation(tree.where.source, tree.where.line if path else None, field_path)
                self.faults.add(where, f"is required and missing; give {_describe_allowed(hints[field.name])}")
            else:
                values[field.name] = self._read_default(field, field_path)
        return values

    def _read_default(self, field: dataclasses.Field, path: str) -> Any:
        """Return a default, with its origin noted; nested sections and component blocks are completed, too."""
        where = SourceLocation(DEFAULT, path=path)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if isinstance(default, ComponentConfig):
            return self._read_component(LocatedValue({"name": LocatedValue(default.name, where)}, where), path)
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            return type(default)(**self.section(type(default), LocatedValue({}, where), path))
        self.origins[path] = where
        return default

    def _read_field(self, hint: Any, child: LocatedValue, path: str) -> Any:
        is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        choices = typing.get_args(hint) if is_union else (hint,)
        if child.value is None and type(None) in choices:
            self.origins[path] = child.where
            return None
        if hint is ComponentConfig:
            return self._read_component(child, path)
        for choice in choices:
            if dataclasses.is_dataclass(choice):
                values = self.section(typing.cast(type, choice), child, path)
                return typing.cast(Any, choice)(**values) if _is_complete(typing.cast(type, choice), values) else None
        if hint == tuple[ComponentConfig, ...]:
            return self._read_components(child, path)
        value = check_located(hint, child, self.faults)
        self.origins[path] = child.where
        return value

    def _read_components(self, child: LocatedValue, path: str) -> tuple[ComponentConfig, ...] | None:
        if not isinstance(child.value, list):
            self._refuse_block(child, path, f"a list, each {_A_BLOCK}")
            return None
        if not child.value:
            self.origins[path] = child.where
        components = [self._read_component(item, f"{path}.{i}") for i, item in enumerate(child.value)]
        return tuple(component for component in components if component is not None)

    def _read_component(self, tree: LocatedValue, path: str) -> ComponentConfig | None:
        """Read a component block, checked against its signature and completed with the signature's defaults."""
        kind = registry.REGISTRIES[_KIND_OF_SECTION[path.split(".")[0]]]
        if not isinstance(tree.value, dict):
            self._refuse_block(tree, path, _A_BLOCK)
            return None
        block = dict(tree.value)
        name = block.pop("name", None)
        if name is None:
            named = "with " + ", ".join(block) if block else "that is empty"
            theirs = next((key for key in NAMES if key in block), None)
            advice = "the name is missing" if theirs is None else f"write name: in the place of {theirs}:"
            self.faults.add(tree.where, f"found a block {named}, allowed is {_A_BLOCK}: {advice}")
            return None
        if not isinstance(name.value, str):
            self._refuse(name, f"the name of a {kind.noun}")
            return None
        self.origins[f"{path}.name"] = name.where
        if kind is registry.tasks and (refusal := _refuse_task(name.value, self._model)):
            self.faults.add(name.where, refusal)
            return None
        weight = self._read_weight(block, path) if kind is registry.losses else 1.0
        arguments = {key: child.plain() for key, child in block.items()}
        locations = dict(_iterate_locations(block, ""))
        where = SourceLocation(name.where.source, name.where.line, path)
        component = ComponentConfig(name.value, arguments, 1.0 if weight is None else weight, where, locations)
        bound = kind.bind(component, elsewhere=self._paths)
        for fault in bound.faults:
            self.faults.add(*fault)
        return None if bound.faults or weight is None else self._complete_block(bound, path)

    def _read_weight(self, block: dict[str, LocatedValue], path: str) -> float | LinearRamp | None:
        """Read the weight of a loss, its reserved key: a number, or the mapping of a ramp."""
        located = block.pop("weight", None)
        if located is None:
            return 1.0
        self.origins[f"{path}.weight"] = located.where
        if not isinstance(located.value, dict):
            weight, misfits = schema.check_value(NonNegativeFloat, located.plain())
            if misfits:
                self._refuse(
                    located, f"{schema.describe_type(NonNegativeFloat)}, or a ramp {{start: 0.0, end: 1.0, epochs: 10}}"
                )
            return None if misfits else weight
        values = check_located(_RampBlock, located, self.faults)
        if values is None:
            return None
        if values["start"] == values["end"]:
            self._refuse(located, f"two different ends of a ramp; for one weight throughout, weight: {values['end']:g}")
            return None
        return LinearRamp(**{name: float(value) for name, value in values.items()})

    def _complete_block(self, bound: registry.BoundBlock, path: str) -> ComponentConfig:
        """Make every argument that is not a fact explicit, so that a stored config does not follow a later default."""
        arguments: dict[str, Any] = {}
        defaults = _find_model_defaults(self._model, bound.component.name) if path.startswith("transforms.") else {}
        for name, parameter in bound.entry.arguments.items():
            if name in bound.blocks:
                arguments[name] = self._complete_blocks(bound, name, path)
            elif name in bound.values:
                arguments[name] = bound.values[name]
                self.origins[f"{path}.{name}"] = bound.component.origins[name]
            elif parameter.default is not inspect.Parameter.empty:
                arguments[name] = defaults.get(name, parameter.default)
                self.origins[f"{path}.{name}"] = SourceLocation(DEFAULT, path=f"{path}.{name}")
        return dataclasses.replace(bound.component, arguments=arguments)

    def _complete_blocks(self, bound: registry.BoundBlock, name: str, path: str) -> Any:
        """Complete the component blocks inside an argument, like those of a section."""
        if not bound.blocks[name]:
            self.origins[f"{path}.{name}"] = bound.component.origins[name]
        completed = []
        for inner in bound.blocks[name]:
            inner_path = inner.component.location.path
            self.origins[f"{inner_path}.name"] = inner.component.origins["name"]
            completed.append(self._complete_block(inner, inner_path))
        if isinstance(bound.component.arguments[name], list):
            return tuple(completed)
        return completed[0] if completed else None

    def _refuse_block(self, located: LocatedValue, path: str, allowed: str) -> None:
        """Note a value in the place of a block, or of a list of them, with what to write for a name or a file."""
        value, section = located.plain(), path.split(".")[0]
        names = registry.REGISTRIES[_KIND_OF_SECTION[section]].names()
        text = schema.refuse_block(value, allowed, names)
        if isinstance(value, str) and (instead := find_file(section, value)):
            text = f"found {schema.format_value(value)}, allowed is {allowed}; {instead}"
        elif isinstance(value, str) and located.where.source == COMMAND_LINE and "." not in path:
            meant = text.rpartition("did you mean ")[2].removesuffix("?")
            word = f"'{path}={meant}'" if meant.startswith("[") else f"{path}.name={meant[7:-1]}"
            text = text.replace(f"did you mean {meant}?", f"write {word}")
        self.faults.add(located.where, text)

    def _refuse(self, located: LocatedValue, allowed: str) -> None:
        self.faults.add(located.where, f"found {schema.format_value(located.plain())}, allowed is {allowed}")


def check_located(hint: Any, located: LocatedValue, faults: ConfigFaults) -> Any:
    """Convert a value to its type, or return None with its faults noted, each at its own location."""
    value, misfits = schema.check_value(hint, located.plain())
    locations = dict(_iterate_locations({"": located}, ""))
    for part, text in misfits:
        faults.add(locations.get(part) or _locate_missing(part, locations, located.where), text)
    return None if misfits else value


def _locate_missing(part: str, locations: dict[str, SourceLocation], block_location: SourceLocation) -> SourceLocation:
    """Return the location of a missing part: that of the innermost block around it."""
    path = part
    while path and path not in locations:
        path = path.rpartition(".")[0]
    where = locations.get(path, block_location)
    missing = part.removeprefix(path).strip(".")
    return dataclasses.replace(where, path=f"{where.path}.{missing}".strip("."))


def _iterate_locations(block: dict[str, LocatedValue], path: str) -> Iterator[tuple[str, SourceLocation]]:
    """Iterate over the values of a block: path inside the block and location."""
    for key, child in block.items():
        child_path = f"{path}.{key}".strip(".")
        yield child_path, child.where
        if isinstance(child.value, dict):
            yield from _iterate_locations(child.value, child_path)
        elif isinstance(child.value, list):
            yield from _iterate_locations({str(i): item for i, item in enumerate(child.value)}, child_path)


def _section_fields(cls: type) -> dict[str, dataclasses.Field]:
    """Return the keys of a section in a file, and the fields that they fill."""
    keys = {f.metadata.get("key", f.name): f for f in dataclasses.fields(cls)}
    return {key: field for key, field in keys.items() if key}


def _is_complete(cls: type, values: dict[str, Any]) -> bool:
    """Return True if every field without a default has a value, so that the section can be built."""
    return all(field.name in values for field in dataclasses.fields(cls) if not _has_default(field))


def _has_default(field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _describe_allowed(hint: Any) -> str:
    if hint is ComponentConfig:
        return _A_BLOCK
    if hint == tuple[ComponentConfig, ...]:
        return f"a list, each {_A_BLOCK}"
    if dataclasses.is_dataclass(hint):
        return "a mapping of " + ", ".join(_section_fields(typing.cast(type, hint)))
    return schema.describe_type(hint)


def _suggest_only_key(cls: type, tree: LocatedValue, path: str) -> str:
    """Suggest the only key that a section requires, for a value that is given in place of the section."""
    required = [key for key, field in _section_fields(cls).items() if not _has_default(field)]
    if len(required) != 1 or isinstance(tree.value, list) or tree.value is None:
        return ""
    value = _format_word(tree.value)
    is_word = tree.where.source == COMMAND_LINE
    return f"; write {f'{path}.{required[0]}={value}' if is_word else f'{path}: {{{required[0]}: {value}}}'}"


def _format_word(value: Any) -> str:
    """Format a value as it would be typed: text without quotes."""
    return value if isinstance(value, str) else format_inline(value)


def _suggest_setting(key: str, child: LocatedValue) -> str:
    """Suggest what to write for a key that another tool has, or for the first such key below it."""
    value = child.plain()
    leaves = {key: value} if not isinstance(value, dict) else flatten(value, key)
    for name, leaf in leaves.items():
        instead = find_setting(name.removeprefix("+"), "" if leaf is None else _format_word(leaf))
        if instead and child.where.source == COMMAND_LINE:
            return f"; write {instead}"
        if instead.startswith(f"{SIZE_WORD}="):
            return f"; a file states the sizes of its transforms; give {instead} on the command line, which sets all"
        if instead:
            return f"; give {instead}" if instead.startswith("--") else f"; did you mean '{instead.partition('=')[0]}'?"
    return ""


def _suggest_base(key: str, *, is_top: bool) -> str:
    """Suggest where a config names the one that it builds on; empty for another key."""
    return "; a config builds on one other, base: CONFIG" if is_top and key in BASES else ""


def _suggest_key(key: str, fields: dict[str, dataclasses.Field], elsewhere: Mapping[str, str], *, is_top: bool) -> str:
    """Suggest the meaning of an unknown key: a key of another section, a dotted path, or a similar name."""
    if "." in key and key.split(".")[0] in fields:
        outer, _, inner = key.partition(".")
        return f"; in a file sections are nested: {outer}: {{{inner}: ...}}"
    similar = key if key in elsewhere else schema.find_similar(key, fields)
    if similar is None and is_top:
        similar = schema.find_similar(key, elsewhere, cutoff=0.8)
    if similar is None:
        return schema.suggest(key, fields)
    return f"; did you mean '{similar if similar in fields else elsewhere[similar]}'?"


def _list_arguments(sections: Mapping[str, LocatedValue]) -> dict[str, str]:
    """Map the arguments of the components that sections name to their dotted paths; the optimizer's win."""
    paths: dict[str, str] = {}
    for section in ("data", "model", "task", "schedule", "optimizer"):
        name = _get_name(sections.get(section))
        kind = registry.REGISTRIES[_KIND_OF_SECTION[section]]
        if name is not None and name in kind.names():
            paths |= {argument: f"{section}.{argument}" for argument in kind.get_entry(name).arguments}
    return paths


def _get_name(block: LocatedValue | None) -> str | None:
    """Return the name of a component block, if it has one."""
    plain = None if block is None else block.plain()
    name = plain.get("name") if isinstance(plain, dict) else None
    return name if isinstance(name, str) else None


def _refuse_task(task: str, model: str | None) -> str | None:
    """Describe why a model cannot have a task, before that task's arguments are missed."""
    if model is None or model not in registry.models.names():
        return None
    tasks = registry.models.get_class(model).tasks
    if tasks is None or task in tasks:
        return None
    instead = " or ".join(f"task={{name: {name}}}" for name in sorted(tasks))
    return f"'{task}' is no task of the model '{model}'; set {instead}"


def _find_model_defaults(model: str | None, transform: str) -> Mapping[str, Any]:
    """Return the arguments that a transform has for a model where the config states no others."""
    if model is None or model not in registry.models.names():
        return {}
    return registry.models.get_class(model).transform_defaults.get(transform, {})


@lru_cache
def _section_keys() -> dict[str, str]:
    """Map the keys of all sections to their dotted paths; the first section that has a key gets it."""
    hints = {
        name: section
        for name, hint in typing.get_type_hints(RunConfig).items()
        for section in (typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,))
        if dataclasses.is_dataclass(section)
    }
    return {key: f"{name}.{key}" for name in reversed(hints) for key in _section_fields(typing.cast(type, hints[name]))}
