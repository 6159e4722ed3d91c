"""Temporary folder of a process, for a purpose; that of a process which was killed does not stay."""

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
from sightline.store.files.atomic_write import disk_failure

LAUNCH = "launch"
"""Purpose of the folder in which the processes of a launcher report their failures."""
_RECORD = "process.json"
_MAX_BYTES = 4096
_MIN_AGE_S = 60.0
"""Seconds after which a folder without a record was left by a process that was killed before it wrote one."""


@contextlib.contextmanager
def process_folder(purpose: str) -> Iterator[Path]:
    """Make a folder `sightline_<purpose>_...` in TMPDIR, which is removed at the end of the block.

    It holds a record of this process. Others of its purpose whose processes are known to have ended are removed first:
    no process is left to do it where one was killed.
    """
    with tempfile.TemporaryDirectory(prefix=_prefix(purpose), ignore_cleanup_errors=True) as name:
        folder = Path(name)
        process = ProcessIdentity.current(socket.gethostname())
        try:
            (folder / _RECORD).write_text(json.dumps(process.to_dict()), encoding="utf-8")
        except OSError as error:
            raise disk_failure(error, folder.parent, again="run the same command again", option="TMPDIR") from error
        for other in folder.parent.glob(f"{_prefix(purpose)}*"):
            remove_abandoned(other, purpose)
        yield folder


def _prefix(purpose: str) -> str:
    return f"sightline_{purpose}_"


def remove_abandoned(folder: Path, purpose: str) -> None:
    """Remove the folder of a process, if it is this user's and the process is known to have ended."""
    try:
        if folder.lstat().st_uid == os.getuid() and _is_abandoned(folder):
            remove_process_folder(folder, purpose)
    except OSError:  # removed meanwhile
        return


def remove_process_folder(folder: Path, purpose: str) -> None:
    """Remove the folder of a process that ended; a folder of another name is not touched."""
    if folder.name.startswith(_prefix(purpose)) and not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    try:
        record = json.loads(read_regular_file(folder / _RECORD, max_bytes=_MAX_BYTES, allow_link=False))
        return ProcessIdentity(**record).is_gone
    except (OSError, ValueError, TypeError):
        return time.time() - folder.lstat().st_mtime > _MIN_AGE_S
