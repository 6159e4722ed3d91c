"""The documented name of before; new programs import `sightline.data.store.views`."""

from __future__ import annotations

from sightline.data.store.views import Views

__all__ = ["Views"]
