"""Puts the configs and examples of the checkout into the wheel; all else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CHECKOUT = Path(__file__).resolve().parent


class BuildWithConfigs(build_py):
    """Copies them into `sightline/shipped`, where `sightline/config/shipped.py` looks for them."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the package then lies beside them
            return
        for folder in ("configs", "examples"):
            to = Path(self.build_lib, "sightline", "shipped", folder)
            shutil.rmtree(to, ignore_errors=True)  # an earlier build may have left files that are gone
            shutil.copytree(CHECKOUT / folder, to, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithConfigs})
