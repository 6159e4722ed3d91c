"""An environment that lacks the packages of extras, for a command in a process of its own."""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import suppress
from importlib import metadata
from pathlib import Path

__all__ = ["EXTRAS", "list_modules_beside", "write_bare_site"]

EXTRAS = """
tensorboard wandb mlflow sklearn scipy optuna pypcd4 laspy lazrs pye57 pycocotools faiss fpsample
""".split()


def list_modules_beside(*packages: str) -> list[str]:
    """Modules of all installed packages but these and what they need: those that a new installation would lack."""
    needed, pending = {"sightline"}, list(packages)
    while pending:
        if (name := _normalise(pending.pop())) not in needed:
            needed.add(name)
            with suppress(metadata.PackageNotFoundError):  # for another platform
                pending += [line for line in metadata.requires(name) or () if "extra ==" not in line]
    owners_by_module = metadata.packages_distributions()
    return sorted(module for module, owners in owners_by_module.items() if not needed & set(map(_normalise, owners)))


def _normalise(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


def write_bare_site(folder: Path, modules: Collection[str] = EXTRAS) -> Path:
    """A folder for PYTHONPATH with which none of these modules can be imported or found: all but the workbench's."""
    folder.mkdir(parents=True, exist_ok=True)
    text = f"import sys\n\nsys.modules.update(dict.fromkeys({modules!r}))\n"
    (folder / "sitecustomize.py").write_text(text)
    return folder
