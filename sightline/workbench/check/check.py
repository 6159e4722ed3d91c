"""Check of a config, of a run, or of a module with its loss and batches: the function `sightline.check`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.config import RunConfig, read_config
from sightline.contract.call_arguments import to_path, to_paths, to_texts
from sightline.contract.errors import UserError
from sightline.contract.plugins import load_plugins
from sightline.doctor.check import BUDGET_S, check_module
from sightline.doctor.report import Report
from sightline.doctor.verdict import Verdict
from sightline.runs.run_files import RunFiles, config_path_of_run, is_run
from sightline.workbench.check.examination import BUDGET_S as RUN_BUDGET_S
from sightline.workbench.check.examination import CheckReport, RunExamination
from sightline.workbench.check.suite import check_path


def check(
    subject: str | Path | Mapping[str, Any] | RunConfig | nn.Module,
    loss: Callable[..., Any] | None = None,
    loader: Any = None,
    *,
    step: Callable[[Any], Tensor] | None = None,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    evaluation: Any = None,
    score: Callable[..., Any] | None = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[str | Path] = (),
    declared: Sequence[str] = (),
    budget_s: float | None = None,
) -> Report:
    """Check a config (a path, or a mapping as in a file), a run directory, or a module; nothing of it changes.

    Of a config or run, all rules of `sightline check` are applied; `overrides` change values of it. A module needs
    `loss(outputs, target)` and a batch `(inputs, target)`, or an iterable of batches, of which the first four are
    read; a tuple of inputs holds the arguments of `forward`, a mapping holds them by name. A batch that is itself a
    mapping goes to the model whole, or by the keys that `forward` names, and to `loss(outputs, batch)`. Samples of a
    DataLoader's data set are read several times, by this process: a set that edits what it stores when it is read does
    so here, too. `evaluation` is a loader, or batches, of what the module is evaluated on. `declared` names codes of
    findings about a module that are intended; a config has `checks.skip`. `budget_s` is the processor time for
    relations of the model in seconds, 4 of a module and 3 of a config if it is None. Raises UserError or ConfigError
    for a subject that cannot be read.

    >>> import sightline
    >>> sightline.check("configs/classify/synthetic_shapes_pointnet.yaml")
    CheckReport(synthetic_shapes_pointnet: 0 errors, 0 warnings)
    """
    if isinstance(subject, nn.Module):
        if loader is None:
            raise UserError(
                "check: a module needs its loss and a batch, check(model, loss, (inputs, target)), or a loader and a "
                "step, check(model, loader=loader, step=step)"
            )
        more: dict[str, Any] = {"step": step, "optimizer": optimizer, "evaluation": evaluation, "score": score}
        budget_s = BUDGET_S if budget_s is None else budget_s
        return check_module(subject, loss, loader, declared=declared, budget_s=budget_s, **more)
    if any(each is not None for each in (loss, loader, step, optimizer, evaluation, score)) or declared:
        raise UserError(
            "check: loss, loader, step, optimizer, evaluation, score and declared belong to a module; a config names "
            "its own"
        )
    source: Path | Mapping[str, Any] | RunConfig
    if isinstance(subject, Mapping | RunConfig):
        source = subject
    else:
        source = to_path(subject, name="subject", what="a YAML file or a run directory, a dict, or a module")
    overrides = to_texts(overrides, name="overrides")
    loaded = load_plugins(to_paths(plugins, name="plugins", what="a Python file"))
    path = source if isinstance(source, Path) else Path("dict")
    if isinstance(source, Path) and is_run(source):
        RunFiles(source).check_plugins(loaded)
        source = config_path_of_run(source)
    config = read_config(source, overrides)
    examination = RunExamination(budget_s=RUN_BUDGET_S if budget_s is None else budget_s)
    findings = check_path(path, config, examination=examination)
    document = examination.to_dict()
    verdict = Verdict(document["verdict"], document["judged"], document["not_judged"])
    return CheckReport(config.name, findings, verdict, examination=document)
