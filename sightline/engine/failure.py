"""How a process says why it ends: to the launcher that started it, or to the terminal."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

__all__ = ["report_failure"]


def report_failure(message: str, *, exit_code: int) -> None:
    """State why this process ends: in the launcher's error file where there is one, else on standard error.

    The first report of a process stands; what follows from it is not reported again.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if error_file and os.environ.get("SIGHTLINE_LAUNCHED"):
        path = Path(error_file)
        if not path.exists():
            extra = {"timestamp": str(int(time.time())), "exit_code": exit_code}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"message": {"message": message, "extraInfo": extra}}))
        return
    rank = f"[rank {os.environ['RANK']}] " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    sys.stderr.write(f"{rank}error: {message}\n")
    sys.stderr.flush()
