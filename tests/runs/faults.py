"""A plugin whose transform does, on the second process and in its third batch, what the variable FAULT says."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from torch import Tensor

from sightline.contract import registry
from sightline.contract.draws import Draws
from sightline.contract.errors import DataError
from sightline.contract.transform import Transform
from sightline.engine.watchdog import Watchdog
from tests.limits import ENDLESS_S


def _shorten_patience() -> None:
    """Let collectives time out after three seconds: before, a slow machine may need more for a good reason."""
    for thread in threading.enumerate():
        watchdog = getattr(getattr(thread, "_target", None), "__self__", None)
        if isinstance(watchdog, Watchdog):
            watchdog._timeout_s = 3.0


@registry.transforms.add("fault")
class Fault(Transform):
    """Leaves the points as they are, if it leaves anything. Source: ours."""

    def __init__(self) -> None:
        self.kind = os.environ.get("FAULT", "") if os.environ.get("RANK") == "1" else ""
        self.num_batches = 0
        if self.kind == "bad data":
            raise DataError("scans/7.npz: is cut after 12 bytes; fetch it again")

    def __call__(self, draws: Draws, *, points: Tensor) -> dict[str, Tensor]:
        self.num_batches += 1
        if self.num_batches == 3:
            _shorten_patience()
            self.strike()
        return {"points": points}

    def strike(self) -> None:
        if self.kind == "sleep":
            time.sleep(ENDLESS_S)  # the line that the watchdog must name
        elif self.kind == "crash":
            raise RuntimeError("the plugin broke")
        elif self.kind == "sys.exit":
            sys.exit(0)
        elif self.kind.startswith("_exit"):
            os._exit(int(self.kind.split()[1]))
        elif self.kind.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, self.kind))
