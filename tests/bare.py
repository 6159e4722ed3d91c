"""An environment that lacks the packages of all extras, for a command in a process of its own."""

from __future__ import annotations

from pathlib import Path

__all__ = ["EXTRAS", "write_bare_site"]

EXTRAS = (
    *("tensorboard", "wandb", "sklearn", "scipy", "optuna", "pypcd4", "laspy", "lazrs", "pycocotools", "faiss"),
    "fpsample",
)


def write_bare_site(folder: Path) -> Path:
    """A folder for PYTHONPATH in which no package of an extra can be imported or found."""
    folder.mkdir(parents=True, exist_ok=True)
    text = f"import sys\n\nsys.modules.update(dict.fromkeys({EXTRAS!r}))\n"
    (folder / "sitecustomize.py").write_text(text)
    return folder
