"""A plugin: gradients travel in small buckets, each once it is complete, or with AFTERWARDS=1 after the pass."""

from __future__ import annotations

import os

from sightline.engine import gradients
from sightline.engine.distributed import World
from tests.engine.gradients import reduce_afterwards

gradients._BUCKET_BYTES = 2**14
if os.environ.get("AFTERWARDS") == "1":
    World.reduce_gradients = reduce_afterwards  # type: ignore[method-assign, assignment]
