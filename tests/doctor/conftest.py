"""What all tests of checks share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _no_check_fails(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A check that dies says nothing about a run, so a test could take it for silent."""
    yield
    dead = ("check-failed", "could not be run again")
    told = [record.getMessage() for record in caplog.get_records("call")]
    assert not [line for line in told if any(words in line for words in dead)]
