"""Execute the notebooks of this folder and keep their outputs: python docs/manual/notebooks/run.py [NAME...]"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Execute a notebook in a folder that has the configs; a failing cell raises CellExecutionError."""
    if not (folder / "configs").exists():
        (folder / "configs").symlink_to(ROOT / "configs")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # its times change with every execution
    return notebook


if __name__ == "__main__":
    for path in sorted(HERE.glob("*.ipynb")):
        if path.stem in sys.argv[1:] or not sys.argv[1:]:
            with tempfile.TemporaryDirectory() as folder:
                nbformat.write(execute(path, Path(folder)), path)
            sys.stdout.write(f"{path.name}\n")
