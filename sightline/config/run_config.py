"""Config of a run. Field annotations are the schema; unknown keys are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Le, Lt

from sightline.config.expectations import Expectation
from sightline.contract.arguments import (
    Count,
    FractionBelowOne,
    NonNegativeFloat,
    PositiveFloat,
    Seed,
    WeightQuantisation,
)
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

    `tile` is the side in pixels of tiles in which larger images are evaluated, besides the pass over the whole image;
    neighbours share at least `tile_overlap` of it.
    Without `mode` the metric states if a higher or a lower value is better: `runs.best_checkpoint.resolve_mode`.
    """

    metric: str
    every: Count = 1
    batch_size: Count = 64
    mode: Literal["max", "min"] | None = None
    select: Literal["validation", "test"] = "validation"
    votes: Few = 1
    tile: Count | None = None
    tile_overlap: FractionBelowOne = 0.4


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
