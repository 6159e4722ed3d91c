"""Comparison of what the processes of a run start from: a difference is named before it can change a number.

Every process describes its code, config, plugins and data as a flat mapping; the mappings meet in the store that the
processes connect by, since a collective of processes that differ may hang.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from sightline.config import RunConfig
from sightline.config.plain_values import flatten, to_plain
from sightline.config.yaml_writer import format_inline
from sightline.contract.errors import UserError, join_some
from sightline.contract.plugins import loaded_plugins
from sightline.runs.environment import read_version

_MAY_DIFFER = ("loader.", "log.", "init.from", "teacher.from")
"""Keys of folders and logs: weights of `init` are the first process's, those of a teacher are compared."""
_MAX_LENGTH = 60
_SHA256 = re.compile("[0-9a-f]{64}")
_MAX_NAMED = 4
_READING_S = 5.0
"""Seconds that processes which differ wait for one another to read that, before one of them takes the store with it."""


class ProcessesDifferError(UserError):
    """Processes that start from different things; every one of them raises it, so that none has to tell the others."""

    def __init__(self, differences: str) -> None:
        super().__init__(
            f"processes differ: {differences}; every process needs the same command, config, code and data, and none "
            "may ask for its rank"
        )


class MeetingStore(Protocol):
    """Interface of torch's key-value store; `get` and `wait` wait for a key."""

    def set(self, key: str, value: str, /) -> Any: ...

    def get(self, key: str, /) -> bytes: ...

    def multi_get(self, keys: list[str], /) -> list[bytes]: ...

    def add(self, key: str, amount: int, /) -> int: ...

    def wait(self, keys: list[str], timeout: datetime.timedelta, /) -> Any: ...


def describe_command(command: str, *configs: RunConfig, **options: object) -> dict[str, Any]:
    """Describe a command by its options, its configs, and the plugins that this process has loaded.

    Paths are left out: folders of data, of the run and of the runs that it starts from.
    """
    described: dict[str, Any] = {"command": command, **{f"--{name}": value for name, value in options.items()}}
    for index, config in enumerate(configs):
        prefix = f"config {index + 1}: " if len(configs) > 1 else ""
        for key, value in flatten(to_plain(config)).items():
            is_root = key.startswith("data.") and key.endswith(".root")
            if not is_root and not key.startswith(_MAY_DIFFER):
                described[prefix + key] = value
    files = [(name, digest) for plugin in loaded_plugins() for name, digest in plugin.digests().items()]
    return described | {f"SHA-256 of the plugin file {name}": digest for name, digest in sorted(files)}


def describe_process(device: torch.device) -> dict[str, Any]:
    """Describe the kind of device, and the versions of sightline, by its code as checkouts change, and of torch."""
    version = f"{read_version('sightline')} (code {digest_package()[:12]})"
    return {"device": device.type, "sightline": version, "torch": str(torch.__version__)}


@functools.cache
def digest_package() -> str:
    """Compute the SHA-256 of the names and texts of all modules of sightline, once: what runs was read at the start."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def find_differences(store: MeetingStore, *, rank: int, size: int, values: Mapping[str, Any]) -> str:
    """Compare values by name with those of the other processes: one line that is the same on all; empty if all agree.

    Every process compares with the first one, and reads what the others found.
    """
    key = f"inputs/{store.add(f'inputs/calls/{rank}', 1)}"
    local_values = {name: _format_value(value) for name, value in values.items()}
    if rank == 0:
        store.set(key, json.dumps(local_values))
    first: dict[str, str] = json.loads(store.get(key))
    differing = {n: local_values.get(n, "absent") for n in first | local_values if local_values.get(n) != first.get(n)}
    store.set(f"{key}/{rank}", json.dumps(differing))
    differences = store.multi_get([f"{key}/{other}" for other in range(size)])
    ranks_by_value: dict[str, dict[str, list[str]]] = {}
    for other, text in enumerate(differences):
        for name, value in json.loads(text).items():
            ranks_by_value.setdefault(name, {}).setdefault(value, []).append(str(other))
    if not ranks_by_value:
        return ""
    store.set(f"{key}/read/{rank}", "")
    with contextlib.suppress(RuntimeError):
        store.wait([f"{key}/read/{other}" for other in range(size)], datetime.timedelta(seconds=_READING_S))
    names = [name for name in first | ranks_by_value if name in ranks_by_value]
    names = ["command"] if "command" in names else names  # else all of its config would be absent from another
    texts = [f"{name} is {_join_values(first.get(name, 'absent'), ranks_by_value[name])}" for name in names]
    return join_some(texts, most=_MAX_NAMED, separator="; ")


def _join_values(first: str, ranks_by_value: Mapping[str, list[str]]) -> str:
    descriptions = [
        f"{value} on rank{'s' * (len(ranks) > 1)} {join_some(ranks, most=_MAX_NAMED)}"
        for value, ranks in ranks_by_value.items()
    ]
    return " and ".join([f"{first} on rank 0", *descriptions])


def _format_value(value: object) -> str:
    text = value if isinstance(value, str) else format_inline(value)
    if len(text) <= _MAX_LENGTH:
        return text
    if _SHA256.fullmatch(text):
        return f"{text[:16]}..."
    return f"{text[: _MAX_LENGTH // 2]}... (SHA-256 {hashlib.sha256(text.encode()).hexdigest()[:16]})"
