"""A hub behind limits of time, size and memory: calls of huggingface_hub in a process of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from sightline.contract.errors import CheckpointError, assert_installed
from sightline.store.files.atomic_write import disk_failure

_PROGRAM = Path(__file__).with_name("hub_calls.py")
_END_S = 5.0
"""Seconds in which the process ends with its input: it removes the part of a file that it wrote."""
_PIECE_BYTES = 10_000_000
"""Bytes that the library collects before it says that a part of a file arrived."""


class HubLimits(NamedTuple):
    """Limits of calls: seconds for an answer, the lowest rate of transfers, and the most bytes that a name brings."""

    answer_s: float = 30.0
    bytes_per_s: float = 100_000.0
    max_bytes: int = 8 << 30
    """Above any network here, below what would fill a disk unasked."""

    def seconds(self, num_bytes: int) -> float:
        """Return the time that a transfer of so many bytes may take."""
        return self.answer_s + num_bytes / self.bytes_per_s


LIMITS = HubLimits()


class HubError(CheckpointError):
    """Call that a hub, or the way to it, did not let succeed; `status` is that of its answer, 0 if it gave none."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class HubProcess:
    """Process that calls a hub for `name`, in a `with`; it ends with it, and with this process.

    `again` is what a user does after connecting, or instead. Raises MissingExtraError without huggingface_hub.
    """

    def __init__(self, name: str, *, again: str, is_writing: bool = False) -> None:
        assert_installed("huggingface_hub", needed_by=name)
        self.limits = LIMITS
        self._name, self._again, self._is_writing = name, again, is_writing
        self._stop: float | None = None

    def __enter__(self) -> HubProcess:
        environment = dict(os.environ)
        if not self._is_writing:  # a store beside the hub, whose client keeps to no limit of a file
            environment["HF_HUB_DISABLE_XET"] = "1"
        command = [sys.executable, "-P", "-W", "ignore", str(_PROGRAM)]
        self._process = subprocess.Popen(  # Ctrl-C ends this process, and with it the input of the other
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        try:
            self._about = self._read_answer()
            if "kind" in self._about:
                raise CheckpointError(f"{self._name}: huggingface_hub cannot be loaded; pip install 'sightline[hub]'")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def endpoint(self) -> str:
        """Address of the hub."""
        return str(self._about["endpoint"])

    @property
    def cache_folder(self) -> Path:
        """Folder of the files that the hub gave."""
        return Path(self._about["cache"])

    @contextlib.contextmanager
    def one_transfer(self, num_bytes: int) -> Iterator[None]:
        """Inside, calls end together, by the time that so many bytes may take."""
        self._stop = time.monotonic() + self.limits.seconds(num_bytes)
        try:
            yield
        finally:
            self._stop = None

    def call(
        self, function: str, arguments: Mapping[str, Any], *, what: str = "an answer", num_bytes: int | None = None
    ) -> Any:
        """Call a function of `hub_calls`; the file that it writes is `what`, and has `num_bytes` at most.

        Raises HubError if it does not succeed, RunError if the disk does not.
        """
        start = time.monotonic()
        seconds = self.limits.answer_s if self._stop is None else self._stop - start
        piece_s = seconds if num_bytes is None else self.limits.seconds(_PIECE_BYTES)
        limits = {"seconds": seconds, "piece_s": piece_s, "num_bytes": num_bytes}
        request = {"name": function, "arguments": arguments, **limits}
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended, which the missing answer tells
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        reply = self._read_answer()
        if "kind" not in reply:
            return reply["result"]
        raise self._explain(reply, request, what, time.monotonic() - start)

    def _read_answer(self) -> dict[str, Any]:
        """Read an answer of the process; of one that ended, the kind of its end."""
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            reply: dict[str, Any] = json.loads(line)
            return reply
        code = self._process.wait()
        return {"kind": "late" if code == -signal.SIGALRM else "ended", "text": f"exit code {code}"}

    def _explain(self, reply: Mapping[str, Any], request: Mapping[str, Any], what: str, seconds: float) -> Exception:
        """Explain why a call did not succeed, in one line."""
        hub, kind, text = self.endpoint, reply["kind"], reply.get("text", "")
        if kind == "disk":
            number = reply["errno"]
            failure = OSError(number, os.strerror(number))
            return disk_failure(failure, self.cache_folder, again="run the same command again", option="HF_HOME")
        arguments, num_bytes = request["arguments"], request["num_bytes"]
        nothing = "" if num_bytes is None else "; nothing of it was kept"
        copy = "" if self._is_writing else f", and {self.cache_folder} has no copy"
        rate = f"at {self.limits.bytes_per_s / 1000:g} kB/s at least"
        reasons = {
            "revision": f"the repository has no revision '{arguments.get('revision')}' on {hub}; look at the name",
            "gated": (
                f"its authors let in whom they know; ask for access on {hub}/{arguments['repo']}, and log in: {_LOGIN}"
            ),
            "repository": (
                f"{hub} has no such repository, or shows it to others alone; look at the name, or log in: {_LOGIN}, "
                "or HF_TOKEN"
            ),
            "name": text,
            "login": (
                f"may not {'write to' if self._is_writing else 'read'} it with these credentials; log in: {_LOGIN}, or "
                "HF_TOKEN"
            ),
            "status": f"{hub} answered {reply.get('status')}: {text}; try again later",
            "form": f"{hub} does not answer as a hub does ({text}); look at HF_ENDPOINT, or try again later",
            "memory": f"{hub} sends more than {what} takes, over {text}; look at HF_ENDPOINT, or try again later",
            "late": (
                f"{hub} took more than {seconds:.0f} s for {what}"
                f"{'' if num_bytes is None else f', {num_bytes:,} bytes {rate}'}{nothing}; try again later"
            ),
            "cut": f"{hub} broke off {what} ({text}){nothing}; try again later",
            "size": (
                f"{hub} sends more of {what} than the {num_bytes or 0:,} bytes that it states{nothing}; the hub is "
                "broken, or hostile: get the file elsewhere"
            ),
            "network": f"{hub} cannot be reached ({text}){copy}; connect, {self._again}",
            "ended": f"the process that asked {hub} for {what} ended ({text}); run the same command again",
        }
        return HubError(f"{self._name}: {reasons[kind]}", reply.get("status", 0))


_LOGIN = "hf auth login"
