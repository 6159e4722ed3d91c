"""Data on disk and in memory: file formats, prepared sets, loading of batches."""

from __future__ import annotations

from collections.abc import Mapping

PARTS: Mapping[str, Mapping[str, str]] = {
    "data": {"loading.concat": "concat"},
}
"""Kind of part -> module of this folder -> names that it registers (`contract/catalogue.py`)."""
