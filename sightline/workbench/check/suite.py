"""Runner of checks: discovery, selection by moment, and protection of the run against side effects."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import pkgutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from sightline.config import RunConfig
from sightline.contract.catalogue import find_modules
from sightline.contract.errors import ConfigError
from sightline.contract.schema import suggest
from sightline.doctor.causes import merge_findings
from sightline.doctor.examine import Examination as Judged
from sightline.doctor.examine import list_rules
from sightline.doctor.finding import Finding
from sightline.doctor.objects import find_generators, preserve_generators
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World, start_world
from sightline.engine.process_inputs import describe_command
from sightline.engine.run_loading import open_run
from sightline.instrument.random_state import preserve_random_state
from sightline.workbench.check.context import CHECKS, MOMENTS, TO_END, Context, FindingBuilder, Rule
from sightline.workbench.check.core.examination import Examination
from sightline.workbench.check.core.finding import gather_findings, join_parts
from sightline.workbench.check.needs import NEEDS
from sightline.workbench.check.run_subject import examine_relations, examine_run

logger = logging.getLogger(__name__)

_SKIPPED = FindingBuilder(
    code="check-skipped",
    severity="warning",
    causes=("sys.resource",),
    at="model",
    expected=TO_END,
    action="run `sightline check`, which has no time limit",
)

_FORWARD_S = 1.5  # for the forward pass of the quick checks' one step, which keeps all quick checks below ten seconds
_CHECKS_PACKAGE = "sightline.workbench.check.checks"
_RULES_OF_RUNS = ("compared_sets", "compress_rules", "run_rules", "step_rules")


def all_checks() -> list[Rule]:
    """Import and return all checks, ordered by moment and code."""
    package = importlib.import_module(_CHECKS_PACKAGE)
    own_modules = [module.name for module in pkgutil.walk_packages(package.__path__, f"{_CHECKS_PACKAGE}.")]
    of_runs = (f"sightline.workbench.check.{name}" for name in _RULES_OF_RUNS)
    of_areas = (module for kind in ("checks", "rules") for module in find_modules(kind).values())
    for module in {*own_modules, *of_runs, *of_areas}:
        importlib.import_module(module)
    return sorted(CHECKS.values(), key=lambda check: (MOMENTS.index(check.moment), check.code))


def run_quick(built: TrainingSetup, world: World, *, examination: Examination | None = None) -> list[Finding]:
    """Run the quick checks with which every training starts."""
    chosen = [check for check in all_checks() if check.is_quick and check.moment in ("static", "preflight")]
    return _run(chosen, Context(built, world, _FORWARD_S, examination=examination or Examination()))


def run_all(
    built: TrainingSetup,
    world: World,
    *,
    run: Path | None = None,
    deep: bool = False,
    examination: Examination | None = None,
) -> list[Finding]:
    """Run all checks of a run that has not begun; with a `run` directory, also the checks of its files.

    `deep` includes the oracles, which compare every layer and loss with references and finite differences. The checks
    write into the `examination` what they examined.
    """
    excluded_moments = ({"offline"} if run is None else set()) | (set() if deep else {"deep"})
    chosen = [check for check in all_checks() if check.moment not in excluded_moments]
    return _run(chosen, Context(built, world, run=run, examination=examination or Examination()))


def check_path(
    path: Path,
    config: RunConfig,
    *,
    device: str = "auto",
    deep: bool = False,
    examination: Examination | None = None,
) -> list[Finding]:
    """Run all checks of the config of a file or of a run directory."""
    describe = partial(describe_command, "check", config, deep=deep)
    with start_world(device=device, timeout_s=config.distributed.timeout_s, describe=describe) as world:
        opened = open_run(path, config=config, world=world)
        run = opened.files and opened.path
        return run_all(opened.training_setup, world, run=run, deep=deep, examination=examination)


def run_after(
    built: TrainingSetup,
    world: World,
    *,
    run: Path,
    examination: Examination | None = None,
) -> list[Finding]:
    """Run the checks of a finished training's directory and model."""
    chosen = [check for check in all_checks() if check.moment == "offline"]
    return _run(chosen, Context(built, world, _FORWARD_S, run, examination or Examination()))


def _run(checks: Sequence[Rule], context: Context) -> list[Finding]:
    """Run checks and return the findings by severity; one collective at the end gives all processes the same list."""
    findings = [*_collect(checks, context), *_short_time_findings(context)]
    if any(check.moment == "preflight" for check in checks):
        findings += _relate(context)
    context.examination.gaps += _list_gaps(context, {check.moment for check in checks})
    return merge_findings(join_parts(gather_findings(findings, context.world)))


