"""Weights that are fetched by name: of a table of known ones, of a hub, or an address; what is on this machine."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sightline.contract.errors import CheckpointError, join_some
from sightline.contract.schema import suggest
from sightline.published import addresses, hub
from sightline.published.addresses import Address
from sightline.store.files.input_files import parsed_yaml

PREFIX = "torchvision://"
_FILE = Path(__file__).with_name("known_weights.yaml")
_ROUNDING_BYTES = 50_000
"""Half of the last digit of `megabytes`."""


@dataclass(frozen=True)
class KnownWeights:
    """Row of the table: weights that a config names by `name`, their size in megabytes, rounded, and their licence.

    `address` and the first digits of `sha256` are those of a file on a project's server; rows of a hub have neither.
    `extra` is what `pip install` needs for them.
    """

    name: str
    about: str
    network: str
    megabytes: float
    licence: str
    address: str | None = None
    sha256: str | None = None
    extra: str | None = None

    @property
    def source(self) -> str:
        """Address of the file, or of the repository."""
        hub_url = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        return self.address or f"{hub_url}/{hub.parse_name(self.name).repo}"

    @property
    def max_bytes(self) -> int:
        """The most bytes that its file can have, by what is stated."""
        return int(self.megabytes * 1e6) + _ROUNDING_BYTES

    def parse(self) -> Address:
        """Return the address of a row that has one, with its digits."""
        return addresses.parse_address(f"{self.address}#sha256={self.sha256}")


class FetchedWeights(NamedTuple):
    """Weights on this disk; `name` states which bits, `is_run` tells that it is the packed file of a run."""

    name: str
    path: Path
    is_run: bool = False


@functools.cache
def list_known() -> Sequence[KnownWeights]:
    """List the rows of the table."""
    rows = parsed_yaml(_FILE.read_bytes(), _FILE, name="a table of weights")
    return tuple(KnownWeights(name=name, **row) for name, row in rows.items())


def is_remote(name: str) -> bool:
    """Return True for a name that leads elsewhere than to this disk: of the table, of a hub, or an address."""
    return name.startswith(PREFIX) or hub.is_hub_name(name) or addresses.is_address(name)


def find_known(name: str) -> KnownWeights | None:
    """Find the row of a name; None for a name of a hub that is in no row, and for an address.

    Raises CheckpointError for one that begins as those of the table do, and is in none.
    """
    row = next((row for row in list_known() if row.name == name), None)
    if row is None and name.startswith(PREFIX):
        names = [row.name for row in list_known() if row.name.startswith(PREFIX)]
        raise CheckpointError(
            f"{name}: is no known name{suggest(name, names, otherwise='')}; see 'sightline weights list'"
        )
    return row


def fetch_weights(name: str) -> FetchedWeights:
    """Fetch weights by a name, or find them in the cache, and verify them; return them under a name that fixes them.

    That is an address with its whole SHA-256, and of a hub the name with the commit. Raises as `fetch_address` and
    `hub.fetch_weights` do, and CheckpointError for a name of no known form.
    """
    if hub.is_hub_name(name):
        file = hub.fetch_weights(name)
        return FetchedWeights(str(file.name), file.path, file.is_run)
    row = find_known(name)
    if row is None:
        address = addresses.parse_address(name)
        path, digest = addresses.fetch_address(address, name=name)
    else:
        address, about = row.parse(), f"licence: {row.licence}"
        path, digest = addresses.fetch_address(address, name=name, about=about, max_bytes=row.max_bytes)
    return FetchedWeights(str(address._replace(sha256=digest)), path)


def find_on_machine(name: str) -> Path | None:
    """Find the file of a name in the caches of this machine, without a network and unverified; None if it is not there.

    Raises CheckpointError for a name of no known form.
    """
    if hub.is_hub_name(name):
        return hub.find_cached(hub.parse_name(name))
    row = find_known(name)
    return addresses.find_cached(addresses.parse_address(name) if row is None else row.parse())


def describe_missing(path: str) -> str:
    """Describe what to write for a path of no file: the name that fetches a file called so, or the forms of names."""
    same = [row.name for row in list_known() if row.address and Path(row.address).name == Path(path).name]
    if same:
        return f"init.from={same[0]} fetches a file of this name"
    forms = [f"{hub.PREFIX}OWNER/REPO", "https://HOST/FILE#sha256=DIGEST"]
    return f"names that are fetched are those of 'sightline weights list', {join_some(forms, most=2)}"
