"""Calls of huggingface_hub in a process that the system limits: seconds of a call, bytes of a file, memory.

The library limits the time of one read, not of an answer; it waits as long as a hub asks, and writes what it is sent.
So `hub_client` runs this file as a program. A line of JSON on standard input is a request, a line on standard output
its answer. The end of the input, as when the process that asked was killed, ends a call and this process.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from types import FrameType, ModuleType
from typing import Any, NoReturn

from huggingface_hub import HfApi, constants, errors, get_session, set_client_factory, snapshot_download
from huggingface_hub.utils import logging, tqdm

_READ_MEMORY_BYTES = 1 << 30
"""Memory of a read above that of this program; 100,000 files of a listing take a third of it."""
_WRITE_MEMORY_BYTES = 4 << 30
"""Memory of a write; the library's own store maps parts of files."""
_MIN_FILE_BYTES = 4096
"""Limit of the smallest file: the cache keeps notes, too, and a disk writes no less."""
_SILENCE_S = 10.0
"""Longest silence of a hub that is asked for a listing, after which the cache is looked at."""
_GRACE_S = 2.0
"""Seconds from the end of a call's time to that of the process, in which the library removes a part of a file."""
_MAX_NAME = 1000
_COMMIT = re.compile("[0-9a-f]{40}")
_DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_ETAG = re.compile(r'(W/)?"?[\w+=-][\w.+=-]*"?', re.ASCII)
"""Tags of files that are names of files, too: the library makes paths of them."""
_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG})


class _LateError(BaseException):
    """End of a call's time; no Exception, since the library tries those again."""


class _FormError(Exception):
    """Answer that is not of the form that was asked for."""


class _Clock:
    """Alarm at the end of a call's time, or of that of a piece of a file, whichever comes first."""

    def __init__(self, seconds: float, piece_s: float) -> None:
        signal.signal(signal.SIGALRM, self._end)
        self._stop, self._piece_s = time.monotonic() + seconds, piece_s
        self.renew()

    def renew(self) -> None:
        """Give the next piece its time."""
        left = min(self._stop - time.monotonic(), self._piece_s)
        signal.setitimer(signal.ITIMER_REAL, max(left, 1e-3))

    def cancel(self) -> None:
        """Let the call end, whatever the time."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _end(self, number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, _GRACE_S)
        raise _LateError


# --- the calls -------------------------------------------------------------------------------------------------------


def list_files(repo: str, revision: str | None) -> dict[str, Any]:
    """List the files of a revision: commit, and by name the bytes and the digest that the hub states."""
    info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=_SILENCE_S)
    siblings = info.siblings
    if not isinstance(info.sha, str) or _COMMIT.fullmatch(info.sha) is None or not isinstance(siblings, list):
        raise _FormError(f"its commit is {info.sha!r:.60}" if isinstance(siblings, list) else "it names no files")
    files = {}
    for file in siblings:
        name, size = file.rfilename, file.size
        digest = file.blob_id if file.lfs is None else file.lfs.sha256
        if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME:
            raise _FormError(f"the name of a file is {name!r:.60}")
        if type(size) is not int or size < 0:
            raise _FormError(f"the size of {name:.60} is {size!r:.60}")
        if not isinstance(digest, str) or _DIGEST.fullmatch(digest) is None:
            raise _FormError(f"the digest of {name:.60} is {digest!r:.60}")
        files[name] = (size, digest)
    return {"commit": info.sha, "files": files}


def list_cached(repo: str, revision: str | None) -> dict[str, Any] | None:
    """List what the cache has of a revision, each file's digest by the name of its blob; None if it has nothing."""
    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except errors.LocalEntryNotFoundError as error:  # of an incomplete snapshot it names the folder
        folder = Path(getattr(error, "snapshot_path", ""))
    if _COMMIT.fullmatch(folder.name) is None or not folder.is_dir():
        return None
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    digests = [Path(os.readlink(path)).name if path.is_symlink() else None for path in paths]
    files = {
        path.relative_to(folder).as_posix(): (path.stat().st_size, digest)
        for path, digest in zip(paths, digests, strict=True)
    }
    return {"commit": folder.name, "files": files}


def download(repo: str, revision: str | None, file: str, clock: _Clock) -> str:
    """Download a file to the cache, or find it there; return its path."""

    class Bar(tqdm):
        """Progress bar that the clock follows: of what arrived again after a break, only what is new counts."""

        most = 0.0

        def update(self, n: float | None = 1) -> bool | None:
            shown: bool | None = super().update(n)
            self.received = getattr(self, "received", 0.0) + (n or 0.0)
            if self.received > self.most:
                self.most = self.received
                clock.renew()
            return shown

    return str(HfApi().hf_hub_download(repo, file, revision=revision, tqdm_class=Bar))


def create(repo: str, *, is_private: bool) -> bool:
    """Create a repository if there is none; return whether the one that is there is private."""
    api = HfApi()
    api.create_repo(repo, private=is_private, exist_ok=True)
    privacy = api.model_info(repo).private
    if not isinstance(privacy, bool):
        raise _FormError(f"the entry 'private' of the repository is {privacy!r:.60}")
    return privacy


def upload(repo: str, folder: str, replaced: list[str]) -> str:
    """Upload a folder as one commit that deletes other files of the patterns `replaced`; return its address."""
    commit = HfApi().upload_folder(
        repo_id=repo, folder_path=folder, delete_patterns=replaced, commit_message="sightline: a packed run"
    )
    return str(commit.commit_url)


_READS: dict[str, Callable[..., Any]] = {"list_files": list_files, "list_cached": list_cached, "download": download}
_CALLS: dict[str, Callable[..., Any]] = {**_READS, "create": create, "upload": upload}