def _collect(checks: Sequence[Rule], context: Context) -> list[Finding]:
    """Run checks and return their findings in the order of the checks."""
    assert_known(context.config)
    findings: list[Finding] = []
    with _preserve_run_state(context.built):
        for number, check in enumerate(checks, start=1):
            context.examination.doing = f"{check.code}, {number} of {len(checks)} checks"
            if check.is_skipped(context.config):
                context.examination.add(check.subject, check.code, idle="checks.skip")
                continue
            start_seconds = time.perf_counter()
            with context.examination.count_time(check.subject):
                check_findings = _run_one(check, context) if _applies(check, context) else []
            context.examination.add(check.subject, check.code)
            seconds = time.perf_counter() - start_seconds
            findings += [
                dataclasses.replace(finding, phase=check.moment, seconds=seconds) for finding in check_findings
            ]
    return findings


def _relate(context: Context) -> list[Finding]:
    """Judge the run, and its parts by the relations of the doctor."""
    found = _examine(context, "data", examine_run)
    is_apart = context.world.size > 1 or not context.dry_run.is_sound
    return found if is_apart else [*found, *_examine(context, "model", examine_relations)]


def _examine(
    context: Context, subject: str, examine: Callable[[Context], tuple[Judged, list[Finding]]]
) -> list[Finding]:
    """Judge a run by rules of the doctor, and record which did."""
    with _preserve_run_state(context.built), context.examination.count_time(subject):
        examination, found = examine(context)
    for judgement in examination.judgements:
        idle = "" if judgement.outcome in ("held", "broken") else judgement.reason
        context.examination.add(subject, judgement.rule.code, idle=idle)
    return found


def _applies(check: Rule, context: Context) -> bool:
    """Return False for a rule whose need the run lacks, and record that."""
    need = NEEDS.get(check.code)
    try:
        holds = need is None or bool(need.holds(context))
    except Exception:  # noqa: BLE001 - parts of a plugin may fail in any way; the rule itself reports it
        return True
    if need is not None and not holds:
        context.examination.add(check.subject, check.code, idle=f"no {need.text}")
    return holds


def _run_one(check: Rule, context: Context) -> list[Finding]:
    """Return a check's findings; an exception, which must not end the run on one process alone, becomes a finding."""
    try:
        return check(context)
    except Exception as error:
        logger.warning("check-failed: '%s' did not run, so it has no finding for this run", check.code, exc_info=True)
        action = "look at the traceback above, or leave the check out with checks.skip"
        return [check.not_run(context, error, severity="warning", action=action)]


def _list_gaps(context: Context, moments: set[str]) -> Iterator[str]:
    """List what of this run the checks did not cover, from the measurements that they made."""
    measured = vars(context)
    for survey in measured.get("statistics", ()):
        survey = context.thorough_statistics(survey) if id(survey) in context._thorough else survey
        if not survey.is_whole:
            left = len(survey.part.indices) - survey.num_sampled
            yield f"{left:,} of {len(survey.part.indices):,} samples of the {survey.part.split} part"
    if "preflight" in moments and "deep" not in moments:
        yield f"single layers ({'check --deep' if context.is_thorough else 'sightline check --deep'})"


def _short_time_findings(context: Context) -> list[Finding]:
    """Return a finding if a check used a dry run or dry evaluation that was skipped for lack of time."""
    if _SKIPPED.is_skipped(context.config):
        return []
    dry_run = vars(context).get("dry_run")  # None if no check used it
    results = [*([] if dry_run is None else [dry_run]), *vars(context).get("dry_evaluations", ())]
    skipped = [result.skipped for result in results if result.skipped][:1]
    return [_SKIPPED.finding(context, f"check could not run: {reason}", measured=reason) for reason in skipped]


def assert_known(config: RunConfig) -> None:
    """Raise a ConfigError if `checks.skip` contains a name that is no check."""
    checks = (*all_checks(), _SKIPPED)
    valid_names = {*(check.code for check in checks), *(relation.code for relation in list_rules())}
    codes = f"; allowed: {', '.join(sorted(valid_names))}"
    for code in config.checks.skip:
        location = config.origins.get("checks.skip", "checks.skip")
        if code not in valid_names:
            raise ConfigError(f"{location}: there is no check '{code}'{suggest(code, valid_names, otherwise=codes)}")


@contextmanager
def _preserve_run_state(built: TrainingSetup) -> Iterator[None]:
    """Context that restores random states (also those of data sets), losses and training flags at its end."""
    model, device = built.job.model, built.job.device
    flags = {name: module.training for name, module in model.named_modules()}
    parts = (built.data.train, built.data.selection, built.data.test)
    readers = (
        *parts,
        built.job.stream.reader,
        built.selection_evaluator.voting_reader,
        built.test_evaluator.voting_reader,
    )
    cuda = [device] if device.type == "cuda" else []
    with (
        preserve_random_state(),
        torch.random.fork_rng(cuda),
        preserve_generators(find_generators(*readers)),
        built.job.losses.preserve_state(),
        torch.enable_grad(),
    ):
        try:
            yield
        finally:
            for name, module in model.named_modules():
                module.training = flags[name]
