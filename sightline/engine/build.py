"""Construction of a training run from its config: data, facts, model, losses, task, metrics, optimiser, schedule.

Changes to a built model before training: quantisation, synchronised batch norm, cuDNN.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import yaml
from torch import nn

from sightline.compression.parametrised import quantise_by_config
from sightline.config import RunConfig, locate_errors
from sightline.config.run_config import PrecisionName, to_plain
from sightline.contract import registry
from sightline.contract.binding import AvailableKeys, UnknownKeyError, bind
from sightline.contract.dataset import Dataset, get_data_digest
from sightline.contract.errors import CheckpointError, ConfigError, escape_to_one_line
from sightline.contract.facts import check_data_facts
from sightline.contract.loss import Loss
from sightline.contract.metric import Metric, find_state_fault
from sightline.contract.model import Model, model_output_keys
from sightline.contract.plugins import loaded_plugins
from sightline.contract.task import Task
from sightline.contract.types import ComponentConfig
from sightline.engine.batch_size import find_batch_size
from sightline.engine.batch_stream import BatchSampler, BatchStream
from sightline.engine.device import Precision, is_memory_bound, resolve_precision, seed_everything
from sightline.engine.distributed import World
from sightline.engine.evaluate import BoundMetric, Evaluator
from sightline.engine.learnt_losses import LearntLosses
from sightline.engine.optimizers import ModuleRate, OptimizerSpec
from sightline.engine.train import TrainState
from sightline.instrument.random_state import preserve_random_state
from sightline.layers.batch_norm import disable_cudnn_batch_norm
from sightline.runs import checkpoint
from sightline.runs.best_checkpoint import resolve_mode
from sightline.runs.lineage import record_teacher, trace_lineage
from sightline.runs.run_files import RunFiles
from sightline.runs.trained_weights import assert_sha256, load_trained_state
from sightline.runs.weight_sources import WeightSource, open_source
from sightline.runs.weights import WeightLoadReport, load_weights, plain_state
from sightline.store.loading.batch_reader import BatchReader, NamedTransform, stratified_split
from sightline.store.loading.divided_copies import divide_copies
from sightline.store.prepared.columns import prepared_root

Change = Callable[[nn.Module], nn.Module]


def apply_model_changes(model: nn.Module, config: RunConfig, world: World) -> nn.Module:
    """Apply the config's changes to a model: quantisation, synchronised batch norm, cuDNN, in this order.

    Its shapes follow from the config alone, so that a checkpoint fits a model whose weights were others when it was
    changed. Raises ConfigError for a policy that the model does not allow.
    """
    for change in _list_changes(config, world):
        model = change(model)
    return model


def _list_changes(config: RunConfig, world: World) -> Iterator[Change]:
    if config.compress is not None:
        yield lambda model: quantise_by_config(model, config)
    if config.distributed.sync_batch_norm:
        yield world.convert_sync_batchnorm
    if config.train.cudnn == "all_but_batch_norm":
        yield disable_cudnn_batch_norm


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSubset:
    """Some samples of a data set, and the readers that train and evaluate on them."""

    dataset: Dataset
    indices: np.ndarray
    reader: BatchReader
    split: str

    def sample_name(self, index: int) -> str:
        """Return the data set's name of a sample, or its index as text if the set names none."""
        return self.dataset.sample_name(index)

    def evenly_spaced_indices(self, count: int) -> np.ndarray:
        """Return at most `count` of the indices (int64), evenly spaced from the first to the last."""
        positions = np.linspace(0, len(self.indices) - 1, min(count, len(self.indices))).astype(np.int64)
        chosen: np.ndarray = self.indices[positions]
        return chosen


@dataclass(frozen=True)
class Data:
    """Splits of a run (training, selection of the best checkpoint, test) and the facts of its data."""

    train: DataSubset
    selection: DataSubset
    test: DataSubset
    facts: Mapping[str, Any]


def describe_data(facts: Mapping[str, Any], *parts: DataSubset) -> dict[str, Any]:
    """Describe data by numbers of samples, facts, and the digests of the data sets that state one; none is read."""
    digests = dict.fromkeys(str(get_data_digest(part.dataset)) for part in parts)
    return {
        **{f"number of {part.split} samples": len(part.indices) for part in parts},
        "fingerprint of the data": " + ".join(digests),
        **{f"fact {name}": to_plain(value) for name, value in facts.items()},
    }


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


def build(config: RunConfig, world: World, *, is_resumed: bool = False, data: Data | None = None) -> TrainingSetup:
    """Build a run. Raises ConfigError, DataError or CheckpointError, before the first step, if anything does not fit.

    A run that will be resumed does not read the weights that it was once initialised with. `data` replaces the
    config's own.
    """
    config = resolve_machine(config, world)
    with locate_errors(config.origins):
        if data is None:
            data = build_data(config)
            world.assert_equal(partial(describe_data, data.facts, data.train, data.selection, data.test))
            log_linked_data_folder(config, world)
            log_unused_validation(config, data, world)
        if config.train.batch_size == "auto":
            config = _resolve_batch_size(config, data, world)
        model = _build_unchanged_model(config, data.facts, world)
        config, source, report = (config, None, None) if is_resumed else _load_initial_weights(model, config)
        model = apply_model_changes(model, config, world)
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


