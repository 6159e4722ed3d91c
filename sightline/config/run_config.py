"""Config of a run. Field annotations are the schema; unknown keys are refused.

YAML writer of a resolved config, which reads back equal, with the origin of every value as a comment.

Settings of one config that contradict one another.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from annotated_types import Ge, Le, Lt

from sightline.config.expectations import Expectation, find_fault
from sightline.config.yaml_tree import ConfigFaults
from sightline.contract import registry
from sightline.contract.arguments import Count, NonNegativeFloat, PositiveFloat, Seed, WeightQuantisation
from sightline.contract.errors import ConfigError
from sightline.contract.types import ComponentConfig, SourceLocation

PrecisionName = Literal["float32", "float64", "tf32", "bf16", "fp16", "auto"]
"""`auto` is resolved when a run is built; the run records what it chose."""
Cudnn = Literal["on", "off", "all_but_batch_norm"]
EmaDecay = Annotated[float, Ge(0.0), Lt(1.0)]
"""Decay of the EMA of the weights per step; at 1 it would never change."""
Few = Annotated[int, Ge(1), Le(1000)]
Workers = Annotated[int, Ge(0), Le(256)]
"""Number of worker processes, at most about the number of cores."""


@dataclass(frozen=True)
class Transforms:
    """Transforms in order: `train` for training batches, `evaluate` for evaluated ones, `vote` before voting passes."""

    train: tuple[ComponentConfig, ...] = ()
    evaluate: tuple[ComponentConfig, ...] = ()
    vote: tuple[ComponentConfig, ...] = ()


@dataclass(frozen=True)
class EarlyStopping:
    """End of a training whose metric stays as it is.

    It ends after `patience` evaluations in a row that do not improve `evaluate.metric` by more than `min_change`.
    """

    patience: Count
    min_change: NonNegativeFloat = 0.0


@dataclass(frozen=True)
class Train:
    """Training settings: `batch_size` is samples per optimiser step over all processes and micro-batches."""

    epochs: Count
    batch_size: Count | Literal["auto"]
    steps: Count | None = None
    micro_batches: Count = 1
    tail: Literal["keep", "drop"] = "keep"
    clip_norm: PositiveFloat | None = None
    ema_decay: EmaDecay | None = None
    precision: PrecisionName = "float32"
    determinism: Literal["off", "seeded", "strict"] = "seeded"
    cudnn: Cudnn = "on"
    compile: bool = False
    graph: Literal["auto", "off"] = "auto"
    early_stopping: EarlyStopping | None = None

    @property
    def num_samples(self) -> int:
        """Samples per step. Raises ConfigError for `auto`, which is a number once a run is built on a GPU."""
        if self.batch_size == "auto":
            raise ConfigError("train.batch_size: auto is searched where a run is built on a GPU; give a number here")
        return self.batch_size


@dataclass(frozen=True)
class Evaluate:
    """Evaluation settings; `select` is the split that selects the best checkpoint, `votes` the number of passes.

    Without `mode` the metric states if a higher or a lower value is better: `runs.best_checkpoint.resolve_mode`.
    """

    metric: str
    every: Count = 1
    batch_size: Count = 64
    mode: Literal["max", "min"] | None = None
    select: Literal["validation", "test"] = "validation"
    votes: Few = 1


@dataclass(frozen=True)
class Init:
    """Initial weights from another run, from a file of published weights, or from either on a hub (hf://OWNER/REPO).

    `modules` takes one sub-module of them, `into` fills one sub-module of this model: where it is null the one of the
    same name, if the model has it, and else the whole model. `may_be_missing` names what need not match.
    """

    source: str = field(metadata={"key": "from"})
    modules: str | None = None
    into: str | None = None
    may_be_missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Compress:
    """Weights to quantise after `init`, by name; training then changes the values that they are computed from.

    The config may name a policy file; the run stores the policy itself. `gradient`: the gradient of a codebook entry is
    the mean or the sum over the weights that use it.
    """

    policy: dict[str, WeightQuantisation]
    gradient: Literal["mean", "sum"] = "mean"


@dataclass(frozen=True)
class Teacher:
    """A trained run whose network predicts every batch, too: losses read its outputs as `teacher_<output>`.

    A run directory or one of its checkpoints. `sha256` is that of its weights, which a run notes when it is trained:
    others are then refused.
    """

    source: str = field(metadata={"key": "from"})
    sha256: str | None = None


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoint settings: saved every `every` epochs (or `every_steps` steps) and at evaluations."""

    every: Count = 1
    every_steps: Count | None = None
    keep_last: Count = 1


@dataclass(frozen=True)
class Loader:
    """Worker processes for sets that decode files; 0 reads in the training process, as sets in memory should.

    `transforms` run on a GPU where they have the same numbers there.
    """

    workers: Workers = 0
    prefetch: Few = 2
    transforms: Literal["auto", "host"] = "auto"


@dataclass(frozen=True)
class Log:
    """Log settings: a training line every `every` steps, and other loggers; `mlflow` is a tracking URI."""

    every: Count = 50
    tensorboard: bool = False
    wandb: Literal["off", "offline", "online"] = "off"
    mlflow: str | None = None
    gradients: bool = False
    curves: bool = False


@dataclass(frozen=True)
class Checks:
    """Codes of checks that this run skips."""

    skip: tuple[str, ...] = ()


@dataclass(frozen=True)
class Distributed:
    """Settings of distributed training; a collective that waits longer than `timeout_s` ends the run."""

    sync_batch_norm: bool = False
    timeout_s: PositiveFloat = 600.0


@dataclass(frozen=True, repr=False)
class RunConfig:
    """Config of a run. `origins` maps every dotted path to the location that its value came from."""

    name: str
    data: ComponentConfig
    model: ComponentConfig
    losses: tuple[ComponentConfig, ...]
    metrics: tuple[ComponentConfig, ...]
    optimizer: ComponentConfig
    train: Train
    evaluate: Evaluate
    seed: Seed = 0
    task: ComponentConfig = field(default=ComponentConfig("classify"))
    transforms: Transforms = field(default_factory=Transforms)
    schedule: ComponentConfig = field(default=ComponentConfig("constant"))
    init: Init | None = None
    compress: Compress | None = None
    teacher: Teacher | None = None
    checkpoint: Checkpoints = field(default_factory=Checkpoints)
    loader: Loader = field(default_factory=Loader)
    log: Log = field(default_factory=Log)
    checks: Checks = field(default_factory=Checks)
    distributed: Distributed = field(default_factory=Distributed)
    expect: tuple[Expectation, ...] = ()
    origins: Mapping[str, SourceLocation] = field(
        default_factory=dict, compare=False, repr=False, metadata={"key": None}
    )

    def __repr__(self) -> str:
        described = f"{self.task.name}: {self.model.name} on {self.data.name}, {self.train.epochs} epochs"
        return f"RunConfig({self.name}, {described}, seed {self.seed})"


MAX_COLUMN = 56
_PLAIN_KEY = re.compile(r"(?!(true|false|null)\b)[A-Za-z_][A-Za-z0-9_-]*")


class _Line(NamedTuple):
    text: str
    comment: str


def render_config(config: RunConfig, *, origins: bool) -> str:
    """Render a config as YAML; with `origins`, each value is followed by its origin."""
    lines = list(_render_lines(to_plain(config), "", 0, config if origins else None))
    column = min(MAX_COLUMN, max((len(line.text) for line in lines if line.comment), default=0))
    texts = (f"{line.text:<{column}}  # {line.comment}" if line.comment else line.text for line in lines)
    return "\n".join(texts) + "\n"


def render_plain(tree: Mapping[str, Any]) -> str:
    """Render a plain mapping, such as a part of a config, as YAML."""
    return "".join(f"{line.text}\n" for line in _render_lines(tree, "", 0, None))


def to_plain(value: Any) -> Any:
    """Convert config sections and component blocks to mappings, tuples to lists."""
    if isinstance(value, ComponentConfig):
        weight = {"weight": to_plain(value.weight)} if value.weight != 1.0 else {}
        return {"name": value.name, **weight, **{key: to_plain(item) for key, item in value.arguments.items()}}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f for f in dataclasses.fields(value) if f.metadata.get("key", f.name)]
        return {f.metadata.get("key", f.name): to_plain(getattr(value, f.name)) for f in fields}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return value


