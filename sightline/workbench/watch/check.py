"""Checks of a config, of a run, or of a plain module with its loss and batches: the rules of `sightline check`."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.config import RunConfig, read_config
from sightline.config.run_config import Checks
from sightline.contract.call_arguments import to_path, to_paths, to_texts
from sightline.contract.errors import UserError, summarise_error
from sightline.contract.plugins import load_plugins
from sightline.contract.schema import suggest
from sightline.doctor.batches import has_rows, read_batches
from sightline.doctor.check import assert_copied, examine_subject, list_batches, make_subject
from sightline.doctor.examine import list_rules
from sightline.doctor.finding import Finding, FindingLocation, finding_from_dict
from sightline.doctor.objects import find_read_generators, preserve_generators
from sightline.doctor.report import write_verdict
from sightline.engine.distributed import World
from sightline.instrument import leave_out_checkpoints
from sightline.instrument.random_state import preserve_random_state
from sightline.runs.run_files import RunFiles, config_path_of_run, is_run
from sightline.workbench.check.checks.model.first_step import explain_failure, first_step
from sightline.workbench.check.core.dry_run import error_location
from sightline.workbench.check.core.examination import Examination
from sightline.workbench.check.core.finding import Fault, merge_findings
from sightline.workbench.check.runtime_rules import RUNTIME_RULES
from sightline.workbench.check.suite import all_checks, check_path, run_all
from sightline.workbench.watch.plain.counted import judge_counted
from sightline.workbench.watch.plain.kept import preserve_module
from sightline.workbench.watch.plain.loader import judge_loader
from sightline.workbench.watch.plain.loss import Pass, judge_keys, judge_loss, list_routes, run_batch
from sightline.workbench.watch.plain.places import judge_places
from sightline.workbench.watch.plain.setup import PREFIX, list_optimizers, list_scripted, make_setup
from sightline.workbench.watch.report import CheckReport

_SKIPPED = ("class-balance", "untrained-class", "class-names", "loss-sum", "unused-format")
"""Rules about a whole data set, of which a few batches say nothing, about sums, as losses of plain loops are means, and
about keys of a config."""
_OF_FEW_SAMPLES = ("model.activation", "model.structure", "dist.unused_params", "loss.detached")
"""Causes of gradients that are missing, of which a few samples may be the reason: no pairs, or no sample of a part."""
_NO_ROWS = (
    "single samples: the tensors of a batch do not all have a row for each (graphs, sparse or nested tensors, lists of "
    "any length), have none, or are not all that it holds"
)
_WORDS = {
    f"{PREFIX}.": "",
    f'"{PREFIX}"': "null",
    f"'{PREFIX}'": "the model",
    "declare them in optimizer.frozen": "freeze their whole module by requires_grad_(False)",
    "unless optimizer.frozen names the module": "unless their whole module is frozen",
    "outside optimizer.frozen": "of a module that is not frozen",
    ", though the config freezes nothing there": " in modules that are not",
    "name frozen modules in optimizer.frozen": "freeze modules by requires_grad_(False)",
    "train.clip_norm": "clip_grad_norm_",
    "the recipe's own": "the given",
    "the recipe's": "the given",
}
"""Words of configs in the texts of rules, and those for a plain module."""
_PACKAGE = Path(__file__).resolve().parents[2]
_ADAPTERS = tuple(
    _PACKAGE / name for name in ("contract", "doctor", "engine", "instrument", "parts/tasks", "workbench")
)
"""Folders that run a user's module and loss, but do not cause their faults."""


