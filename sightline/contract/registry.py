"""Registries of components: one per kind, from names to builders, with arguments checked by signature."""

from __future__ import annotations

import importlib
import inspect
import itertools
import operator
import re
import shlex
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from sightline.contract import members, own_parts
from sightline.contract.binding import UnknownKeyError
from sightline.contract.catalogue import find_modules, gc_paused, load_member
from sightline.contract.errors import ConfigError, DataError, UserError
from sightline.contract.facts import BLOCK_FACTS, DATA_FACTS, FACTS
from sightline.contract.regular_files import read_regular_file
from sightline.contract.schema import (
    Parameter,
    assert_signature,
    check_value,
    describe_type,
    refuse_block,
    signature_parameters,
    suggest,
)
from sightline.contract.types import ComponentConfig, SourceLocation
from sightline.contract.validation import Ge, Gt, Le, Lt

if TYPE_CHECKING:
    from sightline.contract.dataset import Dataset
    from sightline.contract.loss import Loss
    from sightline.contract.metric import Metric
    from sightline.contract.model import Backbone, Encoder, Head, Model, Neck
    from sightline.contract.task import Task
    from sightline.contract.transform import Transform

_COMPARISONS = {Ge: operator.ge, Gt: operator.gt, Le: operator.le, Lt: operator.lt}

BuilderT = TypeVar("BuilderT", bound=Callable[..., Any])
ComponentT = TypeVar("ComponentT")


class ConfigFault(NamedTuple):
    """Fault in a config: its location and description."""

    where: SourceLocation
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


class BlockFacts(NamedTuple):
    """Facts that earlier blocks of a component state for later ones, and the name of the last block."""

    facts: Mapping[str, Any]
    stated_by: str


class RegistryEntry(NamedTuple):
    """Registered component: its builder, the builder's parameters, and those that only other blocks give."""

    name: str
    builder: Callable[..., Any]
    parameters: Mapping[str, Parameter]
    block_facts: frozenset[str] = frozenset()

    @property
    def source(self) -> str:
        """The docstring's text after 'Source:'; empty if there is none."""
        _, _, source = (inspect.getdoc(self.builder) or "").partition("Source:")
        return " ".join(source.split())

    @property
    def summary(self) -> str:
        """The first line of the docstring, without its source."""
        return (inspect.getdoc(self.builder) or "").split("\n", 1)[0].partition("Source:")[0].strip()

    @property
    def example(self) -> str:
        """The docstring's lines from the first `>>>` to the next blank one; empty if there are none."""
        match = re.search(r"^>>> .*?(?=\n\n|\Z)", inspect.getdoc(self.builder) or "", flags=re.DOTALL | re.MULTILINE)
        return match[0] if match else ""

    @property
    def arguments(self) -> dict[str, Parameter]:
        """The parameters that a config may set: all except facts."""
        injected = FACTS | self.block_facts
        return {name: parameter for name, parameter in self.parameters.items() if name not in injected}

    @property
    def facts(self) -> list[str]:
        """The parameters that come from the data set or the run."""
        return [name for name in self.parameters if name in FACTS]

    @property
    def parameters_from_blocks(self) -> list[str]:
        """The parameters that come from an earlier block."""
        return [name for name in self.parameters if name in self.block_facts]


def within_bounds(function: BuilderT, parameters: Mapping[str, Parameter] | None = None) -> BuilderT:
    """Wrap a function so that it refuses numbers outside of the bounds of its annotations, as a config does.

    Raises ValueError for keyword-only arguments, numbers or lists of them; other types are the function's own affair.
    """
    bounds = [
        (name, parameter.annotation, comparisons)
        for name, parameter in (parameters or signature_parameters(function)).items()
        if (comparisons := _list_comparisons(parameter.annotation))
    ]
    if not bounds:
        return function

    @wraps(function)
    def call(*args: Any, **arguments: Any) -> Any:
        for name, annotation, comparisons in bounds:
            value = arguments.get(name)
            for number in value if isinstance(value, list | tuple) else (value,):
                is_number = isinstance(number, int | float)
                if is_number and not all([compare(number, bound) for compare, bound in comparisons]):
                    for path, text in check_value(annotation, value)[1]:
                        subject = f"{function.__qualname__.removesuffix('.__init__')}: {name}"
                        raise ValueError(f"{'.'.join(filter(None, (subject, path)))}: {text}")
        return function(*args, **arguments)

    return typing.cast(BuilderT, call)


