"""Files of a hub that speaks Hugging Face's API: chosen, limited, verified, and kept in that library's own cache."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sightline.contract.errors import CheckpointError, UserError, assert_installed, escape_to_one_line, join_some
from sightline.contract.schema import suggest
from sightline.published.transformers_files import CONFIG_FILE

PREFIX = "hf://"
RUN_MARKS = ("config.yaml", "model.slq")
"""Files by which a repository is a pushed run."""
_NAME = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+?)(/(?P<file>[\w./-]+?))?(@(?P<revision>[\w./-]+))?", re.ASCII)
_SUFFIX = ".safetensors"
_MAX_BYTES = 8 << 30
"""Most bytes of what one name brings: above any network here, below what would fill a disk unasked."""
_TIMEOUT_S = 10.0
_READ = "read"
_COMMIT = re.compile("[0-9a-f]{40}")
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
    """What the hub states of a file: bytes, and its SHA-256, or git's SHA-1 of a small one."""

    num_bytes: int
    digest: str | None


class _Listing(NamedTuple):
    """Files of a commit, as the hub lists them, or as the cache has them where the hub is silent."""

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
        raise CheckpointError(f"{text}: is not a name of a hub's file; write hf://OWNER/REPO[/FILE][@REVISION]")
    return HubName(match["repo"], match["file"], match["revision"])


def fetch_weights(text: str) -> HubFile:
    """Fetch the file that `text` names, or the weights of the repository, and verify it against the hub's digest.

    Of a pushed run, its other documents come along, and the `config.json` beside a file of weights. What is in the
    cache is not fetched again, and found without a network. Raises MissingExtraError without huggingface_hub;
    CheckpointError for what is not there, is no safetensors file, is larger than 8 GiB or damaged, and for a hub that
    does not answer about files that the cache lacks.
    """
    name = parse_name(text)
    _assert_extra(text)
    if name.file is not None and not name.file.endswith((_SUFFIX, RUN_MARKS[-1])):
        raise CheckpointError(f"{name}: {_describe_other(name.file)}")
    listing = _list_files(name)
    files = listing.files
    if name.file is None:
        is_run = files.keys() >= {*RUN_MARKS}
        name = name._replace(file=RUN_MARKS[-1] if is_run else _choose_file(name, files))
    elif name.file not in files:
        peers = [file for file in files if file.endswith(_SUFFIX)]
        raise CheckpointError(f"{name}: has no such file{suggest(str(name.file), peers, otherwise=_list_some(peers))}")
    wanted = [str(name.file)]
    if (config := str(PurePosixPath(wanted[0]).with_name(CONFIG_FILE))) in files and wanted[0].endswith(_SUFFIX):
        wanted.append(config)
    if is_run := name.file == RUN_MARKS[-1] and RUN_MARKS[0] in files:
        wanted += [file for file in files if file.endswith((".json", ".yaml")) and "/" not in file]
    paths = _fetch(name, listing, wanted)
    return HubFile(name._replace(revision=listing.commit), paths[0], is_run)


def fetch_run(text: str, *, is_own: Callable[[str], bool]) -> tuple[list[tuple[str, Path]], list[str]]:
    """Fetch the files of a pushed run that `is_own` accepts, each with its name there; return the other names, too.

    Raises as `fetch_weights`.
    """
    name = parse_name(text)
    _assert_extra(text)
    listing = _list_files(name)
    if name.file is not None or not listing.files.keys() >= {*RUN_MARKS}:
        raise CheckpointError(
            f"{name}: is not a run that 'sightline runs RUN --push' made; init.from takes weights alone"
        )
    own = [file for file in listing.files if is_own(file)]
    others = [file for file in listing.files if file not in own]
    return list(zip(own, _fetch(name, listing, own), strict=True)), others


def push_folder(folder: Path, text: str, *, is_public: bool, replaced: Sequence[str]) -> str:
    """Upload a folder's files as one commit, to a repository that is made if need be; return the commit's address.

    Files there of the patterns `replaced` that the folder lacks are deleted. Raises UserError where that is refused,
    and for a repository that is public, or private, against `is_public`.
    """
    name = parse_name(text)
    _assert_extra(text)
    if name.file is not None or name.revision is not None:
        raise UserError(f"{name}: names a file or a revision; a run is pushed to {PREFIX}{name.repo}")
    from huggingface_hub import HfApi

    api = HfApi()
    with _explained(name, action="write to"):
        api.create_repo(name.repo, private=not is_public, exist_ok=True)
        is_private = bool(api.model_info(name.repo).private)
    if is_private == is_public:
        found, remedy = ("private", "leave out --public") if is_private else ("public", "give --public")
        raise UserError(f"{name}: is a {found} repository already; {remedy}, or change it on the hub")
    with _explained(name, action="write to"):
        commit = api.upload_folder(
            repo_id=name.repo, folder_path=folder, delete_patterns=[*replaced], commit_message="sightline: a packed run"
        )
    return str(commit.commit_url)


def _assert_extra(text: str) -> None:
    assert_installed("huggingface_hub", needed_by=text)


# --- the hub, or the cache of what it once gave ----------------------------------------------------------------------


