"""Construction of a training run from its config: data, facts, model, losses, task, metrics, optimiser, schedule."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast

import yaml
from torch import nn

from sightline.config import RunConfig, locate_errors
from sightline.config.run_config import PrecisionName
from sightline.contract import registry
from sightline.contract.binding import AvailableKeys, UnknownKeyError, bind
from sightline.contract.errors import ConfigError
from sightline.contract.loss import Loss
from sightline.contract.metric import Metric, find_state_fault
from sightline.contract.model import Model, model_output_keys
from sightline.contract.task import Task
from sightline.contract.types import ComponentConfig
from sightline.engine.batch_size import find_batch_size
from sightline.engine.batches.sampler import BatchSampler
from sightline.engine.batches.stream import BatchStream, Preparation
from sightline.engine.device.numerics import Precision, is_memory_bound, resolve_precision, seed_everything
from sightline.engine.distributed import World
from sightline.engine.evaluate import BoundMetric, Evaluator
from sightline.engine.learnt_losses import LearntLosses
from sightline.engine.optimizers import ModuleRate, OptimizerSpec, set_momentum
from sightline.engine.run_data import (
    Data,
    DataSubset,
    build_data,
    build_transforms,
    describe_data,
    log_linked_data_folder,
    log_unused_validation,
)
from sightline.engine.run_model import apply_model_changes, build_unchanged_model, load_initial_weights, load_network
from sightline.engine.schedules import Schedule
from sightline.engine.tiles import TileReader, make_tiling
from sightline.engine.train import TrainState
from sightline.runs.best_checkpoint import resolve_mode
from sightline.runs.lineage import record_teacher, trace_lineage
from sightline.runs.weight_sources import WeightSource
from sightline.runs.weights import WeightLoadReport
from sightline.store.loading.batch_reader import BatchReader

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSetup:
    """All components built from a config; its `evaluate.mode` is set.

    `init_report` and `init_source` exist if it starts from weights, `module_rates` if modules have different rates.
    """

    config: RunConfig
    data: Data
    job: TrainState
    selection_evaluator: Evaluator
    test_evaluator: Evaluator
    init_source: WeightSource | None = None
    init_report: WeightLoadReport | None = None
    module_rates: tuple[ModuleRate, ...] = ()

    @cached_property
    def lineage(self) -> Mapping[str, Any] | None:
        """The document of `lineage.json` (cached); None for a run that does not start from weights."""
        report = self.init_report
        if report is None or self.init_source is None:
            return None
        return trace_lineage(self.config, self.data.train.dataset.info, report, self.init_source)


def build(
    config: RunConfig,
    world: World,
    *,
    is_resumed: bool = False,
    data: Data | None = None,
    doing: Callable[[str], None] = lambda _: None,
) -> TrainingSetup:
    """Build a run. Raises ConfigError, DataError or CheckpointError, before the first step, if anything does not fit.

    A run that will be resumed does not read the weights that it was once initialised with. `data` replaces the
    config's own. `doing` receives what is built, before each part.
    """
    doing(f"opens the data '{config.data.name}'")
    config = resolve_machine(config, world)
    with locate_errors(config.origins):
        if data is None:
            data = build_data(config)
            world.assert_equal(partial(describe_data, data.facts, data.train, data.selection, data.test))
            log_linked_data_folder(config, world)
            log_unused_validation(config, data, world)
        if config.train.batch_size == "auto":
            config = _resolve_batch_size(config, data, world)
        doing(f"builds the model '{config.model.name}'")
        unchanged = build_unchanged_model(config, data.facts, world)
        if config.init is not None and not is_resumed:
            doing(f"reads the initial weights {config.init.source}")
        config, source, report = (config, None, None) if is_resumed else load_initial_weights(unchanged, config)
        model = apply_model_changes(unchanged, config, world)
        losses = build_losses(config, data.facts, world)
        task, meters = build_task(config, data, model, world, losses=losses)
        config = record_teacher(resolve_mode(config, [meter.metric for meter in meters], is_resumed=is_resumed))
        if config.teacher is not None:
            digest = config.teacher.sha256
            world.assert_equal(lambda: {"SHA-256 of the teacher's weights": digest})
        recipe: OptimizerSpec = registry.optimizers.build(config.optimizer, facts=data.facts)
        job = _build_job(config, data, world, model, task, recipe, LearntLosses(losses))
        selection = build_evaluator(config, data.selection, task, meters)
        test = build_evaluator(config, data.test, task, meters)
        rates = recipe.module_rates(model, job.losses) if recipe.has_module_rates else ()
    return TrainingSetup(config, data, job, selection, test, source, report, rates)


def resolve_machine(config: RunConfig, world: World) -> RunConfig:
    """Set `train.precision: auto` to what suits the machine of the first process.

    Raises ConfigError for `train.batch_size: auto` without a GPU.
    """
    if config.train.batch_size == "auto" and not is_memory_bound(world.device):
        raise ConfigError(
            f"{config.origins.get('train.batch_size', 'train.batch_size')}: auto searches the largest batch that fits "
            f"into the memory of a GPU, and this run is on the {world.device.type}; give a number: train.batch_size=32"
        )
    if config.train.precision == "tf32" and world.device.type != "cuda":
        world.rank_zero_only(logger.warning)(
            "tf32-elsewhere: train.precision: tf32 rounds products on NVIDIA GPUs alone; on this %s it is float32",
            world.device.type,
        )
    if config.train.precision != "auto":
        return config
    name = world.broadcast_from_rank_zero(
        lambda: resolve_precision("auto", world.device), operation="the number format"
    )
    return dataclasses.replace(config, train=dataclasses.replace(config.train, precision=cast(PrecisionName, name)))


def _resolve_batch_size(config: RunConfig, data: Data, world: World) -> RunConfig:
    """Set `train.batch_size: auto` to the largest number whose steps fit on every process, by steps of such a run."""

    train, num_samples = config.train, len(data.train.indices)

    def build_alone(size: int) -> TrainState:
        full = dataclasses.replace(train, batch_size=size, tail="drop")  # a short last batch may train no batch norm
        trial = dataclasses.replace(config, train=full, loader=dataclasses.replace(config.loader, workers=0))
        return build(trial, World(device=world.device), is_resumed=True, data=data).job

    is_cut = train.tail == "drop"
    size = find_batch_size(build_alone, world, num_samples, micro_batches=train.micro_batches, is_cut=is_cut)
    return dataclasses.replace(config, train=dataclasses.replace(train, batch_size=size))


def build_losses(config: RunConfig, facts: Mapping[str, Any], world: World) -> dict[str, Loss]:
    """Build the losses by name, on the run's device; those with parameters are in its number format."""
    losses: dict[str, Loss] = {
        component.name: registry.losses.build(component, facts=facts) for component in config.losses
    }
    for loss in losses.values():
        loss.to(world.device)
    LearntLosses(losses).to(dtype=Precision(config.train.precision).parameter_dtype)
    return losses


