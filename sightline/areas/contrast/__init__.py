"""Self-supervision: pairs of clouds and images, and networks trained without labels."""

from __future__ import annotations

from collections.abc import Mapping

PARTS: Mapping[str, Mapping[str, str]] = {
    "data": {"shapenet_render": "shapenet_render"},
    "metrics": {"metrics": "cross_pairs pairs"},
    "models": {"crosspoint": "crosspoint intrapoint"},
    "predictors": {"predictor": "contrast"},
    "tasks": {"task": "contrast"},
}
"""Kind of part -> module of this folder -> names that it registers (`contract/catalogue.py`)."""