def _list_files(name: HubName) -> _Listing:
    """List the files of a revision; where the hub is silent, those that the cache has."""
    from huggingface_hub import HfApi

    try:
        with _explained(name, action=_READ):
            info = HfApi().model_info(name.repo, revision=name.revision, files_metadata=True, timeout=_TIMEOUT_S)
    except CheckpointError as error:
        cached = None if 0 < _get_status(error.__cause__) < 500 else _list_cached(name)
        if cached is None:
            raise
        return cached
    siblings = info.siblings or []
    stated = {
        each.rfilename: _Stated(each.size or 0, each.blob_id if each.lfs is None else each.lfs.sha256)
        for each in siblings
    }
    return _Listing(str(info.sha), stated)


def _list_cached(name: HubName) -> _Listing | None:
    """List what the cache has of a revision, each file's digest by the name of its blob; None if it has nothing."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.repo.replace('/', '--')}"
    revision = name.revision or "main"
    reference = folder / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = folder / "snapshots" / commit
    if _COMMIT.fullmatch(commit) is None or not snapshot.is_dir():
        return None
    files = [path for path in sorted(snapshot.rglob("*")) if path.is_file()]
    stated = {
        path.relative_to(snapshot).as_posix(): _Stated(
            path.stat().st_size, Path(os.readlink(path)).name if path.is_symlink() else None
        )
        for path in files
    }
    return _Listing(commit, stated, is_cached=True)


def _fetch(name: HubName, listing: _Listing, files: Sequence[str]) -> list[Path]:
    """Fetch files of a listing to the cache, or find them there, and verify them."""
    from huggingface_hub import HfApi

    api = HfApi()
    revision = listing.commit if listing.is_cached else name.revision
    total = sum(listing.files[file].num_bytes for file in files)
    if total > _MAX_BYTES:
        raise CheckpointError(
            f"{name}: {total / 1e9:.1f} GB, at most {_MAX_BYTES / 1e9:.1f} GB are fetched; download it yourself, and "
            "give the path"
        )
    paths = []
    for file in files:
        digest = listing.files[file].digest
        with _explained(name, action=_READ):
            path = Path(api.hf_hub_download(name.repo, file, revision=revision))
        found = None if digest is None else _compute_digest(path, len(digest))
        if found != digest:
            raise CheckpointError(
                f"{name}: {file} has the digest {str(found)[:16]}..., the hub states {str(digest)[:16]}...; it "
                f"was damaged on its way or since: delete {path.resolve()}, and fetch it again"
            )
        paths.append(path)
    return paths


def _compute_digest(path: Path, num_digits: int) -> str:
    """Compute the SHA-256 of a file, or the SHA-1 that git names it by."""
    with open(path, "rb") as file:
        if num_digits == 64:
            return hashlib.file_digest(file, "sha256").hexdigest()
        content = file.read()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _choose_file(name: HubName, files: Mapping[str, Any]) -> str:
    """Choose the weights of a repository: `model.safetensors`, or its only file of this kind."""
    found = [file for file in files if file.endswith(_SUFFIX)]
    if f"model{_SUFFIX}" in found:
        return f"model{_SUFFIX}"
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(
            f"{name}: has {len(found)} files of weights; name one, {name.repo}/FILE{_list_some(found)}"
        )
    others = [file for file in files if PurePosixPath(file).suffix in (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".t7")]
    reason = f"has no safetensors file{_list_some(list(files))}" if not others else _describe_other(others[0])
    raise CheckpointError(f"{name}: {reason}")


def _describe_other(file: str) -> str:
    return (
        f"{file} is not a safetensors file; of a hub nothing else is read, since a pickle is a program: ask for "
        "safetensors, or download a file that you trust and give its path"
    )


def _list_some(files: Sequence[str]) -> str:
    return f"; there are {join_some(files, most=_MAX_LISTED)}" if files else ""


@contextmanager
def _explained(name: HubName, *, action: str) -> Iterator[None]:
    """Turn errors of the hub and of the way to it into one line."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{name}: the repository has no revision '{name.revision}' on {hub}") from error
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{name}: its authors let in whom they know; ask for access on {hub}/{name.repo}, and log in: hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{name}: {hub} has no such repository, or shows it to others alone; look at the name, or log in: hf auth "
            "login, or HF_TOKEN"
        ) from error
    except errors.HFValidationError as error:
        raise CheckpointError(f"{name}: {_first_line(error)}") from error
    except Exception as error:  # of the client's network library, another one in other versions
        status = _get_status(error)
        if status in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError):
            reason = f"may not {action} it with these credentials; log in: hf auth login, or HF_TOKEN"
        elif status:
            reason = f"{hub} answered {status}: {_first_line(error)}; try again later"
        else:
            copy = f", and {constants.HF_HUB_CACHE} has no copy" if action == _READ else ""
            reason = f"{hub} cannot be reached ({_first_line(error)}){copy}; connect, or give the path of a file"
        raise CheckpointError(f"{name}: {reason}") from error


def _get_status(error: BaseException | None) -> int:
    """Return the status of the answer that an error is about; 0 if there was none."""
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def _first_line(error: BaseException) -> str:
    """Return the first line of what an error began with."""
    while error.__cause__ is not None:
        error = error.__cause__
    return escape_to_one_line((str(error).splitlines() or [type(error).__name__])[0])[:160]
