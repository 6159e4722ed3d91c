"""Changes to a built model before training: quantisation, synchronised batch norm, cuDNN."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from sightline.config import RunConfig
from sightline.engine.distributed import World
from sightline.errors import ConfigError, UserError
from sightline.layers.native_batch_norm import disable_cudnn_batch_norm
from sightline.layers.quantisation.parametrised import apply_policy

__all__ = ["apply_model_changes"]

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
        yield lambda model: _quantise(model, config)
    if config.distributed.sync_batch_norm:
        yield world.convert_sync_batchnorm
    if config.train.cudnn == "all_but_batch_norm":
        yield disable_cudnn_batch_norm


def _quantise(model: nn.Module, config: RunConfig) -> nn.Module:
    assert config.compress is not None
    try:
        apply_policy(model, config.compress.policy, mean_gradient=config.compress.gradient == "mean")
    except UserError as error:
        raise ConfigError(f"{config.origins.get('compress.policy', 'compress')}: {error}") from None
    return model
