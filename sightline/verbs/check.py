"""`sightline check`: all findings on a run or before it."""

from __future__ import annotations

from sightline.commands.prove import CheckOptions
from sightline.config import RunConfig
from sightline.doctor.attempts import MissingError, attempt
from sightline.doctor.finding import Finding
from sightline.draw.progress_line import show_progress
from sightline.engine.build import build
from sightline.engine.distributed import start_world
from sightline.runs.output_files import write_document
from sightline.verbs.output import (
    count_findings,
    load_config,
    print_note,
    show_findings,
    sort_findings,
)
from sightline.workbench.check.examination import RunExamination, describe_examination
from sightline.workbench.check.suite import check_path
from sightline.workbench.fit.trace import judge_expectations, look_once


def check(options: CheckOptions) -> int:
    """Run all checks and show their findings; exit code 1 if any is an error (with `strict`, a warning)."""
    config = load_config(options.config, options.overrides, options.plugins)
    examination = RunExamination(budget_s=options.budget)
    with show_progress("check", lambda: examination.doing):
        findings = check_path(options.config, config, device=options.device, deep=options.deep, examination=examination)
    findings = sort_findings([*findings, *(_judge_first_step(options, config) if config.expect else ())])
    described = examination.to_dict()
    show_findings(findings, is_verbose=options.verbose)
    print_note("\n".join(describe_examination(described, is_verbose=options.verbose)))
    counts, code = count_findings(config.name, findings, is_strict=options.strict)
    document = {"findings": [finding.to_dict() for finding in findings], **counts, "examination": described}
    write_document(options.json, document)
    return code


def _judge_first_step(options: CheckOptions, config: RunConfig) -> list[Finding]:
    """Compare the layers of the initial weights with what the config expects of them.

    Where no step can be taken, the check says so itself.
    """
    with start_world(device=options.device, timeout_s=config.distributed.timeout_s) as world:
        snapshot = attempt("the first step", look_once, {"built": build(config, world)})
    return [] if isinstance(snapshot, MissingError) else judge_expectations(config, {"first": snapshot})
