"""`sightline check`: all findings on a config's run before it starts, or on an existing run directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sightline.doctor.suite import run_all
from sightline.engine.distributed import start_world
from sightline.engine.run_loading import open_run
from sightline.verbs.common import load_config, write_document
from sightline.verbs.output import print_note, show_findings, show_table

__all__ = ["check"]


def check(
    path: Path,
    overrides: Sequence[str],
    *,
    plugins: Sequence[Path],
    strict: bool,
    deep: bool = False,
    device: str,
    json: Path | None,
    verbose: bool = False,
) -> int:
    """Run all checks and show their findings; exit code 1 if any is an error (with `strict`, a warning)."""
    config, _ = load_config(path, overrides, plugins)
    with start_world(device=device, timeout_s=config.distributed.timeout_s) as world:
        opened = open_run(path, config=config, world=world)
        findings = run_all(opened.training_setup, world, run=opened.directory, deep=deep)
    errors = sum(finding.severity == "error" for finding in findings)
    warnings = sum(finding.severity == "warning" for finding in findings)
    for finding in findings:
        if (table := finding.evidence.get("table")) is not None:
            show_table(table["title"], table["columns"], table["rows"], unbroken="first")
    show_findings(findings, is_verbose=verbose)
    print_note(f"{config.name}: {errors} errors, {warnings} warnings")
    write_document(
        json, {"findings": [finding.to_dict() for finding in findings], "errors": errors, "warnings": warnings}
    )
    return 1 if errors or (strict and warnings) else 0
