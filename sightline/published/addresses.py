"""Files of weights at an address, with the SHA-256 that is stated with it: fetched within limits, verified, and kept.

An address is `https://HOST/FILE#sha256=DIGEST`. The digest is whole, or its first digits, at least eight, as names of
torchvision's files have them: so few find damage, but not a forger.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from sightline.contract.errors import CheckpointError, DiskError
from sightline.published.hub_client import LIMITS
from sightline.store.files.atomic_write import REPEAT, disk_failure, lock_descriptor, sync_folder
from sightline.store.prepared.prepared_set import compute_sha256

logger = logging.getLogger(__name__)

SCHEMES = ("https://", "http://")
NUM_DIGITS = 64
"""Digits of a whole SHA-256."""
MIN_DIGITS = 8
"""Fewest digits of a SHA-256 that are compared."""
_FRAGMENT = re.compile(r"sha256=([0-9a-f]{8,64})", re.ASCII | re.IGNORECASE)
_FILE_NAME = re.compile(r"\w[\w.+-]{0,199}", re.ASCII)
_PROGRAM = Path(__file__).with_name("address_calls.py")
_PIECE_BYTES = 1_000_000
"""Bytes after each of which a transfer gets time for the next."""
_TRUE = frozenset({"1", "ON", "YES", "TRUE"})
"""Values of HF_HUB_OFFLINE that mean yes."""


class Address(NamedTuple):
    """Address of a file without its fragment, the digits of the SHA-256 that are stated, and the name of the file."""

    url: str
    sha256: str
    file: str

    def __str__(self) -> str:
        return f"{self.url}#sha256={self.sha256}"


class AddressError(CheckpointError):
    """Transfer of a file that a server, or the way to it, did not let succeed."""


def is_address(text: str) -> bool:
    """Return True for a text that begins as addresses do, whole or not."""
    return text.lower().startswith(SCHEMES)


def parse_address(text: str) -> Address:
    """Parse `https://HOST/FILE#sha256=DIGEST`. Raises CheckpointError for another form, with what is missing."""
    url, _, fragment = text.partition("#")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host, parts = "", urlsplit("")
    file = PurePosixPath(parts.path).name
    if not host or not url.isascii() or not url.isprintable() or " " in url:
        raise CheckpointError(f"{text}: is no address; write https://HOST/FILE#sha256=DIGEST")
    if parts.username is not None or parts.password is not None:
        raise CheckpointError(
            f"{parts.scheme}://...@{host}: has a name or password, which config.yaml would keep; download the file "
            "yourself, and give its path"
        )
    if parts.scheme != "https" and not _is_loopback(host):
        raise CheckpointError(f"{text}: whoever is on the way can change what http:// brings; write https://")
    if _FILE_NAME.fullmatch(file) is None or "." not in file:
        raise CheckpointError(
            f"{text}: ends with no name of a file, whose ending tells how it is read; download it yourself, and give "
            "its path"
        )
    stated = _FRAGMENT.fullmatch(fragment)
    if stated is None:
        problem = f"'{fragment}' is no SHA-256" if fragment else "states no SHA-256"
        raise CheckpointError(
            f"{text}: {problem}, without which nothing tells that the file is the one that is meant; write "
            f"{url}#sha256=DIGEST, of {MIN_DIGITS} to {NUM_DIGITS} digits: its authors' page may state it; else run "
            "sha256sum FILE on a copy that you trust"
        )
    return Address(url, stated[1].lower(), file)


def cache_folder() -> Path:
    """Return the folder of fetched files, which is among the assets in the cache of the hub's client: in HF_HOME."""
    if root := os.environ.get("HF_ASSETS_CACHE"):
        return Path(root).expanduser() / "sightline" / "weights"
    return hub_home() / "assets" / "sightline" / "weights"


def hub_home() -> Path:
    """Return the folder of the hub's client, which need not be installed."""
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return Path(home).expanduser()


def find_cached(address: Address) -> Path | None:
    """Find the file of an address on this machine, unverified; None if it is not there."""
    path = _place(address)
    return path if path.is_file() else None


def _place(address: Address) -> Path:
    return cache_folder() / address.sha256[:MIN_DIGITS] / address.file


def fetch_address(address: Address, *, name: str, about: str = "", max_bytes: int | None = None) -> tuple[Path, str]:
    """Fetch a file, or find it in the cache; return its path and its SHA-256, which begins with the stated digits.

    A line says beforehand what is fetched under which `name`, and `about` it. What arrived of a transfer that broke off
    is kept, and the next goes on there; only a file with the stated digits ever gets its name. Redirects are not
    followed. Raises CheckpointError for a server that does not answer, or sends more than `max_bytes` or 8 GiB, or
    another file, which is deleted; RunError for a disk that fails.
    """
    path = _place(address)
    if path.is_file():
        return path, _verify(path, address, name, sender="the copy in the cache")
    partial = path.with_name(f".{path.name}.partial")
    with _explain_disk(path.parent), _locked(path.with_name(f".{path.name}.lock")):
        if path.is_file():  # another process fetched it meanwhile
            return path, _verify(path, address, name, sender="the copy in the cache")
        _Transfer(address, name, partial, max_bytes).run(about)
        digest = _verify(partial, address, name, sender=address.url)
        os.replace(partial, path)
        sync_folder(path.parent)
    return path, digest


