"""Folder in which the processes of a launcher report their failures; that of a killed launcher does not stay."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sightline.contract.regular_files import read_regular_file
from sightline.runs.process_identity import ProcessIdentity

_PREFIX = "sightline_launch_"
_RECORD = "launcher.json"
_MAX_BYTES = 4096
_MIN_AGE_S = 60.0
"""Seconds after which a folder without a record was left by a launcher that was killed before it wrote one."""


@contextlib.contextmanager
def launch_folder() -> Iterator[str]:
    """Make a folder that records this process, and is removed at the end of the block.

    Folders beside it whose launchers are known to have ended are removed first: no process is left to do it where a
    launcher was killed with all of its child processes.
    """
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as folder:
        launcher = ProcessIdentity.current(socket.gethostname())
        Path(folder, _RECORD).write_text(json.dumps(launcher.to_dict()), encoding="utf-8")
        for other in Path(folder).parent.glob(f"{_PREFIX}*"):
            remove_abandoned(other)
        yield folder


def remove_abandoned(folder: Path) -> None:
    """Remove a launcher's folder, if it is this user's and the launcher is known to have ended."""
    try:
        if folder.lstat().st_uid == os.getuid() and _is_abandoned(folder):
            remove_launch_folder(folder)
    except OSError:  # removed meanwhile
        return


def remove_launch_folder(folder: Path) -> None:
    """Remove the folder of a launcher that ended; a folder without a launcher's prefix is not touched."""
    if folder.name.startswith(_PREFIX) and not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    try:
        record = json.loads(read_regular_file(folder / _RECORD, max_bytes=_MAX_BYTES, allow_link=False))
        return ProcessIdentity(**record).is_gone
    except (OSError, ValueError, TypeError):
        return time.time() - folder.lstat().st_mtime > _MIN_AGE_S
