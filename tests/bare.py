"""An environment that lacks the packages of extras, for a command in a process of its own."""

from __future__ import annotations

from pathlib import Path

__all__ = ["EXTRAS", "WORKBENCH", "write_bare_site"]

EXTRAS = (
    *("tensorboard", "wandb", "sklearn", "scipy", "optuna", "pypcd4", "laspy", "lazrs", "pycocotools", "faiss"),
    "fpsample",
)
WORKBENCH = ("pydantic", "yaml", "jinja2", "typer", "rich", "h5py", "PIL", "safetensors", "numba")


def write_bare_site(folder: Path, modules: tuple[str, ...] = EXTRAS) -> Path:
    """A folder for PYTHONPATH with which none of these modules can be imported or found: all but the workbench's."""
    folder.mkdir(parents=True, exist_ok=True)
    text = f"import sys\n\nsys.modules.update(dict.fromkeys({modules!r}))\n"
    (folder / "sitecustomize.py").write_text(text)
    return folder