def build_task(
    config: RunConfig,
    data: Data,
    model: nn.Module,
    world: World,
    *,
    losses: Mapping[str, Loss] | None = None,
) -> tuple[Task, list[BoundMetric]]:
    """Build the task, its losses bound to batch and outputs, and the metrics, bound to batch and predictions.

    With a teacher, the losses are bound to its outputs, too. `losses` replace those of the config.
    """
    facts = data.facts
    losses = build_losses(config, facts, world) if losses is None else losses
    load = partial(load_network, facts=facts, world=world, precision=config.train.precision)
    with _missing_keys_located(config.losses):
        model_name = f"model '{config.model.name}'"
        batch = AvailableKeys(f"data set '{config.data.name}'", data.train.reader.keys)
        outputs = AvailableKeys(model_name, model_output_keys(model, owner=model_name))
        wiring = {"model": model, "losses": losses, "batch_keys": batch, "output_keys": outputs}
        wiring["micro_batches"] = config.train.micro_batches
        if config.teacher is None:
            task = registry.tasks.build(config.task, facts={**facts, **wiring})
        else:
            wrap = registry.task_wrappers.get_entry("teacher").builder
            task = wrap(config=config, facts={**facts, **wiring}, load_network=load)
    if task.compares_rows and config.train.num_samples == 1:
        raise ConfigError(
            f"train.batch_size: the task '{config.task.name}' compares each sample with the others of its step, and 1 "
            "leaves none, so that the loss would be 0; give at least 2, better tens"
        )
    predictions = AvailableKeys(f"task '{config.task.name}'", task.predicts | task.context_keys)
    meters = []
    for component, metric in zip(config.metrics, build_metrics(config.metrics, facts), strict=True):
        offers, location = (batch, outputs, predictions), dataclasses.replace(component.location, path="")
        try:
            update = bind(metric.update, *offers, owner=f"metrics.{component.name}", exclude=("state",))
        except UnknownKeyError as error:
            raise UnknownKeyError(f"{location}: {error}; give another of `sightline list metrics`") from error
        meters.append(BoundMetric(metric, update))
    return task, meters


