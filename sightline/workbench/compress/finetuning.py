"""Fine-tuning of a quantised run: its config, from that of the run."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sightline.compression.policy import Policy, policy_to_dict
from sightline.config import RunConfig
from sightline.config.run_config import Compress, Init, Teacher
from sightline.contract import registry
from sightline.contract.errors import UserError
from sightline.contract.loss import teacher_keys
from sightline.contract.types import ComponentConfig, LinearRamp
from sightline.engine.run_loading import OpenRun
from sightline.training.config_source import reread

RATE = 0.1
"""Default learning rate of fine-tuning, as a factor of that of training."""
TEACHER_SHARE = 0.7
"""Weight of the distillation loss; the other losses are scaled by 1 - this."""
SHARE = 4
"""Default length of fine-tuning: the epochs of training divided by this."""
FINE_TUNE, FINE_TUNED = "finetune.yaml", "finetuned"


@dataclass(frozen=True)
class FineTuning:
    """Options of fine-tuning a quantised run; without `epochs`, a quarter of the epochs of its training.

    `rate` is a factor of the run's own learning rate, with a cosine schedule. `is_distilled`: also learn from the float
    model's logits; None means if the run has a loss of logits and labels. `overrides` change values of the config.
    """

    epochs: int | None = None
    rate: float = RATE
    is_distilled: bool | None = False
    seed: int | None = None
    overrides: tuple[str, ...] = ()
    plugins: tuple[Path, ...] = ()
    device: str = "auto"


def finetuning_config(config: RunConfig, source: Path, policy: Policy | None, how: FineTuning) -> RunConfig:
    """Build the config of a fine-tuning from the weights of `source`, quantised by `policy` or in float (None)."""
    train = config.train
    steps = None if train.steps is None else math.ceil(train.steps / SHARE)
    num_epochs = how.epochs if how.epochs is not None else math.ceil(train.epochs / SHARE)
    is_distilled = how.is_distilled
    if is_distilled is None:
        is_distilled = can_distil(config)
    arguments = dict(config.optimizer.arguments)
    arguments["lr"] = how.rate * _learning_rate(config.optimizer)
    # in so short a run, an average of weights would consist mostly of the untrained quantised ones
    tuned = dataclasses.replace(train, epochs=num_epochs, steps=steps if how.epochs is None else None, ema_decay=None)
    losses = tuple(component for component in config.losses if not teacher_keys(registry.losses.get_class(component)))
    compress = None if policy is None else Compress(policy=policy_to_dict(policy))  # type: ignore[arg-type]
    return dataclasses.replace(
        config,
        seed=config.seed if how.seed is None else how.seed,
        init=Init(source=str(source)),
        compress=compress,
        teacher=Teacher(source=str(source)) if is_distilled else None,
        losses=_add_distillation(losses) if is_distilled else losses,
        train=tuned,
        optimizer=dataclasses.replace(config.optimizer, arguments=arguments),
        schedule=ComponentConfig("cosine"),
        evaluate=dataclasses.replace(config.evaluate, every=num_epochs),
    )


def _add_distillation(losses: Sequence[ComponentConfig]) -> tuple[ComponentConfig, ...]:
    """Scale the weights of the losses and add the distillation loss."""
    distillation, scale = ComponentConfig("distillation", weight=TEACHER_SHARE), 1 - TEACHER_SHARE
    weights = [
        LinearRamp(w.start * scale, w.end * scale, w.epochs) if isinstance(w, LinearRamp) else w * scale
        for w in (loss.weight for loss in losses)
    ]
    scaled = [dataclasses.replace(loss, weight=weight) for loss, weight in zip(losses, weights, strict=True)]
    return (*scaled, distillation)


def _loss_keys(loss: ComponentConfig) -> set[str]:
    """Return the batch and output keys that a loss reads."""
    forward = getattr(registry.losses.entry(loss).builder, "forward", None)
    return set() if forward is None else {*inspect.signature(forward).parameters}


def _learning_rate(optimizer: ComponentConfig) -> float:
    parameters = registry.optimizers.entry(optimizer).arguments
    if "lr" not in parameters:
        raise UserError(f"optimizer '{optimizer.name}': has no argument lr, which fine-tuning lowers; use --epochs 0")
    return float(optimizer.arguments.get("lr", parameters["lr"].default))


def can_distil(config: RunConfig) -> bool:
    """Return True if a run has a loss of logits and labels, so that its float model's logits can be distilled."""
    return any({"logits", "label"} <= _loss_keys(component) for component in config.losses)


def assert_tunable(run: OpenRun, how: FineTuning) -> None:
    """Raise UserError for a fine-tuning that its config does not allow, before any search."""
    reread(finetuning_config(run.config, run.checkpoint_path.resolve(), {}, how), how.overrides)
