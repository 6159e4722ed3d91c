"""Choices that depend on the files of the package: others after each change, and the same when they are repeated."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

__all__ = ["digest_of_tree", "order_by_digest"]

_PACKAGE = Path(__file__).resolve().parents[1] / "sightline"


@functools.cache
def digest_of_tree() -> str:
    """Return the digest of all modules of the package."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(_PACKAGE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def order_by_digest(names: Iterable[str]) -> list[str]:
    """Return names in an order that the digest of the package draws."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{digest_of_tree()} {name}".encode()).digest())