def build_metrics(components: Sequence[ComponentConfig], facts: Mapping[str, Any]) -> list[Metric]:
    """Build the metrics of these config blocks, in order. Raises ConfigError for a state without exact sums."""
    metrics = []
    for component in components:
        metrics.append(registry.metrics.build(component, facts=facts))
        fault = find_state_fault(metrics[-1])
        if fault is not None:
            raise ConfigError(f"{component.location}: metric '{component.name}': {fault}")
    return metrics


@contextmanager
def _missing_keys_located(losses: Sequence[ComponentConfig]) -> Iterator[None]:
    """Add location and remedy to the error of a loss that needs a key which no component provides."""
    try:
        yield
    except UnknownKeyError as error:
        for component in losses:
            if str(error).removeprefix("the count of ").startswith(f"losses.{component.name} needs "):
                location = dataclasses.replace(component.location, path="")
                removal = _describe_removal(component, losses)
                advice = f"{removal}, or base the config on another"
                if error.key.startswith("teacher_"):
                    advice = f"add a trained run as teacher: {{from: RUN}}, whose model returns it, or {removal}"
                raise UnknownKeyError(f"{location}: {error}; {advice}") from error
        classes = {name: registry.transforms.get_class(name) for name in registry.transforms.names()}
        sources = [f"'{name}'" for name, transform in classes.items() if error.key in transform.adds]
        if sources:
            advice = f"add {' or '.join(sources)}, which makes it, to transforms.train and to transforms.evaluate"
            raise UnknownKeyError(f"{error}; {advice}") from error
        raise


def _describe_removal(removed: ComponentConfig, losses: Sequence[ComponentConfig]) -> str:
    """Return the words of a command line that give all losses of a config but one, as advice."""
    blocks = []
    for loss in (loss for loss in losses if loss is not removed):
        stated = {key: loss.arguments[key] for key in loss.origins if key in loss.arguments}
        weight = {} if loss.weight == 1.0 or not isinstance(loss.weight, float) else {"weight": loss.weight}
        blocks.append(yaml.safe_dump({"name": loss.name, **stated, **weight}, default_flow_style=True, sort_keys=False))
    words = ", ".join(" ".join(block.split()) for block in blocks)
    return f"take this loss out: 'losses=[{words}]'" if blocks else "give another of `sightline list losses`"


def build_evaluator(config: RunConfig, part: DataSubset, task: Task, meters: Sequence[BoundMetric]) -> Evaluator:
    """Build an evaluator of one split with the config's settings."""
    voting = None
    if config.evaluate.votes > 1:
        if task.vote is None:
            raise ConfigError(
                f"{config.origins.get('evaluate.votes', 'evaluate.votes')}: the task '{config.task.name}' does not "
                "merge the predictions of several passes; set evaluate.votes=1"
            )
        voting = _build_voting_reader(config, part)
    return Evaluator(
        task=task,
        metrics=meters,
        tiles=_make_tile_reader(config, part, task),
        reader=part.reader,
        indices=part.indices,
        batch_size=config.evaluate.batch_size,
        loss_names=tuple(component.name for component in config.losses),
        seed=config.seed,
        workers=config.loader.workers,
        precision=Precision(config.train.precision),
        voting_reader=voting,
        votes=config.evaluate.votes,
        exact_keys=frozenset(name for name, field in part.reader.fields.items() if field.is_exact),
        surroundings=part.dataset.info.surroundings,
    )


