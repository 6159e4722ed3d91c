"""Where the weights of a converted run come from: kept in its folder, told wherever its figures are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sightline.engine.run_documents import load_document

__all__ = ["LINEAGE", "describe_lineage", "read_lineage"]

LINEAGE = "lineage.json"


def read_lineage(run: Path) -> dict[str, Any] | None:
    """What `sightline data convert-weights` noted of a run; None for one that was trained."""
    return load_document(run / LINEAGE) if (run / LINEAGE).exists() else None


def describe_lineage(lineage: Mapping[str, Any]) -> str:
    """One line: file, hash, layout, and what the file did not have."""
    fresh = ", ".join(lineage.get("fresh", ()))
    return (
        f"weights converted from {lineage['file']} (SHA-256 {str(lineage['sha256'])[:16]}..., layout "
        f"{lineage['layout']}){f'; {fresh}: untrained, the file has none' if fresh else ''}"
    )
