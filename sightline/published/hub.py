"""Files of a hub that speaks Hugging Face's API: chosen, limited, verified, and kept in that library's own cache."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sightline.contract.errors import CheckpointError, UserError, join_some
from sightline.contract.schema import suggest
from sightline.published import addresses
from sightline.published.hub_client import HubError, HubProcess
from sightline.published.transformers_files import CONFIG_FILE

logger = logging.getLogger(__name__)

PREFIX = "hf://"
RUN_MARKS = ("config.yaml", "model.slq")
"""Files by which a repository is a pushed run."""
_NAME = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+?)(/(?P<file>[\w./-]+?))?(@(?P<revision>[\w./-]+))?", re.ASCII)
_SUFFIX = ".safetensors"
_MAX_LISTED = 5


class HubName(NamedTuple):
    """Name of a repository, and of a file and a revision (branch, tag or commit) in it, as `hf://OWNER/REPO/FILE@REV`."""

    repo: str
    file: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        file = "" if self.file is None else f"/{self.file}"
        return f"{PREFIX}{self.repo}{file}{'' if self.revision is None else f'@{self.revision}'}"


class HubFile(NamedTuple):
    """A file on this disk; `name` has the commit that it is of, `is_run` tells that it is the packed file of a run."""

    name: HubName
    path: Path
    is_run: bool


class _Stated(NamedTuple):
    """Size and digest of a file as the hub states them: SHA-256, or git's SHA-1 of a small file."""

    num_bytes: int
    digest: str | None


class _Listing(NamedTuple):
    """Files of a commit, as the hub lists them, or as the cache has them where the hub does not."""

    commit: str
    files: dict[str, _Stated]
    is_cached: bool = False


def is_hub_name(text: str) -> bool:
    """Return True for a name that begins as those of hubs do, whole or not."""
    return text.startswith(PREFIX)


def parse_name(text: str) -> HubName:
    """Parse `hf://OWNER/REPO[/FILE][@REVISION]`. Raises CheckpointError for another form."""
    match = _NAME.fullmatch(text)
    if match is None or ".." in text:
        meant = f"hf://{text.removeprefix('https://').removeprefix('huggingface.co/')}"
        form = meant if _NAME.fullmatch(meant) else "hf://OWNER/REPO[/FILE][@REVISION]"
        raise CheckpointError(f"{text}: is not a name of a hub's file; write {form}")
    return HubName(match["repo"], match["file"], match["revision"])


def fetch_weights(text: str) -> HubFile:
    """Fetch the file that `text` names, or the weights of the repository, and verify it against the hub's digest.

    Of a pushed run, its other documents come along, and the `config.json` beside a file of weights. What is in the
    cache is not fetched again, and found without a network. Raises MissingExtraError without huggingface_hub;
    CheckpointError for what is not there, is no safetensors file, is larger than 8 GiB or damaged, and for a hub that
    does not answer about files that the cache lacks.
    """
    name = parse_name(text)
    if name.file is not None and not name.file.endswith((_SUFFIX, RUN_MARKS[-1])):
        raise CheckpointError(f"{name}: {_describe_other(name.file)}")
    command = f"run 'sightline weights fetch {text}'"
    with HubProcess(text, again=f"{command}, or give the path of a file") as hub:
        listing = _list_files(name, hub)
        name, chosen, is_run = _choose_weights(name, listing.files)
        paths = _fetch(name, listing, chosen, hub)
    return HubFile(name._replace(revision=listing.commit), paths[0], is_run)


def find_cached(name: HubName) -> Path | None:
    """Find the file of weights of a name in the cache of the hub's client, without it and unverified; None if none is.

    Of several commits it is that of the branch `main`, or of the revision that is named.
    """
    root = os.environ.get("HF_HUB_CACHE") or addresses.hub_home() / "hub"
    folder = Path(root).expanduser() / f"models--{name.repo.replace('/', '--')}"
    revision = name.revision or "main"
    with contextlib.suppress(OSError):
        revision = (folder / "refs" / revision).read_text().strip()
    snapshot = folder / "snapshots" / revision
    if name.file is not None:
        return snapshot / name.file if (snapshot / name.file).is_file() else None
    files = [path for path in sorted(snapshot.glob("*")) if path.suffix in (_SUFFIX, Path(RUN_MARKS[-1]).suffix)]
    return next((path for path in files if path.is_file()), None)


def _choose_weights(name: HubName, files: Mapping[str, Any]) -> tuple[HubName, list[str], bool]:
    """Choose the file of weights that a name leads to, and the documents beside it; return whether it is a run's."""
    if name.file is None:
        is_run = files.keys() >= {*RUN_MARKS}
        name = name._replace(file=RUN_MARKS[-1] if is_run else _choose_file(name, files))
    elif name.file not in files:
        peers = [file for file in files if file.endswith(_SUFFIX)]
        raise CheckpointError(f"{name}: has no such file{suggest(str(name.file), peers, otherwise=_list_some(peers))}")
    chosen = [str(name.file)]
    if (config := str(PurePosixPath(chosen[0]).with_name(CONFIG_FILE))) in files and chosen[0].endswith(_SUFFIX):
        chosen.append(config)
    if is_run := name.file == RUN_MARKS[-1] and RUN_MARKS[0] in files:
        chosen += [file for file in files if file.endswith((".json", ".yaml")) and "/" not in file]
    return name, chosen, is_run