def _build_voting_reader(config: RunConfig, part: DataSubset) -> BatchReader:
    """Build the reader of the passes of `evaluate.votes`. Raises ConfigError for more than a transform has views."""
    components, facts = (*config.transforms.evaluate, *config.transforms.vote), part.dataset.info.facts
    transforms = build_transforms(components, facts)
    for component, (name, transform) in zip(components, transforms, strict=True):
        if transform.num_passes is not None and transform.num_passes < config.evaluate.votes:
            raise ConfigError(
                f"{component.location}: '{name}' has {transform.num_passes} passes, evaluate.votes are "
                f"{config.evaluate.votes}; set evaluate.votes={transform.num_passes}"
            )
    return BatchReader(part.dataset, transforms, is_voting=True)


def _make_tile_reader(config: RunConfig, part: DataSubset, task: Task) -> TileReader | None:
    """Make the reader of tiles of a split, as `evaluate.tile` states; None without it."""
    settings = config.evaluate
    if settings.tile is None:
        return None
    where = str(config.origins.get("evaluate.tile", "evaluate.tile"))
    size_px, overlap = settings.tile, settings.tile_overlap
    tiling = make_tiling(task, name=config.task.name, size_px=size_px, overlap=overlap, option=where)
    transforms = build_transforms(config.transforms.evaluate, part.dataset.info.facts)
    return TileReader(tiling, BatchReader(part.dataset), transforms, f"_tile{size_px}")


def _build_job(
    config: RunConfig,
    data: Data,
    world: World,
    model: nn.Module,
    task: Task,
    recipe: OptimizerSpec,
    losses: LearntLosses,
) -> TrainState:
    train = config.train
    if train.compile and config.distributed.sync_batch_norm and world.size > 1:
        raise ConfigError(
            f"{config.origins.get('train.compile', 'train.compile')}: torch cannot compile the reductions of "
            "distributed.sync_batch_norm over several processes; set one of the two to false"
        )
    plan = BatchSampler(
        indices=data.train.indices,
        batch_size=train.num_samples,
        seed=config.seed,
        micro_batches=train.micro_batches,
        tail=train.tail,
        num_processes=world.size,
    )
    num_steps = train.epochs * plan.steps_per_epoch
    if train.steps is not None:
        num_steps = min(num_steps, train.steps)
    with registry.locate_errors(config.optimizer):
        optimizer = recipe.build(model, losses)
    schedule = registry.schedules.build(
        config.schedule, facts={"num_steps": num_steps, "steps_per_epoch": plan.steps_per_epoch}
    )
    momentum = schedule.momentum(0) if isinstance(schedule, Schedule) else None
    if momentum is not None:
        for group in optimizer.param_groups:
            set_momentum(group, momentum)
    seed_everything(config.seed, world.rank + 1)
    return TrainState(
        model=model,
        task=task,
        optimizer=optimizer,
        schedule=schedule,
        stream=BatchStream(
            *(plan, data.train.reader, world.rank, config.loader.workers, config.loader.prefetch),
            prepare=_bind_preparation(model, data.train.reader.keys, Precision(train.precision)),
        ),
        num_steps=num_steps,
        loss_weights={component.name: component.weight for component in config.losses},
        precision=Precision(train.precision),
        clip_norm=train.clip_norm,
        frozen=recipe.frozen,
        ema_decay=train.ema_decay,
        losses=losses,
        compile=train.compile,
        graph=train.graph,
        finishes_on_device=config.loader.transforms == "auto",
        logs_gradients=config.log.gradients,
        device=world.device,
    )


def _bind_preparation(model: nn.Module, keys: Collection[str], precision: Precision) -> Preparation | None:
    """Bind what a model prepares to the keys of a batch; None for a model that prepares nothing."""
    if not isinstance(model, Model) or model.make_preparation is None:
        return None
    batch = AvailableKeys("the data set", keys)
    bound = bind(model.make_preparation(), batch, owner=f"the preparation of {type(model).__name__}")
    return Preparation(bound, precision.parameter_dtype)
