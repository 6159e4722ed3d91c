"""Initial weights that are random: nothing useful was loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sightline.config import read_config
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.engine.build import build_model
from sightline.engine.distributed import World
from sightline.engine.run_loading import open_run
from sightline.errors import UserError
from sightline.runs import checkpoint, trained_weights

__all__ = ["untrained_init"]


@check(
    "G11",
    "untrained-init",
    "static",
    config_path="init.from",
    expected="weights that training has changed",
    action="give a run that was trained, at its last checkpoint; see its metrics.jsonl and its learning rate",
)
def untrained_init(context: Context) -> list[Finding]:
    """Weights from `init` differ from the untrained weights of this run's seed, and of the source's seed.

    Finds: Initial weights that are random: nothing useful was loaded.
    """
    init, built = context.config.init, context.built
    if init is None or built.init_report is None:
        return []
    fresh = build_model(context.config, built.data.facts, World(device=context.world.device))
    state = built.job.model.state_dict()
    names = [name for name in _find_random_parameters(fresh) if name in state]
    if not names:  # another network than the config's: `checkpoint-match` reports it
        return []
    if not any(_differs(state[name], fresh.state_dict()[name]) for name in names):
        return [
            untrained_init.finding(
                context,
                "init has changed nothing: every weight is the untrained one of this run's seed",
                causes=("ckpt.key_mismatch", "ckpt.stale", "optim.lr"),
                measured=f"0 of {len(names)} drawn tensors differ; {built.init_report}",
                evidence={"from": init.source},
            )
        ]
    source = _load_source(Path(init.source))
    if source is None:
        return []
    run, source_state, source_model = source
    names = [name for name in _find_random_parameters(source_model) if name in source_state]
    if not names or any(_differs(source_state[name], source_model.state_dict()[name]) for name in names):
        return []
    return [
        untrained_init.finding(
            context,
            f"the initial weights are untrained: the seed of {run} makes the same",
            causes=("ckpt.stale", "optim.lr", "ckpt.selection"),
            measured=f"0 of {len(names)} drawn tensors differ from a fresh model of that run's config",
            evidence={"from": init.source},
        )
    ]


def _load_source(path: Path) -> tuple[Path, Mapping[str, Tensor], nn.Module] | None:
    """Return the run of a checkpoint, its weights and its untrained model; None if the run cannot be opened."""
    run = checkpoint.enclosing_run(path)
    if run is None:
        return None
    try:
        model = open_run(run, config=read_config(run / "config.yaml")).untrained_model()
        return run, trained_weights.load_trained_state(path), model
    except UserError:  # a missing plugin, or another release; `checkpoint-match` reports the rest
        return None


def _find_random_parameters(model: nn.Module) -> list[str]:
    """Return the names of the parameters that the seed determines: those that are not constant."""
    return [
        name
        for name, value in model.named_parameters()
        if value.numel() > 1 and bool((value.detach() != value.detach().flatten()[0]).any())
    ]


def _differs(tensor: Tensor, other: Tensor) -> bool:
    return tensor.shape != other.shape or not torch.equal(tensor.cpu(), other.cpu().to(tensor.dtype))
