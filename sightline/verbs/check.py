"""`sightline check`: all findings on a run or before it, and with `--fit` whether it can learn a few samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sightline.commands.prove import CheckOptions
from sightline.config import RunConfig
from sightline.contract.errors import UserError
from sightline.doctor.finding import SEVERITIES
from sightline.engine.build import build
from sightline.engine.distributed import start_world
from sightline.runs.run_directory import write_document
from sightline.verbs.output import load_config, print_note, show_findings, show_progress, show_table
from sightline.workbench.check.examination import RunExamination, describe_examination
from sightline.workbench.check.suite import check_path
from sightline.workbench.fit.fit import SECONDS, STEPS, Attempt, FitResult, fit_samples


def check(options: CheckOptions) -> int:
    """Run all checks and show their findings; exit code 1 if any is an error (with `strict`, a warning)."""
    for name in ("samples", "steps", "seconds"):
        if getattr(options, name) is not None and not options.fit:
            raise UserError(f"--{name}: belongs to --fit; give --fit, too")
    config = load_config(options.config, options.overrides, options.plugins)
    examination = RunExamination()
    with show_progress("check", lambda: examination.doing):
        findings = check_path(options.config, config, device=options.device, deep=options.deep, examination=examination)
    document: dict[str, Any] = {"examination": examination.to_dict()}
    if options.fit:
        fitted = _fit(options, config)
        findings = sorted([*findings, *fitted.findings], key=lambda finding: SEVERITIES.index(finding.severity))
        document["fit"] = fitted.to_dict()
    errors, warnings = (sum(finding.severity == kind for finding in findings) for kind in ("error", "warning"))
    show_findings(findings, is_verbose=options.verbose)
    print_note("\n".join(describe_examination(document["examination"], is_verbose=options.verbose)))
    print_note(f"{config.name}: {errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}")
    counts = {"errors": errors, "warnings": warnings}
    write_document(options.json, {"findings": [finding.to_dict() for finding in findings], **counts, **document})
    return 1 if errors or (options.strict and warnings) else 0


def _fit(options: CheckOptions, config: RunConfig) -> FitResult:
    """Over-fit a few samples, and show a row for each attempt."""
    with start_world(device=options.device, timeout_s=config.distributed.timeout_s) as world:
        built = build(config, world)
        steps, seconds = options.steps or STEPS, SECONDS if options.seconds is None else options.seconds
        result = fit_samples(built, options.samples, print_note, steps=steps, seconds=seconds)
    if result.attempts:
        columns = ("optimiser", "rate", "fitted after", "lowest loss", config.evaluate.metric, "end")
        rows = map(_attempt_row, result.attempts)
        show_table(f"{config.name}: {len(result.samples.indices)} samples", columns, rows, unbroken="optimiser")
    print_note(f"{len(result.samples.indices)} samples: {'fitted' if result.is_fitted else 'NOT FITTED'}")
    return result


def _attempt_row(tried: Attempt) -> Sequence[Any]:
    score = "" if math.isnan(tried.score) else f"{tried.score:.4g}"
    after = "no" if tried.fitted_after is None else f"{tried.fitted_after} steps"
    return [tried.optimizer, f"{tried.rate:g}", after, f"{min(tried.losses):.4g}", score, tried.stop]