def _list_comparisons(annotation: Any) -> list[tuple[Callable[[Any, Any], Any], Any]]:
    """Return the comparisons with bounds that any number of an annotation, or of its parts, may have to pass."""
    comparisons = [
        (_COMPARISONS[type(mark)], getattr(mark, type(mark).__name__.lower()))
        for mark in getattr(annotation, "__metadata__", ())
        if type(mark) in _COMPARISONS
    ]
    return comparisons + [pair for part in typing.get_args(annotation) for pair in _list_comparisons(part)]


class Registry(Generic[ComponentT]):
    """Registry of the components of one kind (`noun`); a component's module is imported on the first use of its name.

    `base` names the base class of the kind, a name of `import sightline`: every class that is added derives
    from it, and so does what a function returns that is added.
    Components of an `in_chain` kind take the `BLOCK_FACTS` that an earlier block of such a kind has as attributes.
    `modules` are the shipped components' modules by name; by default those of the catalogue.
    """

    def __init__(
        self,
        kind: str,
        noun: str,
        *,
        base: str = "",
        in_chain: bool = False,
        modules: Mapping[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self.noun = noun
        self._base_name = base
        self.block_facts = BLOCK_FACTS if in_chain else frozenset()
        self.reserved = ("weight",) if kind == "losses" else ()
        self._modules = modules
        self._entries: dict[str, RegistryEntry] = {}
        self._shipped: dict[str, RegistryEntry] = {}

    @property
    def modules(self) -> Mapping[str, str]:
        """Modules of the shipped components by name."""
        return find_modules(self.kind) if self._modules is None else self._modules

    @property
    def base(self) -> type[ComponentT]:
        """The base class of all components of this kind."""
        base: Any = load_member("public", self._base_name) if self._base_name else object
        return typing.cast(type[ComponentT], base)

    def add(self, name: str) -> Callable[[BuilderT], BuilderT]:
        """Register a class or function under `name`; its keyword-only arguments are what a config may give.

        Bounds of their annotations hold for calls from Python, too.
        """
        own_parts.assert_name(name, noun=self.noun)

        def register(builder: BuilderT) -> BuilderT:
            assert_signature(builder, name, reserved=("name", *self.reserved), injected=FACTS | self.block_facts)
            if inspect.isclass(builder):
                members.assert_members(builder, self.base, subject=f"the {self.noun} '{name}'")
            parameters = signature_parameters(builder)
            if inspect.isclass(builder):
                builder.__init__ = within_bounds(builder.__init__, parameters)  # type: ignore[method-assign]
            else:
                builder = within_bounds(builder, parameters)
            is_shipped = self.modules.get(name) == builder.__module__
            if not is_shipped:
                self._load(name)
            if name in self._entries:
                own_parts.assert_free(builder, self._entries[name].builder, subject=f"the {self.noun} '{name}'")
            self._entries[name] = RegistryEntry(name, builder, parameters, self.block_facts)
            if is_shipped:
                self._shipped[name] = self._entries[name]
            return builder

        return register

    def names(self) -> list[str]:
        return sorted({*self._entries, *self.modules})

    def builders_of_module(self, module: str) -> list[tuple[str, Callable[..., Any]]]:
        """List the names whose classes or functions a module defines, with these."""
        return [(name, e.builder) for name, e in self._entries.items() if e.builder.__module__ == module]

    def builders_outside(self, modules: tuple[str, ...]) -> list[tuple[str, Callable[..., Any]]]:
        """List the names whose classes or functions are of a module that begins with none of these, with these."""
        return [(name, e.builder) for name, e in self._entries.items() if not e.builder.__module__.startswith(modules)]

    def entry(self, component: ComponentConfig) -> RegistryEntry:
        """Return the entry of a component block. Raises ConfigError with the nearest name."""
        self._load(component.name)
        if component.name not in self._entries:
            raise ConfigError(str(self._unknown_name_fault(component)))
        return self._entries[component.name]

    def get_entry(self, name: str) -> RegistryEntry:
        """Return the entry of a name from `names()`."""
        return self.entry(ComponentConfig(name))

    def get_class(self, component: ComponentConfig | str) -> type[ComponentT]:
        """Return the class of a component block or name; the base class of the kind for one that a function makes."""
        builder = self.entry(ComponentConfig(component) if isinstance(component, str) else component).builder
        return typing.cast(type[ComponentT], builder) if inspect.isclass(builder) else self.base

    def bind(self, component: ComponentConfig, *, elsewhere: Mapping[str, str] = MappingProxyType({})) -> BoundBlock:
        """Bind a component block and the blocks inside it to their signatures, with all faults that these show.

        `elsewhere` maps keys of other sections to their dotted paths, for a key that is in the wrong section.
        """
        self._load(component.name)
        entry = self._entries.get(component.name)
        if entry is None:
            fault = self._unknown_name_fault(component)
            return BoundBlock(self, component, RegistryEntry(component.name, dict, {}), {}, {}, [fault])
        values, blocks, faults = {}, {}, []
        for name, value in component.arguments.items():
            where = component.origins.get(name, _locate_key(component.location, name))
            refusal = _describe_refusal(name, entry, elsewhere, reserved=self.reserved)
            if refusal is not None:
                faults.append(ConfigFault(where, refusal))
                continue
            parameter = entry.parameters[name]
            if parameter.block is None:
                values[name], misfits = check_value(parameter.annotation, value)
                for path, text in misfits:
                    value_path = f"{name}.{path}".rstrip(".")
                    faults.append(ConfigFault(component.origins.get(value_path, _locate_key(where, path)), text))
            elif misfit := _describe_block_misfit(parameter.annotation, value):
                faults.append(ConfigFault(where, misfit))
            else:
                kind = REGISTRIES[parameter.block.kind]
                blocks[name] = [kind.bind(inner) for inner in _nested_blocks(component, name)]
                faults += [fault for block in blocks[name] for fault in block.faults]
        blocks = {name: blocks[name] for name in entry.parameters if name in blocks}
        faults += [
            ConfigFault(
                _locate_key(component.location, name),
                f"is required and missing: '{component.name}' needs {describe_type(parameter.annotation)} here",
            )
            for name, parameter in entry.arguments.items()
            if parameter.is_required and name not in component.arguments
        ]
        return BoundBlock(self, component, entry, values, blocks, faults)

    def build(self, component: ComponentConfig, *, facts: Mapping[str, object]) -> ComponentT:
        """Bind a component block and build it, with the facts that its signature names (`BoundBlock.build`)."""
        built: ComponentT = self.bind(component).build(facts=facts)
        return built

    def describe_foreign(self, entry: RegistryEntry, made: object) -> str:
        """Describe what a function made that does not derive from the base class of the kind."""
        return (
            f"the {self.noun} '{entry.name}': {entry.builder.__name__} returned a {type(made).__name__}, which derives "
            f"from no sightline.{self._base_name}; return one, such as one that holds this object"
        )

    def _unknown_name_fault(self, component: ComponentConfig) -> ConfigFault:
        where = component.origins.get("name", _locate_key(component.location, "name"))
        hint = suggest(component.name, self.names(), otherwise=f"; there are {', '.join(self.names())}")
        own = own_parts.name_own_parts({name: entry.builder for name, entry in self._entries.items()})
        hint += f"{f' {own[0].upper()}' if hint.endswith('?') else f'; {own[0]}'}{own[1:]}"
        if (plugin := _find_plugin_beside(component)) is not None:
            hint = f"; {plugin} defines it: give --plugin {shlex.quote(str(plugin))}"
        return ConfigFault(where, f"no {self.noun} is called '{component.name}'{hint}")

    def _load(self, name: str) -> None:
        """Import the module of a shipped component, unless it is registered."""
        if name in self._entries or name not in self.modules:
            return
        with gc_paused():
            importlib.import_module(self.modules[name])
        self._entries.setdefault(name, self._shipped[name])


class BoundBlock(NamedTuple):
    """A component block bound to the signature of its builder: converted values, bound inner blocks, and all faults.

    `blocks` has the inner blocks of each argument that is a block, a list of blocks, or null, in the signature's order.
    """

    kind: Registry[Any]
    component: ComponentConfig
    entry: RegistryEntry
    values: Mapping[str, Any]
    blocks: Mapping[str, Sequence[BoundBlock]]
    faults: Sequence[ConfigFault]

    def iterate(self) -> Iterator[BoundBlock]:
        """Iterate over the block and all blocks inside it, outer before inner."""
        yield self
        for block in itertools.chain(*self.blocks.values()):
            yield from block.iterate()

    def get_argument(self, name: str) -> Any:
        """Return an argument of the block, as configured, else its default; None for a required one that is missing."""
        parameter = self.entry.arguments[name]
        return self.component.arguments.get(name, None if parameter.is_required else parameter.default)

    @property
    def accepted_facts(self) -> dict[str, Parameter]:
        """The facts that the block and its inner blocks take; required if any of them requires it.

        Facts that blocks state for one another are left out.
        """
        accepted = {name: self.entry.parameters[name] for name in self.entry.facts}
        for inner in itertools.chain(*self.blocks.values()):
            for fact, parameter in inner.accepted_facts.items():
                if parameter.is_required or fact not in accepted:
                    accepted[fact] = parameter
        return accepted

    @property
    def needed_facts(self) -> set[str]:
        """The facts that the block or its inner blocks cannot be built without."""
        return {name for name, parameter in self.accepted_facts.items() if parameter.is_required}

    def build(self, *, facts: Mapping[str, object], stated: BlockFacts | None = None) -> Any:
        """Call the builder with the block's arguments and with the facts that its signature names.

        The blocks inside it are built first, in the order of its signature; `stated` is what those before it state.
        Raises ConfigError for an argument that is unknown, ill-typed, missing, given by the config and as a fact, or
        refused by the builder itself.
        """
        faults = [*map(str, self.faults), *self._find_misstated_facts(stated), *self._find_missing_facts(facts)]
        if faults:
            raise ConfigError(*faults)
        arguments = dict(self.values)
        inner_facts: BlockFacts | None = None
        for name, blocks in self.blocks.items():
            built = []
            for block in blocks:
                built.append(block.build(facts=facts, stated=inner_facts))
                names = block.kind.block_facts
                if names:
                    block_facts = {fact: getattr(built[-1], fact) for fact in names if hasattr(built[-1], fact)}
                    inner_facts = BlockFacts(block_facts, f"{block.kind.noun} '{block.entry.name}'")
            is_list = isinstance(self.component.arguments[name], list | tuple)
            arguments[name] = tuple(built) if is_list else next(iter(built), None)
        injected = {name: facts[name] for name in self.entry.facts if name in facts}
        if stated is not None:
            injected |= {name: stated.facts[name] for name in self.entry.parameters_from_blocks if name in stated.facts}
        with locate_errors(self.component):
            made = own_parts.call_builder(self.entry.builder, {**arguments, **injected})
        if not isinstance(made, self.kind.base):
            raise ConfigError(f"{self.component.location}: {self.kind.describe_foreign(self.entry, made)}")
        if unset := ", ".join(members.list_unset(made, self.kind.base)):
            raise ConfigError(f"{self.component.location}: {self.entry.name}: its base class asks it to set {unset}")
        return made

    def _find_missing_facts(self, facts: Mapping[str, object]) -> Iterator[str]:
        """Yield the fault of facts that the builder requires and nobody gives."""
        entry = self.entry
        missing = [name for name in entry.facts if entry.parameters[name].is_required and name not in facts]
        if missing:
            yield (
                f"{self.component.location}: {self.kind.noun} '{entry.name}' needs {', '.join(missing)}; the data set "
                f"offers {', '.join(sorted(facts)) or 'no facts'}"
            )

    def _find_misstated_facts(self, stated: BlockFacts | None) -> Iterator[str]:
        """Yield faults of facts that an earlier block should state, but does not, or states with another type."""
        subject = f"{self.component.location}: {self.kind.noun} '{self.entry.name}'"
        stated_by = "a block" if stated is None else f"the {stated.stated_by}"
        for name in self.entry.parameters_from_blocks:
            parameter = self.entry.parameters[name]
            if stated is not None and name in stated.facts:
                for _, text in check_value(parameter.annotation, stated.facts[name])[1]:
                    yield f"{subject} takes {name} of {stated_by} before it: {text}"
            elif parameter.is_required:
                allowed = describe_type(parameter.annotation)
                yield f"{subject} needs {name}; {stated_by} before it should state it, as an attribute: {allowed}"


class Need(NamedTuple):
    """Need of one component, `taker`: that `giver` offers one of the `values` of a topic, such as `priors`."""

    topic: str
    taker: str
    values: Collection[Any]
    giver: str
    offered: Collection[Any]


def find_mismatch(needs: Iterable[Need]) -> str | None:
    """Describe the first need that is not met, with what is offered instead; None if components fit together."""
    for topic, taker, values, giver, offered in needs:
        if {*values}.isdisjoint(offered):
            needed, available = (sorted(map(str, words)) for words in (values, offered))
            return f"{taker} needs {topic} {' or '.join(needed)}; {giver} offers {', '.join(available) or 'none'}"
    return None


def _find_plugin_beside(component: ComponentConfig) -> Path | None:
    """Return the Python file beside a block's config whose text registers its name; nothing is imported or run."""
    registers = re.compile(rf"""\bregister\.\w+\(\s*["']{re.escape(component.name)}["']""")
    folders = {Path(where.source).parent for where in (component.location, *component.origins.values())}
    for path in (path for folder in sorted(folders) for path in sorted(folder.glob("*.py"))):
        with suppress(OSError):
            if registers.search(read_regular_file(path).decode(errors="replace")):
                return path
    return None


def _nested_blocks(component: ComponentConfig, name: str) -> list[ComponentConfig]:
    """Return the component blocks in an argument: one, several in a list, or none if it is null.

    They must be mappings with a name: `bind` lists those that are not.
    """
    value = component.arguments[name]
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [_make_block(component, f"{name}.{index}", item) for index, item in enumerate(value)]
    return [_make_block(component, name, value)]


def _make_block(component: ComponentConfig, path: str, value: Any) -> ComponentConfig:
    """Make a component of the value at `path` in a component's block, with the locations of its values."""
    if isinstance(value, ComponentConfig):
        return value
    origins = {
        key_path.removeprefix(f"{path}."): where
        for key_path, where in component.origins.items()
        if key_path.startswith(f"{path}.")
    }
    named = origins.get("name") or component.origins.get(path, component.location)
    below = _locate_key(component.location, path)
    where = SourceLocation(named.source, named.line, below.path) if below.path else below
    arguments = {key: item for key, item in value.items() if key != "name"}
    return ComponentConfig(value["name"], arguments, location=where, origins=origins)


def _hint_shares(name: str, entry: RegistryEntry) -> str:
    """Return the arguments that set the parts of a data set, for a `split` given by hand; else an empty text."""
    arguments = [f"data.{a}" for a in entry.arguments if a.startswith(("test", "validation", "split"))]
    means = f"set by {', '.join(arguments)}" if arguments else "those of the files or of `data prepare`"
    return f": a run opens every part itself; parts are {means}" if name == "split" else ""


def _describe_refusal(
    name: str, entry: RegistryEntry, elsewhere: Mapping[str, str], *, reserved: Collection[str]
) -> str | None:
    """Describe why a config may not give an argument: something else gives it, or the builder has none of this name."""
    if name in FACTS:
        giver = "data set" if name in DATA_FACTS else "run"
        return f"'{name}' is given by the {giver}; remove it here{_hint_shares(name, entry)}"
    if name in entry.block_facts:
        return f"'{name}' is given by an earlier block; remove it here"
    if name in entry.parameters:
        return None
    if name in elsewhere:
        return f"'{entry.name}' has no such argument; did you mean '{elsewhere[name]}'?"
    allowed = [*entry.arguments, *reserved]
    otherwise = f"; allowed: {', '.join(allowed)}" if allowed else "; it takes none"
    return f"'{entry.name}' has no such argument{suggest(name, allowed, otherwise=otherwise)}"


def _describe_block_misfit(annotation: Any, value: Any) -> str | None:
    """Describe a value that is not a block where a block is expected, or not a list of blocks; None if it fits."""
    is_list = typing.get_origin(annotation) is tuple
    is_optional = type(None) in typing.get_args(annotation)
    allowed = describe_type(annotation)
    if isinstance(value, list | tuple) != is_list or (value is None and not is_optional):
        return refuse_block(value, allowed)
    for item in value if is_list else [value]:
        is_mapping = isinstance(item, Mapping) and isinstance(item.get("name"), str)
        if not is_mapping and not isinstance(item, ComponentConfig) and (item is not None or is_list):
            return refuse_block(item, allowed.removeprefix("a list, each "))
    return None


@contextmanager
def locate_errors(component: ComponentConfig) -> Iterator[None]:
    """Context that adds the location of a block, or of the argument that an error names, to a builder's errors."""
    try:
        yield
    except UnknownKeyError:
        raise
    except ConfigError as error:
        raise ConfigError(*(_add_location(component, fault) for fault in error.faults)) from error
    except DataError as error:
        # The argument that contains the folder at the beginning of the message, else the root.
        message, arguments = str(error), component.arguments.items()
        named = (name for name, value in arguments if isinstance(value, str) and message.startswith(f"{value}: "))
        raise type(error)(f"{component.origins.get(next(named, 'root'), component.location)}: {error}") from error
    except UserError:
        raise
    except ValueError as error:
        raise ConfigError(f"{component.location}: '{component.name}' refuses its arguments: {error}") from error


def _add_location(component: ComponentConfig, fault: str) -> str:
    """Add the location to a builder's message `argument: text` or `<block>.argument: text`."""
    subject, _, text = fault.partition(": ")
    outer, _, name = subject.rpartition(".")
    if name in component.arguments and outer in ("", component.name, component.location.path):
        return f"{component.origins.get(name, _locate_key(component.location, name))}: {text}"
    if component.location.path and subject.startswith(f"{component.location.path}."):
        argument_path = subject.removeprefix(f"{component.location.path}.")
        nearby = component.origins.get(argument_path) or component.origins.get(
            argument_path.split(".")[0], component.location
        )
        return f"{SourceLocation(nearby.source, nearby.line, subject)}: {text}"
    return f"{component.location}: {fault}"


def _locate_key(where: SourceLocation, name: str) -> SourceLocation:
    """Return the location of a block's key that has none itself."""
    if not name:
        return where
    if not where.path:  # a call from Python, not a file
        return SourceLocation(f"{where.source}.{name}", where.line)
    return SourceLocation(where.source, where.line, f"{where.path}.{name}")


data: Registry[Dataset] = Registry("data", "data set", base="Dataset")
models: Registry[Model] = Registry("models", "model", base="Model")
point_encoders: Registry[Encoder] = Registry("point_encoders", "point encoder", base="Encoder")
image_encoders: Registry[Encoder] = Registry("image_encoders", "image encoder", base="Encoder")
backbones: Registry[Backbone] = Registry("backbones", "backbone", base="Backbone", in_chain=True)
necks: Registry[Neck] = Registry("necks", "neck", base="Neck", in_chain=True)
heads: Registry[Head] = Registry("heads", "head", base="Head", in_chain=True)
references: Registry[Any] = Registry("references", "reference point", base="Reference")
assigners: Registry[Any] = Registry("assigners", "assigner", base="Assigner")
suppressions: Registry[Any] = Registry("suppressions", "suppression", base="Suppression")
tasks: Registry[Task] = Registry("tasks", "task", base="Task")
task_wrappers: Registry[Task] = Registry("task_wrappers", "task around another", base="Task")
"""Builders of a task around that of the config, by the section of the config that asks for it. No config names them."""
losses: Registry[Loss] = Registry("losses", "loss", base="Loss")
metrics: Registry[Metric] = Registry("metrics", "metric", base="Metric")
transforms: Registry[Transform] = Registry("transforms", "transform", base="Transform")
optimizers: Registry[Any] = Registry("optimizers", "optimizer", base="OptimizerSpec")
schedules: Registry[Any] = Registry("schedules", "schedule", base="Schedule")
predictors: Registry[Any] = Registry("predictors", "predictor", base="Predictor")
probes: Registry[Any] = Registry("probes", "probe", base="Probe")
searches: Registry[Any] = Registry("searches", "search", base="Search")

REGISTRIES: dict[str, Registry[Any]] = {
    registry.kind: registry
    for registry in (
        models,
        point_encoders,
        image_encoders,
        backbones,
        necks,
        heads,
        data,
        references,
        assigners,
        losses,
        metrics,
        suppressions,
        transforms,
        optimizers,
        schedules,
        tasks,
        predictors,
        probes,
        searches,
    )
}
