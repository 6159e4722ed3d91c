"""The layers of those models whose kinds of layers the suite examines in others: no oracle finds one wrong."""

from __future__ import annotations

import pytest

from sightline import registry
from tests.doctor.oracles.test_examine import MODELS, assert_nothing_wrong


@pytest.mark.parametrize("name", sorted(set(registry.models.names()) - set(MODELS)))
def test_nothing_of_the_other_models_is_wrong(name: str) -> None:
    assert_nothing_wrong(name)
