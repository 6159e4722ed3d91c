"""The documented name of before; new programs import `sightline.predict.depth_reader`."""

from __future__ import annotations

from sightline.predict.depth_reader import DepthFrameOptions

__all__ = ["DepthFrameOptions"]