# --- limits, and what ended a call -----------------------------------------------------------------------------------


def _run(request: Mapping[str, Any], client: ModuleType) -> dict[str, Any]:
    """Run a call within its limits; return its result, or the kind of its failure and what is known of it."""
    name, arguments, num_bytes = request["name"], dict(request["arguments"]), request["num_bytes"]
    file_limit = None if num_bytes is None else max(num_bytes, _MIN_FILE_BYTES)
    is_limited = _limit(resource.RLIMIT_FSIZE, file_limit)
    memory_bytes = _READ_MEMORY_BYTES if name in _READS else _WRITE_MEMORY_BYTES
    _limit(resource.RLIMIT_AS, _measure_memory() + memory_bytes)
    clock = _Clock(request["seconds"], request["piece_s"])
    try:
        result = _CALLS[name](**arguments, **({"clock": clock} if name == "download" else {}))
        clock.cancel()
        return {"result": result}
    except _LateError:
        clock.cancel()
        return {"kind": "late"}
    except MemoryError:
        clock.cancel()
        return {"kind": "memory", "text": f"{memory_bytes / 1e9:.0f} GB"}
    except Exception as error:  # noqa: BLE001  a client's errors are of its network library, and of any answer
        clock.cancel()
        return _describe(error, client, is_limited=is_limited)


def _limit(kind: int, value: int | None) -> bool:
    """Set a limit of this process, at most the user's own; return True if it is ours."""
    soft, hard = _LIMITS_BEFORE[kind]
    is_ours = value is not None and (soft == resource.RLIM_INFINITY or value <= soft)
    with contextlib.suppress(ValueError):  # of a system that does not limit memory
        resource.setrlimit(kind, (value if is_ours and value is not None else soft, hard))
    return is_ours


_LIMITS_BEFORE = {kind: resource.getrlimit(kind) for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_AS)}


def _measure_memory() -> int:
    """Measure the address space of this process; 2 GB where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 2 << 30


def _describe(error: BaseException, client: ModuleType, *, is_limited: bool) -> dict[str, Any]:
    """Describe a failure: its kind, the status of the answer, and the first line of the first error."""
    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None and before not in chain:
        chain.append(before)
    answers = [getattr(cause, "response", None) for cause in chain]
    status = next((int(response.status_code) for response in answers if response is not None), 0)
    numbers = [cause.errno for cause in chain if isinstance(cause, OSError) and cause.errno is not None]
    kind = next((kind for kind, types in _list_kinds(client) for cause in chain if isinstance(cause, types)), "form")
    if errno.EFBIG in numbers:
        kind = "size" if is_limited else "disk"
    elif _DISK & {*numbers} and not status and kind != "network":
        kind = "disk"
    elif status and kind in ("cut", "form"):
        kind = "login" if status in (401, 403) else "status"
    number = next((number for number in numbers if number in _DISK or number == errno.EFBIG), 0)
    while kind not in ("name", "status") and error.__cause__ is not None:
        error = error.__cause__
    text = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    return {"kind": kind, "status": status, "errno": number, "text": text}


def _list_kinds(client: ModuleType) -> list[tuple[str, tuple[type[BaseException], ...]]]:
    """List the kinds of failures with their errors, particular ones first."""
    unreachable = (client.ConnectError, client.ProxyError, client.UnsupportedProtocol, errors.OfflineModeIsEnabled)
    return [
        ("revision", (errors.RevisionNotFoundError,)),
        ("gated", (errors.GatedRepoError,)),
        ("repository", (errors.RepositoryNotFoundError,)),
        ("name", (errors.HFValidationError,)),
        ("login", (errors.LocalTokenNotFoundError,)),
        ("form", (_FormError, errors.FileMetadataError)),
        ("late", (client.TimeoutException,)),
        ("network", unreachable),
        ("cut", (client.TransportError, OSError)),
    ]


def _check_headers(response: Any) -> None:
    """Refuse tags and commits that are no names: the library makes paths of its cache of them."""
    for header in ("ETag", constants.HUGGINGFACE_HEADER_X_LINKED_ETAG):
        if (tag := response.headers.get(header)) is not None and _ETAG.fullmatch(tag) is None:
            raise _FormError(f"the tag of a file is {tag!r:.60}")
    commit = response.headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT)
    if commit is not None and _COMMIT.fullmatch(commit) is None:
        raise _FormError(f"the commit of a file is {commit!r:.60}")


def main() -> NoReturn:
    """Answer requests until the input ends."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    logging.set_verbosity_error()  # its attempts are not the user's
    plain = get_session()
    client = importlib.import_module(type(plain).__module__.partition(".")[0])  # httpx, or httpx2
    hooks = {"request": plain.event_hooks["request"], "response": [_check_headers]}
    set_client_factory(lambda: type(plain)(event_hooks=hooks, follow_redirects=True, timeout=None))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what others print
    answers.write(json.dumps({"endpoint": constants.ENDPOINT, "cache": constants.HF_HUB_CACHE}) + "\n")
    requests: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_pass_on, args=(requests,), daemon=True).start()
    with contextlib.suppress(_LateError, BrokenPipeError):
        while line := requests.get():
            answers.write(json.dumps(_run(json.loads(line), client)) + "\n")
    os._exit(0)


def _pass_on(requests: SimpleQueue[bytes]) -> None:
    """Pass requests on; with the input, end the call as at the end of its time, and the process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # the alarm is to wake the thread that waits
    for line in sys.stdin.buffer:
        requests.put(line)
    requests.put(b"")
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)


if __name__ == "__main__":
    main()
