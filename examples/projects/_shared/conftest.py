"""Loads the parts of my_project for its tests, as `--plugin` loads them."""

from pathlib import Path

import pytest

import sightline


@pytest.fixture(scope="session")
def parts():
    """Return the module of the parts."""
    return sightline.load_plugin(Path(__file__).parent / "my_project.py")