def log_linked_data_folder(config: RunConfig, world: World) -> None:
    """Log the target of a data folder that is a symbolic link, as the link may change."""
    root = prepared_root(config.data.arguments.get("root"), config.data.name)
    if root.is_symlink():
        target = escape_to_one_line(os.path.realpath(root))
        world.rank_zero_only(logger.warning)("data-link: %s leads to %s", escape_to_one_line(str(root)), target)


def log_unused_validation(config: RunConfig, data: Data, world: World) -> None:
    """Log the size of a validation part that a data set holds out and `evaluate.select: test` does not score."""
    num_unused = data.train.dataset.info.split_sizes.get("validation", 0)
    if config.evaluate.select == "test" and num_unused and config.data.arguments.get("validation_share"):
        world.rank_zero_only(logger.warning)(
            "unused-validation: with evaluate.select=test, the %d samples of the validation part are neither trained "
            "on nor scored; data.validation_share=0 trains on them, unless the files of the set state that part",
            num_unused,
        )


def _load_initial_weights(
    model: nn.Module, config: RunConfig
) -> tuple[RunConfig, WeightSource | None, WeightLoadReport | None]:
    """Load the weights that `init` names: the EMA of a run's weights, if it has one.

    In the returned config, a name on a hub has the commit that was fetched: later commits are other weights.
    Raises ConfigError for a model of which checkpoints would lose a tensor.
    """
    try:
        plain_state(model)
    except CheckpointError as error:
        raise ConfigError(f"{config.model.location}: {error}") from None
    if config.init is None:
        return config, None, None
    try:
        source = open_source(config.init.source)
        weights, note = source.read(), ""
        fit = model.fit_weights if isinstance(model, Model) else None
        if fit is not None and source.config is not None:
            weights, note = fit(weights, source.config)
        report = load_weights(
            model,
            weights,
            may_be_missing=config.init.may_be_missing,
            modules=config.init.modules,
            into=config.init.into,
        )
    except CheckpointError as error:
        where = config.origins.get("init.from", "init.from")
        prefix = "" if config.init.source in str(error) else f"{config.init.source}: "
        raise CheckpointError(f"{where}: {prefix}{error}") from None
    report = dataclasses.replace(report, note=note)
    return dataclasses.replace(config, init=dataclasses.replace(config.init, source=source.name)), source, report


def build_data(config: RunConfig) -> Data:
    """Build the data sets of every split, hold out a validation part if necessary, and collect the facts."""
    transforms = config.transforms
    train_set = _build_dataset(config, "train")
    facts = dict(train_set.info.facts)
    check_data_facts(config.data, facts)
    splits = train_set.info.split_sizes
    all_indices = np.arange(len(train_set))
    train_indices, held_out, selection_set, split = all_indices, all_indices, train_set, "validation"
    test_set = _build_dataset(config, "test") if "test" in splits else None
    if config.evaluate.select == "test":
        if test_set is None:
            raise ConfigError(
                f"evaluate.select: test, but data set '{config.data.name}' has no test part; it has {', '.join(splits)}"
            )
        selection_set, held_out, split = test_set, np.arange(len(test_set)), "test"
    elif "validation" in splits:
        selection_set = _build_dataset(config, "validation")
        held_out = np.arange(len(selection_set))
    else:
        repeats = train_set.repeats
        size = len(train_set) // repeats
        train_indices, held_out = stratified_split(size, train_set.strata, seed=config.seed)
        train_indices = np.concatenate([train_indices + visit * size for visit in range(repeats)])
        if not len(held_out):
            raise ConfigError(
                f"evaluate.select: a tenth of {size} training samples held out for validation is empty; "
                "use evaluate.select=test or more data"
            )
    train_indices, held_out = divide_copies(train_set, train_indices, selection_set, held_out, test_set)
    train_reader = BatchReader(
        train_set,
        build_transforms(transforms.train, {**facts, "num_epochs": config.train.epochs}),
        mixing_indices=train_indices,
    )
    train = DataSubset(train_set, train_indices, train_reader, "train")
    selection = DataSubset(selection_set, held_out, _build_reader(selection_set, transforms.evaluate, facts), split)
    test = selection
    if test_set is not None:
        test_reader = _build_reader(test_set, transforms.evaluate, facts)
        test = DataSubset(test_set, np.arange(len(test_set)), test_reader, "test")
    _check_transform_facts(config, train_reader.facts, selection.reader.facts)
    return Data(train, selection, test, {**facts, **train_reader.facts})


def build_part(config: RunConfig, split: str) -> DataSubset:
    """Build one split of a config's data, read with the evaluation transforms."""
    dataset = _build_dataset(config, split)
    return DataSubset(
        dataset, np.arange(len(dataset)), _build_reader(dataset, config.transforms.evaluate, dataset.info.facts), split
    )


