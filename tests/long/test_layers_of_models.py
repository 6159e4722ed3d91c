"""The models that the suite leaves out: no oracle finds a layer wrong, and none differs from itself."""

from __future__ import annotations

import pytest

from sightline.contract import registry
from tests.compare import test_planted
from tests.doctor.oracles.test_examine import MODELS, assert_nothing_wrong


@pytest.mark.parametrize("name", sorted(set(registry.models.names()) - set(MODELS)))
def test_nothing_of_the_other_models_is_wrong(name: str) -> None:
    assert_nothing_wrong(name)


@pytest.mark.parametrize("name", sorted(set(registry.models.names()) - set(test_planted.MODELS)))
def test_the_other_models_equal_themselves(name: str) -> None:
    test_planted.assert_equals_itself(name)