def check(
    subject: str | Path | Mapping[str, Any] | RunConfig | nn.Module,
    loss: Callable[[Any, Any], Tensor] | None = None,
    batch_or_loader: Any = None,
    *,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    evaluation: Any = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[str | Path] = (),
    declared: Sequence[str] = (),
) -> CheckReport:
    """Check a config (a path, or a mapping as in a file), a run directory, or a module; nothing of it changes.

    Of a config or run, all rules of `sightline check` are applied; `overrides` change values of it. A module needs
    `loss(outputs, target)` and a batch `(inputs, target)`, or an iterable of batches, of which the first four are
    read; a tuple of inputs holds the arguments of `forward`, a mapping holds them by name. A batch that is itself a
    mapping goes to the model whole, or by the keys that `forward` names, and to `loss(outputs, batch)`. The rules
    about models, losses and optimisers are applied. Samples of a DataLoader's
    data set are read several times, by this process: a set that edits what it stores when it is read does so here,
    too. `evaluation` is a loader, or batches, of what the module is evaluated on. `declared` names codes of
    findings about a module that are intended; a config has `checks.skip`. Raises UserError or ConfigError for a
    subject that cannot be read.

    >>> import sightline
    >>> sightline.check("configs/classify/synthetic_shapes_pointnet.yaml")
    CheckReport(synthetic_shapes_pointnet: 0 errors, 0 warnings)
    """
    if isinstance(subject, nn.Module):
        codes = frozenset(to_texts(declared, name="declared"))
        return _check_module(subject, loss, batch_or_loader, optimizer, evaluation, codes)
    if any(each is not None for each in (loss, batch_or_loader, optimizer, evaluation)) or declared:
        raise UserError(
            "check: loss, batch, optimizer, evaluation and declared belong to a module; a config names its own"
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
    examination = Examination()
    findings = check_path(path, config, examination=examination)
    return CheckReport(config.name, findings, examination=examination.to_dict())


def _check_module(
    model: nn.Module,
    loss: Any,
    batch_or_loader: Any,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None,
    evaluation: Any,
    declared: frozenset[str],
) -> CheckReport:
    codes = {rule.code for rule in (*all_checks(), *RUNTIME_RULES)} | {rule.code for rule in list_rules()}
    for unknown in sorted(declared - codes):
        hint = suggest(unknown, codes, otherwise="; these are the words in brackets of a finding")
        raise UserError(f"check: declared: no finding has the code '{unknown}'{hint}")
    if loss is None or batch_or_loader is None:
        raise UserError("check: a module needs its loss and a batch: check(model, loss, (inputs, target))")
    assert_copied(model)
    flags = {module: module.training for module in model.modules()}
    untrained: list[nn.Parameter] = []
    examination = Examination()
    examination.gaps += list_scripted(model)
    generators = [*find_read_generators(batch_or_loader), *find_read_generators(evaluation)]
    with (
        preserve_random_state(),
        preserve_generators(generators),
        preserve_module(loss),
        leave_out_checkpoints(),
        warnings.catch_warnings(),
        torch.enable_grad(),
    ):
        warnings.simplefilter("ignore", UserWarning)  # what torch says of shapes that relations try
        try:
            batches = read_batches(list_batches(batch_or_loader))
            device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
            asked = make_subject(model, loss, batches, optimizer, loader=batch_or_loader, evaluation=evaluation)
            form = asked.form
            pairs, loss = [form.split(batch) for batch in batches], form.wrap(loss)
            run = _run_batch(model, loss, pairs[0], device)
            passed = run if isinstance(run, Pass) else None
            optimizers = list_optimizers(optimizer)
            elsewhere, idle = _trained_elsewhere(passed, optimizers), _list_untrained(model, passed, optimizers)
            untrained = [p for p in model.parameters() if id(p) in idle]
            for parameter in untrained:
                parameter.requires_grad_(False)
            with examination.count_time("loss"):
                plain = [] if passed is None else _judge_plainly(passed, model, loss, pairs)
            plain += [rule.build_outside(fault, FindingLocation()) for rule, fault in judge_keys(model, form, pairs[0])]
            with examination.count_time("data"):
                found = judge_loader(batch_or_loader, form, examination.gaps)
            plain += [rule.build_outside(fault, FindingLocation()) for rule, fault in found]
            findings: list[Finding] = []
            figures: dict[str, Any] = {"samples": 0}
            if has_rows(pairs[0]):
                built = make_setup(model, loss, pairs, optimizer=optimizer, trained_elsewhere=elsewhere)
                built = dataclasses.replace(built, config=_skip_rules(built.config, passed))
                findings = run_all(built, World(device=built.job.device), examination=examination)
                findings = [f for f in findings if not _is_rejection(f, passed, loss)]
                if any(map(_is_of_structure, findings)) and (routes := list_routes(model, pairs[0])):
                    findings = [f for f in findings if not _is_of_structure(f) or _get_layer(f) in routes]
                figures = {"samples": len(built.data.train.indices)}
            else:
                examination.gaps.append(_NO_ROWS)
            if isinstance(run, Exception) and all(finding.code != "first-step" for finding in findings):
                plain.append(_build_failure(run))
            findings = [finding for finding in merge_findings([*plain, *findings]) if finding.code not in declared]
            examination.gaps += [f"what is declared: {', '.join(sorted(declared))}"] * bool(declared)
            judged = examine_subject(asked, declared=declared)
            known = {finding.code for finding in findings} | {f.cause for f in findings if f.severity != "note"}
        finally:
            for module, flag in flags.items():
                module.training = flag
            for parameter in untrained:
                parameter.requires_grad_()
    renamed = [_rename(finding) for finding in findings]
    renamed = merge_findings(
        [*renamed, *(each for each in judged.findings if known.isdisjoint((each.code, each.cause)))]
    )
    title, verdict = type(model).__name__, write_verdict(judged)
    return CheckReport(title, renamed, verdict, figures, _rename_examination(examination))


def _run_batch(model: nn.Module, loss: Any, pair: tuple[Any, Any], device: torch.device) -> Pass | Exception:
    """Run a batch as it is; return the exception if that fails."""
    try:
        return run_batch(model, loss, pair, device)
    except Exception as error:  # noqa: BLE001 - model and loss are the user's
        return error


def _build_failure(error: Exception) -> Finding:
    """Build the finding of a whole batch that fails, though the few samples of it that were tried first did not."""
    causes, action = explain_failure(error)
    file, line = error_location(error)
    fault = Fault(
        f"the first batch cannot be run: {type(error).__name__}",
        causes=causes,
        measured=summarise_error(error),
        expected="a batch that model and loss accept",
        action=action,
    )
    return first_step.build_outside(fault, FindingLocation(file=file, line=line))


def _judge_plainly(passed: Pass, model: nn.Module, loss: Any, pairs: Sequence[tuple[Any, Any]]) -> list[Finding]:
    def rerun(place: int) -> Pass | None:
        run = _run_batch(model, loss, pairs[place], passed.value.device) if place < len(pairs) else None
        return run if isinstance(run, Pass) else None

    found = [*judge_loss(passed, model, loss, pairs), *judge_places(passed, loss, rerun), *judge_counted(passed, loss)]
    return [rule.build_outside(fault, FindingLocation()) for rule, fault in found]


def _trained_elsewhere(passed: Pass | None, optimizers: Sequence[torch.optim.Optimizer]) -> set[int]:
    """Return the parameters of those of several optimisers that this loss gives no gradient: another loss has them."""
    if passed is None or not passed.value.requires_grad:
        return set()
    if len(optimizers) < 2:
        return set(passed.list_read_by_loss())
    groups = [[p for group in one.param_groups for p in group["params"]] for one in optimizers]
    reached = passed.list_reached()
    silent = [group for group in groups if not any(id(p) in reached for p in group)]
    return {id(p) for group in silent for p in group} if len(silent) < len(groups) else set()


def _list_untrained(model: nn.Module, passed: Pass | None, optimizers: Sequence[torch.optim.Optimizer]) -> set[int]:
    """Return the parameters that no optimiser holds, and no gradient reaches: those of a teacher, by identity."""
    if passed is None or not optimizers or not passed.value.requires_grad:
        return set()
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    return {id(p) for p in model.parameters() if p.requires_grad} - held - passed.list_reached()


def _is_rejection(finding: Finding, passed: Pass | None, loss: Callable[[Any, Any], Tensor]) -> bool:
    """Return True for what says that model or loss do not take what a check makes: they need not.

    These are outputs that a check draws, batches in which nothing counts, samples in an order other than that of a
    batch that has been run, gradients that few samples lack, and a whole batch has, outputs of any size for a model
    whose outputs are bounded, such as directions of length 1, and NaN that marks targets.
    """
    is_drawn = finding.severity == "note" and finding.code.startswith("loss-") and finding.cause == "sys.environment"
    is_of_nothing = finding.code == "loss-limits" and finding.cause == "loss.normaliser"  # a mean over nothing is NaN
    if is_drawn or is_of_nothing or passed is None:
        return is_drawn or is_of_nothing
    is_of_target = finding.code == "non-finite-data" and finding.summary.startswith(("'target'", "'label'"))
    if finding.code == "first-step" or (is_of_target and passed.marks_targets()):
        return True
    if not passed.value.requires_grad:
        return False
    is_silent = finding.code == "no-gradient" and finding.cause in _OF_FEW_SAMPLES and passed.reaches_all()
    is_silent |= finding.code == "loss-gradient" and finding.cause == "loss.detached" and passed.reaches_outputs()
    is_left_out = finding.code == "loss-weights" and finding.cause == "data.ignore_handling"
    if is_left_out and any(bool((weight == 0).any()) for weight in passed.list_class_weights()):
        return True  # a class that has no weight
    is_of_names = finding.code in ("loss-direction", "loss-limits") and passed.ignores_names(loss)
    return is_silent or is_of_names or (finding.code == "loss-direction" and not passed.is_unbounded())


def _is_of_structure(finding: Finding) -> bool:
    return finding.code == "no-gradient" and finding.cause == "model.structure"


def _get_layer(finding: Finding) -> str:
    return (finding.where.layer or "").removeprefix(f"{PREFIX}.")


def _skip_rules(config: RunConfig, passed: Pass | None) -> RunConfig:
    """Skip rules that do not apply to plain modules, and those that draw targets for a loss that does not check them.

    torch's CTC reads and writes beyond its memory for labels that are none.
    """
    of_loss = [rule.code for rule in all_checks() if rule.code.startswith("loss-")]
    is_unchecked = passed is not None and passed.uses("CtcLoss")
    return dataclasses.replace(config, checks=Checks(skip=(*_SKIPPED, *(of_loss if is_unchecked else ()))))


def _rename_examination(examination: Examination) -> dict[str, Any]:
    """Return what the checks examined in words for a module, which has no config."""
    text = json.dumps(examination.to_dict())
    for word, plain in (("checks.skip", "no whole data set"), (" (check --deep)", ""), (f"'{PREFIX}'", "the loss")):
        text = text.replace(word, plain)
    document: dict[str, Any] = json.loads(text)
    return document


def _replace_words(text: str) -> str:
    for word, plain in _WORDS.items():
        text = text.replace(word, plain)
    return text


def _rename(finding: Finding) -> Finding:
    """Rename what a module has no config for: its adapter, dotted paths, and words of configs."""
    renamed = finding_from_dict(json.loads(_replace_words(json.dumps(finding.to_dict(), default=str))))
    where = dataclasses.replace(renamed.where, config_path=None, dataset=None)
    if where.file is not None and any(map(Path(where.file).is_relative_to, _ADAPTERS)):
        where = dataclasses.replace(where, file=None, line=None)
    return dataclasses.replace(renamed, where=where)
