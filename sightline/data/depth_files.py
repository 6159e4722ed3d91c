"""The documented name of before; new programs import `sightline.data.files.depth_files`."""

from __future__ import annotations

from sightline.data.files.depth_files import read_depth

__all__ = ["read_depth"]
