"""Check of a config, of a run, or of a module with its loss and batches: the function `sightline.check`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sightline.contract.errors import UserError, assert_workbench_installed
from sightline.doctor.check import check_models, check_module, name_models
from sightline.doctor.report import Report

if TYPE_CHECKING:
    from sightline.config import RunConfig


def check(
    subject: str | Path | Mapping[str, Any] | RunConfig | nn.Module | Sequence[nn.Module],
    loss: Callable[..., Any] | None = None,
    loader: Any = None,
    *,
    step: Callable[[Any], Any] | None = None,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    evaluation: Any = None,
    score: Callable[..., Any] | None = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[str | Path] = (),
    declared: Sequence[str] = (),
    budget_s: float | None = None,
) -> Report:
    """Check a config (a path, or a mapping as in a file), a run directory, or a module; nothing of it changes.

    Of a config or run, all rules of `sightline check` are applied; `overrides` change values of it. A module needs a
    `loader`, which is a batch or an iterable of batches, of which the first four are read, and one of two: `step`, the
    function of one batch that returns its loss, as the training loop has it up to `backward()`; or `loss`, of outputs
    and target. The step is run on a copy of the module, wherever it reads the module, and what it calls it with is
    observed. With a loss, calls that the signatures allow are tried: `(inputs, target)`, further values of a batch for
    either, mappings by names or whole, with `loss(outputs, batch)`. The verdict says which was taken; where none runs,
    what needs no call of the module is judged. Several modules that are trained together, such as
    `{"g": generator, "d": critic}`, are judged each by its own loss: their step returns the losses by these names, or
    one for all, and `optimizer` lists theirs. Samples of a DataLoader's data set are read several times, by this
    process: a set that edits what it stores when it is read does so here, too. `evaluation` is a loader, or batches, of
    what the module is evaluated on. `declared` names codes of findings about a module that are intended; a config has
    `checks.skip`. What is asked is counted, in passes and samples, and the same on a slow machine; `budget_s` allows
    more or less of it than the usual 4 seconds of a module, or 3 of a config, and bounds its processor time. Raises
    UserError or ConfigError for a subject that cannot be read.

    >>> import sightline
    >>> sightline.check("configs/classify/synthetic_shapes_pointnet.yaml")
    CheckReport(synthetic_shapes_pointnet: 0 errors, 0 warnings)
    """
    more: dict[str, Any]
    if _are_modules(subject):
        if loader is None or step is None or loss is not None or score is not None:
            raise UserError(
                "check: several modules need a loader and a step that returns their losses by their names, "
                "check({'g': g, 'd': d}, step=step, loader=loader, optimizer=[...]); loss= and score= are of one"
            )
        more = {"optimizer": optimizer, "evaluation": evaluation, "declared": declared, "budget_s": budget_s}
        return check_models(name_models(subject, caller="check"), loader, step=step, **more)
    if isinstance(subject, nn.Module):
        if loader is None:
            raise UserError(
                "check: a module needs its loss and a batch, check(model, loss, (inputs, target)), or a loader and a "
                "step, check(model, loader=loader, step=step)"
            )
        more = {"step": step, "optimizer": optimizer, "evaluation": evaluation, "score": score}
        return check_module(subject, loss, loader, declared=declared, budget_s=budget_s, **more)
    if any(each is not None for each in (loss, loader, step, optimizer, evaluation, score)) or declared:
        raise UserError(
            "check: loss, loader, step, optimizer, evaluation, score and declared belong to a module; a config names "
            "its own"
        )
    assert_workbench_installed("sightline.check of a config")
    from sightline.workbench.check.config import check_config  # a module is checked with torch alone

    return check_config(subject, overrides=overrides, plugins=plugins, budget_s=budget_s)


def _are_modules(subject: Any) -> bool:
    """Return True for several modules, and not for one, which may have others as its items."""
    if isinstance(subject, nn.Module) or not isinstance(subject, Mapping | list | tuple) or not subject:
        return False
    values = subject.values() if isinstance(subject, Mapping) else subject
    return all(isinstance(value, nn.Module) for value in values)