def fetch_run(text: str, *, is_own: Callable[[str], bool]) -> tuple[list[tuple[str, Path]], list[str]]:
    """Fetch the files of a pushed run that `is_own` accepts, each with its name there; return the other names, too.

    Raises as `fetch_weights`.
    """
    name = parse_name(text)
    with HubProcess(text, again="and pull again") as hub:
        listing = _list_files(name, hub)
        if name.file is not None or not listing.files.keys() >= {*RUN_MARKS}:
            raise CheckpointError(
                f"{name}: is not a run that 'sightline runs push' made; init.from takes weights alone"
            )
        run_files = [file for file in listing.files if is_own(file)]
        paths = _fetch(name, listing, run_files, hub)
    return list(zip(run_files, paths, strict=True)), [file for file in listing.files if not is_own(file)]


def push_folder(folder: Path, text: str, *, is_public: bool, replaced: Sequence[str]) -> str:
    """Upload a folder's files as one commit, to a repository that is made if need be; return the commit's address.

    Files there of the patterns `replaced` that the folder lacks are deleted. Raises UserError where that is refused,
    and for a repository that is public, or private, against `is_public`.
    """
    name = parse_name(text)
    if name.file is not None or name.revision is not None:
        raise UserError(f"{name}: names a file or a revision; a run is pushed to {PREFIX}{name.repo}")
    num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    with HubProcess(text, again="and push again", is_writing=True) as hub:
        is_private = hub.call("create", {"repo": name.repo, "is_private": not is_public})
        if is_private == is_public:
            visibility, remedy = ("private", "leave out --public") if is_private else ("public", "give --public")
            raise UserError(f"{name}: is a {visibility} repository already; {remedy}, or change it on the hub")
        with hub.one_transfer(num_bytes):
            sent = {"repo": name.repo, "folder": str(folder), "replaced": [*replaced]}
            address = hub.call("upload", sent, what="the run")
    return str(address)


# --- the hub, or the cache of what it once gave ----------------------------------------------------------------------


def _list_files(name: HubName, hub: HubProcess) -> _Listing:
    """List the files of a revision; where the hub does not list them, those that the cache has."""
    where = {"repo": name.repo, "revision": name.revision}
    try:
        listing, is_cached = hub.call("list_files", where), False
    except HubError as error:
        listing, is_cached = None if 0 < error.status < 500 else hub.call("list_cached", where), True
        if listing is None:
            raise
    return _Listing(listing["commit"], {file: _Stated(*stated) for file, stated in listing["files"].items()}, is_cached)


def _fetch(name: HubName, listing: _Listing, files: Sequence[str], hub: HubProcess) -> list[Path]:
    """Fetch files of a listing to the cache, or find them there, and verify them."""
    stated = {file: listing.files[file] for file in files}
    total = sum(entry.num_bytes for entry in stated.values())
    if total > hub.limits.max_bytes:
        raise CheckpointError(
            f"{name}: {total / 1e9:.1f} GB, at most {hub.limits.max_bytes / 1e9:.1f} GB are fetched; download it "
            "yourself, and give the path"
        )
    revision = listing.commit if listing.is_cached else name.revision
    missing = {} if listing.is_cached else _find_missing(name, listing, stated, hub)
    if missing:
        size = f"{sum(missing.values()):,} bytes"
        logger.warning("fetch: %s: %s from %s to %s", name, size, hub.endpoint, hub.cache_folder)
    paths = []
    with hub.one_transfer(total):
        for file, (num_bytes, digest) in stated.items():
            where = {"repo": name.repo, "revision": revision, "file": file}
            path = Path(hub.call("download", where, what=file, num_bytes=num_bytes))
            computed = None if digest is None else _compute_digest(path, len(digest))
            if computed != digest:
                raise CheckpointError(
                    f"{name}: {file} has the digest {str(computed)[:16]}..., the hub states {str(digest)[:16]}...; it "
                    f"was damaged on its way or since: delete {path.resolve()}, and fetch it again"
                )
            paths.append(path)
    return paths


def _find_missing(name: HubName, listing: _Listing, stated: Mapping[str, _Stated], hub: HubProcess) -> dict[str, int]:
    """Find the files that the cache lacks, with their bytes."""
    cached = hub.call("list_cached", {"repo": name.repo, "revision": listing.commit})
    here = {} if cached is None else cached["files"]
    return {file: entry.num_bytes for file, entry in stated.items() if file not in here}


def _compute_digest(path: Path, num_digits: int) -> str:
    """Compute the SHA-256 of a file, or the SHA-1 that git names it by."""
    digest = hashlib.sha256() if num_digits == 64 else hashlib.sha1(usedforsecurity=False)
    with open(path, "rb") as file:
        if num_digits != 64:
            digest.update(b"blob %d\0" % os.fstat(file.fileno()).st_size)
        return hashlib.file_digest(file, lambda: digest).hexdigest()


def _choose_file(name: HubName, files: Mapping[str, Any]) -> str:
    """Choose the weights of a repository: `model.safetensors`, or its only file of this kind."""
    candidates = [file for file in files if file.endswith(_SUFFIX)]
    if f"model{_SUFFIX}" in candidates:
        return f"model{_SUFFIX}"
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise CheckpointError(
            f"{name}: has {len(candidates)} files of weights; name one, {name.repo}/FILE{_list_some(candidates)}"
        )
    unreadable = [
        file for file in files if PurePosixPath(file).suffix in (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".t7")
    ]
    reason = f"has no safetensors file{_list_some(list(files))}" if not unreadable else _describe_other(unreadable[0])
    raise CheckpointError(f"{name}: {reason}")


def _describe_other(file: str) -> str:
    return (
        f"{file} is not a safetensors file; of a hub nothing else is read, since a pickle is a program: ask for "
        "safetensors, or download a file that you trust and give its path"
    )


def _list_some(files: Sequence[str]) -> str:
    return f"; there are {join_some(files, most=_MAX_LISTED)}" if files else ""
