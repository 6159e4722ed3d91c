"""Layers of a user's own, and sums over neighbours: planted bugs come first, healthy ones are silent."""

from __future__ import annotations

import pytest

from tests.doctor.own_layers import BUGS_OF_LAYERS, HEALTHY_LAYERS
from tests.doctor.own_networks import findings_of
from tests.doctor.planting import assert_complete


@pytest.mark.parametrize("name", BUGS_OF_LAYERS)
def test_a_planted_bug_of_a_layer_comes_first(name: str) -> None:
    bug = BUGS_OF_LAYERS[name]
    findings = findings_of(bug.task, bug.model)
    told = "\n".join(map(str, findings))
    assert (findings[0].code, findings[0].cause) == (bug.code, bug.cause), told
    assert bug.layer is None or findings[0].where.layer == bug.layer, told
    assert_complete(findings[0])


@pytest.mark.parametrize("name", HEALTHY_LAYERS)
def test_healthy_layers_of_a_users_are_left_alone(name: str) -> None:
    task, model = HEALTHY_LAYERS[name]
    found = [finding for finding in findings_of(task, model) if finding.severity != "note"]
    assert found == [], "\n".join(map(str, found))
