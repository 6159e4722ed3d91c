"""Each planted bug is found by an error or a warning that names its cause; its healthy twin is left alone."""

from __future__ import annotations

from typing import Any

import pytest

import sightline
from sightline.doctor.check import check_module
from sightline.doctor.finding import Finding
from tests.doctor.rows import Case, list_cases


def run(case: Case, has_bug: bool) -> list[Finding]:
    """Run a case; list what is found, without notes."""
    findings: list[Finding] = []

    def check(*subject: Any, **options: Any) -> None:
        findings.extend(check_module(*subject, **options).findings)

    watched: list[Any] = []

    def watch(*subject: Any, **options: Any) -> Any:
        watched.append(sightline.watch(*subject, **options))
        return watched[-1]

    case.run(has_bug, watch, check)
    findings.extend(finding for each in watched for finding in each.findings)
    return [finding for finding in findings if finding.severity != "note"]


ROWS = [pytest.param(case, id=f"{family}: {case.name}") for family, case in list_cases()]


@pytest.mark.parametrize("case", ROWS)
def test_a_planted_bug_is_found(case: Case) -> None:
    found = run(case, True)
    assert {cause for finding in found for cause in finding.causes} & set(case.causes.split()), found


@pytest.mark.parametrize("case", ROWS)
def test_a_healthy_twin_is_left_alone(case: Case) -> None:
    assert run(case, False) == []
