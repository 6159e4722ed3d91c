"""Loads the parts of my_project for its tests, as `--plugin` loads them."""

from pathlib import Path

import pytest

from sightline.contract.plugins import Plugin, run_file


@pytest.fixture(scope="session")
def parts():
    """Return the module of the parts."""
    return run_file(Plugin(Path(__file__).parent / "my_project.py"))