def flatten(tree: Any, path: str = "") -> dict[str, Any]:
    """Flatten a plain config to its leaves by their dotted keys; a list of plain values is a leaf, as written."""
    is_block = isinstance(tree, list) and any(isinstance(item, dict | list) for item in tree)
    if is_block or (isinstance(tree, dict) and tree):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for key, value in items for k, v in flatten(value, f"{path}.{key}".lstrip(".")).items()}
    return {path: tree}


def format_inline(value: Any) -> str:
    """Format a value on one line, quoted if our reader would otherwise not read it as text."""
    if isinstance(value, str):
        return yaml.safe_dump(value, default_style='"', width=10**6, allow_unicode=True).strip()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(format_inline(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_format_key(key)}: {format_inline(item)}" for key, item in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def _render_lines(tree: Any, path: str, indent: int, config: RunConfig | None) -> Iterator[_Line]:
    for key, value in tree.items():
        path_of_key = f"{path}.{key}".lstrip(".")
        pad = "  " * indent
        is_open = value and (config is None or path_of_key not in config.origins)
        if is_open and isinstance(value, dict):
            yield _Line(f"{pad}{_format_key(key)}:", "")
            yield from _render_lines(value, path_of_key, indent + 1, config)
        elif is_open and isinstance(value, list) and all(isinstance(item, dict) and item for item in value):
            yield _Line(f"{pad}{_format_key(key)}:", "")
            for index, item in enumerate(value):
                first, *more = _render_lines(item, f"{path_of_key}.{index}", indent + 2, config)
                yield first._replace(text=f"{pad}  - {first.text.lstrip()}")
                yield from more
        else:
            yield _Line(f"{pad}{_format_key(key)}: {format_inline(value)}", _format_origin(path_of_key, config))


def _format_key(key: str) -> str:
    return key if _PLAIN_KEY.fullmatch(key) else format_inline(key)


def _format_origin(path: str, config: RunConfig | None) -> str:
    if config is None or path not in config.origins:
        return ""
    where = config.origins[path]
    return where.source if where.line is None else f"{where.source}:{where.line}"


MAX_NAME_BYTES = 200
_STEPS_PER_EPOCH = 10**6
"""Steps per epoch to try out a schedule, as the real number is unknown: large, so that rounding does not matter."""


def check_consistency(values: Mapping[str, Any], origins: Mapping[str, SourceLocation], faults: ConfigFaults) -> None:
    """Note contradictions between settings that are valid one by one; invalid ones are None or absent."""

    def add(path: str, text: str) -> None:
        faults.add(origins.get(path, SourceLocation("default", path=path)), text)

    train, evaluate, transforms = (values.get(section) for section in ("train", "evaluate", "transforms"))
    if train is not None and train.batch_size != "auto" and _exceeds(train.micro_batches, train.batch_size):
        actual = f"{train.micro_batches} micro-batches of a batch of {train.batch_size} samples"
        add("train.micro_batches", f"found {actual}, allowed is at most one per sample")
    if evaluate is not None and transforms is not None and _exceeds(evaluate.votes, 1) and transforms.vote == ():
        actual = f"{evaluate.votes} votes, but no transforms.vote"
        add("evaluate.votes", f"found {actual}: passes over the same input are equal; name a transform that varies it")
    for kind in ("losses", "metrics"):
        _check_names(kind, values.get(kind), origins, faults)
    name = values.get("name")
    if name is not None and not _is_folder_name(name):
        add("name", f"found {name!r}, allowed is what can name a folder: no '/' or '\\', no dot first")
    for index, expectation in enumerate(values.get("expect") or ()):
        if fault := find_fault(expectation):
            where = dataclasses.replace(origins.get("expect", SourceLocation("default")), path=f"expect.{index}")
            faults.add(where, fault)
    for component in _list_components(values):
        _try_build(component, train, faults)


def _exceeds(number: int | None, bound: int | None) -> bool:
    return number is not None and bound is not None and number > bound


def _check_names(
    kind: str,
    components: tuple[ComponentConfig, ...] | None,
    origins: Mapping[str, SourceLocation],
    faults: ConfigFaults,
) -> None:
    if components == () and kind in origins:
        faults.add(origins[kind], "found an empty list, allowed is at least one")
    first: dict[str, ComponentConfig] = {}
    for component in components or ():
        if component.name in first:
            where = first[component.name].location
            first_location = where.path if where.line is None else f"{where.path} (line {where.line})"
            faults.add(component.location, f"'{component.name}' is named twice, first as {first_location}; remove one")
        first.setdefault(component.name, component)


def _is_folder_name(name: str) -> bool:
    is_plain = name.isprintable() and not set("/\\") & set(name) and name == name.strip()
    return bool(name) and is_plain and not name.startswith(".") and len(name.encode()) <= MAX_NAME_BYTES


def _list_components(values: Mapping[str, Any]) -> list[tuple[registry.Registry, ComponentConfig]]:
    """List the blocks that can be built from the config alone, without data and model."""
    transforms = values.get("transforms")
    parts = () if transforms is None else (transforms.train, transforms.evaluate, transforms.vote)
    blocks = [(registry.transforms, component) for part in parts for component in part or ()]
    blocks.append((registry.optimizers, values.get("optimizer")))
    blocks.append((registry.schedules, values.get("schedule")))
    return [(kind, component) for kind, component in blocks if component is not None]


def _try_build(block: tuple[registry.Registry, ComponentConfig], train: Any, faults: ConfigFaults) -> None:
    """Build a block whose facts the config states, to report what its builder refuses before data is read."""
    kind, component = block
    facts: dict[str, int] = {}
    if train is not None and train.epochs is not None:
        facts = {"num_steps": train.epochs * _STEPS_PER_EPOCH, "steps_per_epoch": _STEPS_PER_EPOCH}
    bound = kind.bind(component)
    if bound.needed_facts - facts.keys():
        return
    try:
        bound.build(facts=facts)
    except ConfigError as error:
        for text in error.faults:
            _add_located_fault(text, component, faults)


def _add_located_fault(text: str, component: ComponentConfig, faults: ConfigFaults) -> None:
    """Note a message that begins with its location."""
    locations = [*component.origins.values(), component.location]
    where = next((location for location in locations if text.startswith(f"{location}: ")), component.location)
    faults.add(where, text.removeprefix(f"{where}: "))
