"""Check of a config or of a run by its path, or of a config as a mapping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.config import RunConfig, read_config
from sightline.contract.call_arguments import to_path, to_paths, to_texts
from sightline.contract.plugins import load_plugins
from sightline.doctor.verdict import Verdict
from sightline.runs.run_files import RunFiles, config_path_of_run, is_run
from sightline.workbench.check.examination import CheckReport, RunExamination
from sightline.workbench.check.suite import check_path


def check_config(
    subject: object,
    *,
    overrides: Sequence[str],
    plugins: Sequence[str | Path],
    budget_s: float | None,
) -> CheckReport:
    """Judge a config or run by all rules of `sightline check`; arguments are those of `sightline.check`."""
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
    examination = RunExamination(budget_s=budget_s)
    findings = check_path(path, config, examination=examination)
    document = examination.to_dict()
    verdict = Verdict(document["verdict"], document["judged"], document["not_judged"])
    return CheckReport(config.name, findings, verdict, examination=document)
