"""The documented name of before; new programs import `sightline.predict.own_frames`."""

from __future__ import annotations

from sightline.predict.own_frames import OwnFrames

__all__ = ["OwnFrames"]
