"""Check of a run: the rules that apply, protection of the run against side effects, one list for all processes."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from sightline.config import RunConfig
from sightline.contract.catalogue import list_modules
from sightline.contract.errors import ConfigError
from sightline.contract.schema import suggest
from sightline.doctor.causes import merge_findings
from sightline.doctor.examine import Examination, list_rules
from sightline.doctor.finding import Fault, Finding, finding_from_dict
from sightline.doctor.objects import find_generators, preserve_generators
from sightline.doctor.rules import Rule
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World, start_world
from sightline.engine.process_inputs import describe_command
from sightline.engine.run_loading import OpenRun, open_run
from sightline.instrument.random_state import preserve_random_state
from sightline.runs.checkpoint import list_checkpoints
from sightline.runs.run_documents import read_lines
from sightline.workbench.check.context import Context, TrainedRecords
from sightline.workbench.check.examination import RunExamination
from sightline.workbench.check.run_subject import examine_relations, examine_run

_ROOM = "sightline.workbench.check"


def all_rules() -> list[Rule]:
    """Import and return all rules: of the doctor, of runs, and of areas.

    They are in the order of the names of their modules: of two findings of one fault the first explains the other.
    """
    own = [module.name for module in pkgutil.walk_packages(importlib.import_module(_ROOM).__path__, f"{_ROOM}.")]
    for module in (*own, *list_modules("rules")):
        importlib.import_module(module)
    return list_rules()


def run_quick(built: TrainingSetup, world: World, *, examination: RunExamination | None = None) -> list[Finding]:
    """Judge a run with which a training starts, by fewer samples than a check that was asked for."""
    return _run(Context(built, world, is_quick=True, examination=examination or RunExamination()))


def run_all(
    built: TrainingSetup,
    world: World,
    *,
    deep: bool = False,
    examination: RunExamination | None = None,
    trained: TrainedRecords | None = None,
) -> list[Finding]:
    """Judge a run by all rules.

    `deep` includes the oracles, which compare every layer with references and finite differences. The `examination`
    receives what was judged. `trained` are the records of a run that has been trained.
    """
    return _run(Context(built, world, examination=examination or RunExamination(), trained=trained), is_deep=deep)


def check_path(
    path: Path,
    config: RunConfig,
    *,
    device: str = "auto",
    deep: bool = False,
    examination: RunExamination | None = None,
) -> list[Finding]:
    """Judge the config of a file or of a run directory by all rules."""
    describe = partial(describe_command, "check", config, deep=deep)
    with start_world(device=device, timeout_s=config.distributed.timeout_s, describe=describe) as world:
        opened = open_run(path, config=config, world=world)
        trained = _open_records(opened)
        return run_all(opened.training_setup, world, deep=deep, examination=examination, trained=trained)


def _open_records(opened: OpenRun) -> TrainedRecords | None:
    """Open the records of a run directory; None for a config, and before the first checkpoint."""
    file = opened.path / "metrics.jsonl"
    if opened.files is None or not file.is_file() or not list_checkpoints(opened.path):
        return None
    return TrainedRecords(lambda: read_lines(file), lambda: opened.model)


def _run(context: Context, *, is_deep: bool = False) -> list[Finding]:
    """Return the findings by severity; one collective at the end gives all processes the same list."""
    assert_known(context.config)
    whole, started_s = context.examination, time.process_time()
    with _preserve_run_state(context.built):
        whole.turn_to("judges the data, the first step and the evaluation")
        examined, findings = examine_run(context, is_deep=is_deep)
        findings += [] if any(each.severity == "error" for each in findings) else _list_failed(examined)
        if context.world.size == 1 and context.dry_run.is_sound:
            whole.turn_to("asks the relations of the model and the losses")
            known = {cause for finding in findings if finding.severity != "note" for cause in finding.causes}
            findings += [each for each in examine_relations(context) if known.isdisjoint(each.causes)]
    whole.reaching = vars(context).get("reaching")
    whole.is_quick = context.is_quick
    whole.is_watched = context.is_quick or context.trained is not None
    whole.gaps += _list_gaps(context, is_deep=is_deep)
    whole.findings = merge_findings(join_parts(gather_findings(findings, context.world)))
    whole.seconds = time.process_time() - started_s
    return whole.findings


def _list_failed(examination: Examination) -> list[Finding]:
    """List rules that failed themselves, such as those of a plugin; a failed measurement stands in the verdict."""
    failed = [each for each in examination.judgements if each.outcome == "failed"]
    return [
        each.rule.build(
            Fault(
                f"a rule of this code failed itself: {each.reason}",
                measured=each.reason,
                expected="every rule to finish",
                action="mend the rule, or leave it out with checks.skip",
                causes=["sys.environment"],
                severity="warning",
            )
        )
        for each in failed
        if each.missing is not None and each.missing.source == each.rule.judge.__name__
    ]


def _list_gaps(context: Context, *, is_deep: bool) -> Iterator[str]:
    """List what of this run nothing covered, from the measurements that were made."""
    for survey in vars(context).get("statistics", ()):
        if not survey.is_whole:
            left = len(survey.part.indices) - survey.num_sampled
            yield f"{left:,} of {len(survey.part.indices):,} samples of the {survey.part.split} part"
    if not is_deep:
        yield f"single layers ({'sightline ' * context.is_quick}check --deep)"


def assert_known(config: RunConfig) -> None:
    """Raise a ConfigError if `checks.skip` contains a name that is no rule's code."""
    valid_names = {rule.code for rule in all_rules()}
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


def gather_findings(findings: Sequence[Finding], world: World) -> list[Finding]:
    """Gather the findings of all processes without duplicates; a collective, with the same result on every process."""
    if world.size == 1:
        return list(findings)
    texts = world.gather_text(json.dumps([f.to_dict() for f in findings], default=str), operation="findings")
    gathered: dict[tuple[str, str, str], Finding] = {}
    for rank, text in enumerate(texts):
        for document in json.loads(text):
            finding = finding_from_dict(document)
            key = (finding.code, finding.cause, str(finding.where))
            gathered.setdefault(key, _set_rank(finding, rank))
    return list(gathered.values())


def _set_rank(finding: Finding, rank: int) -> Finding:
    return finding if rank == 0 else dataclasses.replace(finding, where=dataclasses.replace(finding.where, rank=rank))


def join_parts(findings: Iterable[Finding]) -> list[Finding]:
    """Join findings of the same fault and field in several splits into one."""
    groups: dict[object, list[Finding]] = {}
    for finding in findings:
        field = finding.evidence.get("field")
        key = id(finding) if field is None else (finding.code, finding.cause, finding.severity, field)
        groups.setdefault(key, []).append(finding)
    return [_add_evidence(first, "also", [str(other.where) for other in others]) for first, *others in groups.values()]


def _add_evidence(finding: Finding, key: str, lines: Sequence[str]) -> Finding:
    """Return the finding with the lines added to its evidence; unchanged if there are none."""
    return dataclasses.replace(finding, evidence={**finding.evidence, key: list(lines)}) if lines else finding