def _verify(path: Path, address: Address, name: str, *, sender: str) -> str:
    """Return the SHA-256 of a file. Raises CheckpointError, after it was deleted, for one with other digits."""
    digest = compute_sha256(path)
    if digest.startswith(address.sha256):
        return digest
    num_bytes = path.stat().st_size
    path.unlink()
    whole = "" if len(address.sha256) == NUM_DIGITS else f" (its first {len(address.sha256)} digits)"
    raise CheckpointError(
        f"{name}: {sender} has the SHA-256 {digest} ({num_bytes:,} bytes), {address.sha256}{whole} is stated; it is "
        "another file, or was damaged on its way or since, and was deleted: run the same command again"
    )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that processes take in turn; the file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        lock_descriptor(descriptor, path)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explain_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _disk_error(error, folder) from None


def _disk_error(error: OSError, folder: Path) -> DiskError:
    return disk_failure(error, folder, again=REPEAT, option="HF_HOME")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# --- a transfer ------------------------------------------------------------------------------------------------------


class _Transfer:
    """Transfer of a file to `partial`, in a process that ends by itself when its time is over."""

    def __init__(self, address: Address, name: str, partial: Path, max_bytes: int | None) -> None:
        self._address, self._name, self._partial = address, name, partial
        self._limits = LIMITS
        self._max_bytes = self._limits.max_bytes if max_bytes is None else min(max_bytes, self._limits.max_bytes)
        self._total: int | None = None

    def run(self, about: str) -> None:
        """Transfer the file; a line tells its size beforehand. Raises AddressError, or DiskError."""
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE:
            raise self._explain({"kind": "network", "text": "HF_HUB_OFFLINE is set"}, 0.0)
        start = time.monotonic()
        process = subprocess.Popen(  # Ctrl-C ends this process, and with it the input of the other
            [sys.executable, "-P", "-W", "ignore", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it ended, which the missing report tells
                process.stdin.write(json.dumps(self._request()).encode() + b"\n")
                process.stdin.flush()
            report: Mapping[str, Any] = {}
            while "kind" not in report and (line := process.stdout.readline()):
                report = json.loads(line)
                if "total" in report and "kind" not in report:
                    self._announce(report["total"], report["offset"], about)
            if "kind" not in report:
                code = process.wait()
                kind = "late" if code == -signal.SIGALRM else "ended"
                report = {"kind": kind, "text": f"exit code {code}"}
        finally:
            process.kill()
            process.communicate()
        if report["kind"]:
            raise self._explain(report, time.monotonic() - start)

    def _request(self) -> dict[str, Any]:
        return {
            "url": self._address.url,
            "name": self._name,
            "path": str(self._partial),
            "max_bytes": self._max_bytes,
            "answer_s": self._limits.answer_s,
            "bytes_per_s": self._limits.bytes_per_s,
            "piece_bytes": _PIECE_BYTES,
        }

    def _announce(self, total: int, offset: int, about: str) -> None:
        self._total = total
        size = f"{total:,} bytes{f' ({offset:,} of them are here)' if offset else ''}"
        more = f"; {about}" if about else ""
        where = (self._address.url, self._partial.parent)
        logger.warning("fetch: %s: %s from %s to %s%s", self._name, size, *where, more)

    def _explain(self, report: Mapping[str, Any], seconds: float) -> Exception:
        """Explain in one line why a transfer did not succeed, and delete what is of no use to the next."""
        kind, text = report["kind"], report.get("text", "")
        server = "its server" if is_address(self._name) else self._address.url
        if kind == "disk":
            self._partial.unlink(missing_ok=True)
            number = report.get("errno") or errno.EIO
            return _disk_error(OSError(number, os.strerror(number)), self._partial.parent)
        kept = ""
        if self._total is not None:
            arrived = self._partial.stat().st_size if self._partial.exists() else 0
            kept = f"; {arrived:,} of {self._total:,} bytes are kept: run the same command again, it goes on there"
        rate = f"at {self._limits.bytes_per_s / 1000:g} kB/s at least"
        body = "an answer" if self._total is None else f"{self._total:,} bytes {rate}"
        command = f"sightline weights fetch {self._name}"
        reasons = {
            "redirect": (
                f"{server} answered {report.get('status')}, and names {text}; redirects are not followed: if you trust "
                "that server, give this address with the digest, or download the file yourself and give its path"
            ),
            "status": f"{server} answered {report.get('status')}: {text}; {_advise(report.get('status', 0))}",
            "unstated": f"{server} does not state how many bytes it sends; download it yourself, and give the path",
            "size": (
                f"{server} has {report.get('total', 0):,} bytes, at most {self._max_bytes:,} are fetched; if that is "
                "right, download it yourself, and give the path"
            ),
            "form": f"{server} does not answer as a server of files does ({text}); look at the address, or try later",
            "late": f"{server} took more than {seconds:.0f} s for {body}{kept or '; try again later'}",
            "cut": f"{server} broke off ({text}){kept or '; try again later'}",
            "network": (
                f"{server} cannot be reached ({text}), and {self._partial.parent} has no copy; connect, and run "
                f"'{command}', or give the path of the file"
            ),
            "ended": f"the process that asked {server} ended ({text}){kept or '; run the same command again'}",
        }
        return AddressError(f"{self._name}: {reasons[kind]}")


def _advise(status: int) -> str:
    return "try again later" if status >= 500 or status == 429 else "look at the address, or get the file elsewhere"
