"""Model of a run, built from its config: random or initial weights, then the changes before training."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sightline.compression.parametrised import quantise_by_config
from sightline.config import RunConfig
from sightline.contract import registry
from sightline.contract.errors import CheckpointError, ConfigError
from sightline.contract.model import Model
from sightline.contract.plugins import loaded_plugins
from sightline.engine.device.numerics import Precision, seed_everything
from sightline.engine.distributed import World
from sightline.instrument.random_state import preserve_random_state
from sightline.layers.native_batch_norm import disable_cudnn_batch_norm
from sightline.runs import checkpoint
from sightline.runs.run_files import RunFiles
from sightline.runs.trained_weights import assert_sha256, load_trained_state
from sightline.runs.weight_sources import WeightSource, open_source
from sightline.runs.weights import WeightLoadReport, load_weights, plain_state

logger = logging.getLogger(__name__)

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


def load_initial_weights(
    model: Model, config: RunConfig
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
        weights, note, fit = source.read(), "", model.fit_weights
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


def build_model(config: RunConfig, facts: Mapping[str, Any], world: World) -> nn.Module:
    """Build the model with random weights from `seed`, equal on every process, in the run's number format.

    It is changed as the config states: trained weights can be loaded into it, weights for `init` cannot.
    """
    return apply_model_changes(build_unchanged_model(config, facts, world), config, world)


def build_unchanged_model(config: RunConfig, facts: Mapping[str, Any], world: World) -> Model:
    """Build the model with random weights, before the changes that the config states; `init` is loaded into it."""
    seed_everything(config.seed)
    model = registry.models.build(config.model, facts=facts)
    return model.to(world.device, Precision(config.train.precision).parameter_dtype)


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


def load_network(
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
