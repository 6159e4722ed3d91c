"""Commands as they run on hosts of other names, with locks that fall silent sooner, or where links and locks raise."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from sightline.runs import folder_lock, process_identity
from tests.processes import forked
from tests.runs.broken_off import Forked, _run_forked

SILENT_S = 1.5


def raise_error(number: int) -> Any:
    """Make a function that raises an error of the system."""

    def call(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return call


class OnHost(Forked):
    """`sightline <words>` on hosts of these names, one process each, whose clocks differ by `shift_s`.

    A lock is renewed every `beat_s`, and taken over after `silent_s`.
    """

    def __init__(
        self,
        words: Sequence[str],
        log: Path,
        *hosts: str,
        shift_s: float = 0.0,
        beat_s: float = 0.2,
        silent_s: float = SILENT_S,
        **more: Any,
    ) -> None:
        self._hosts, self._limits = list(hosts), (shift_s, beat_s, silent_s)
        super().__init__(words, log, num_processes=len(hosts), **more)

    def _start(self, rank: int, *arguments: Any) -> Any:
        return forked(_run_on_host, self._hosts[rank], self._limits, *arguments)


def _run_on_host(host: str, limits: tuple[float, float, float], *arguments: Any) -> None:
    shift_s, folder_lock.BEAT_S, folder_lock.SILENT_S = limits
    now = time.time
    with (
        mock.patch.object(socket, "gethostname", return_value=host),
        mock.patch.object(process_identity, "_process_table", return_value=f"the processes of {host}"),
        mock.patch.object(time, "time", side_effect=lambda: now() + shift_s),
    ):
        _run_forked(*arguments)


class WithoutLinks(Forked):
    """`sightline <words>` on a file system that refuses links, and has no locks."""

    def _start(self, rank: int, *arguments: Any) -> Any:
        return forked(_run_without_links, *arguments)


def _run_without_links(*arguments: Any) -> None:
    refused = raise_error(errno.EPERM)
    with (
        mock.patch.object(os, "symlink", refused),
        mock.patch.object(os, "link", refused),
        mock.patch.object(fcntl, "flock", raise_error(errno.ENOSYS)),
    ):
        _run_forked(*arguments)