def read_with(
    config: RunConfig, part: DataSubset, transforms: Literal["train", "evaluate", "none"], training: DataSubset
) -> DataSubset:
    """Return a split that is read with other transforms of the config; those of training mix `training` samples."""
    facts = dict(training.dataset.info.facts)
    if transforms == "train":
        chosen = build_transforms(config.transforms.train, {**facts, "num_epochs": config.train.epochs})
        reader = BatchReader(part.dataset, chosen, mixing_indices=training.indices)
    else:
        reader = _build_reader(part.dataset, config.transforms.evaluate if transforms == "evaluate" else (), facts)
    return dataclasses.replace(part, reader=reader)


def build_transforms(components: Sequence[ComponentConfig], facts: Mapping[str, Any]) -> list[NamedTransform]:
    """Build the transforms of these config blocks, in order."""
    return [NamedTransform(c.name, registry.transforms.build(c, facts=facts)) for c in components]


def build_model(config: RunConfig, facts: Mapping[str, Any], world: World) -> nn.Module:
    """Build the model with random weights from `seed`, equal on every process, in the run's number format.

    It is changed as the config states: trained weights can be loaded into it, weights for `init` cannot.
    """
    return apply_model_changes(_build_unchanged_model(config, facts, world), config, world)


def _build_unchanged_model(config: RunConfig, facts: Mapping[str, Any], world: World) -> nn.Module:
    seed_everything(config.seed)
    model = registry.models.build(config.model, facts=facts)
    return model.to(world.device, Precision(config.train.precision).parameter_dtype)


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
    load_network = partial(_load_network, facts=facts, world=world, precision=config.train.precision)
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
            task = wrap(config=config, facts={**facts, **wiring}, load_network=load_network)
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


def check_same_facts(trained: Mapping[str, Any], actual_facts: Mapping[str, Any], run: Path) -> None:
    """Raise ConfigError if data are not of the kind that the model of a run was trained for."""
    for name in ("num_classes", "in_channels", "class_names", "num_joints", "joint_names"):
        ours, theirs = trained.get(name), actual_facts.get(name)
        theirs = tuple(theirs) if isinstance(theirs, list) else theirs
        if ours != theirs:
            raise ConfigError(
                f"{run}: was trained with {name} = {ours}; this data set has {theirs}; give data of the same kind, or "
                "a run that was trained on this set"
            )


def _load_network(
    source: Path, *, sha256: str | None, remedy: str, facts: Mapping[str, Any], world: World, precision: str
) -> nn.Module:
    """Load the network of another run on such data, with its evaluated weights, in a number format.

    The random state does not change. Raises UserError if the run is missing, has other weights than those of the digest
    `sha256`, or was trained on other data. `remedy` states what to do with a sound checkpoint if this one is damaged.
    """
    assert_sha256(source, sha256)
    run = checkpoint.enclosing_run(source)
    if run is None:
        raise CheckpointError(f"{source}: is not in a run directory, whose config and facts describe the model")
    files = RunFiles(run)
    for line in files.check_plugins(loaded_plugins()):
        world.rank_zero_only(logger.warning)("%s", line)
    check_same_facts(files.facts, facts, run)
    with preserve_random_state():
        model = build_model(files.config, files.facts, World(device=world.device))
    load_weights(model, load_trained_state(source, remedy=remedy), where=source)
    return model.to(world.device, Precision(precision).parameter_dtype)


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
        voting = _build_reader(
            part.dataset, (*config.transforms.evaluate, *config.transforms.vote), part.dataset.info.facts
        )
    return Evaluator(
        task=task,
        metrics=meters,
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
    )


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
    seed_everything(config.seed, world.rank + 1)
    return TrainState(
        model=model,
        task=task,
        optimizer=optimizer,
        schedule=schedule,
        stream=BatchStream(plan, data.train.reader, world.rank, config.loader.workers, config.loader.prefetch),
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


def _build_dataset(config: RunConfig, split: str) -> Dataset:
    dataset = registry.data.build(config.data, facts={"split": split})
    with registry.locate_errors(config.data):
        size = len(dataset)
    if size == 0:
        raise ConfigError(f"{config.data.location}: the {split} part of data set '{config.data.name}' holds no samples")
    return dataset


def _build_reader(dataset: Dataset, components: Sequence[ComponentConfig], facts: Mapping[str, Any]) -> BatchReader:
    return BatchReader(dataset, build_transforms(components, facts))


def _check_transform_facts(config: RunConfig, training: Mapping[str, Any], evaluation: Mapping[str, Any]) -> None:
    """Raise ConfigError if transforms state different facts in training and evaluation."""
    for name in sorted(training.keys() | evaluation.keys()):
        ours, theirs = training.get(name), evaluation.get(name)
        if ours != theirs:
            locations = (where for key, where in config.origins.items() if key.startswith("transforms.evaluate."))
            where = next(locations, config.data.location)
            raise ConfigError(
                f"{where}: transforms.train state {name} = {ours}, transforms.evaluate {theirs}; the model "
                "sees both: give both the same transform that states it"
            )
