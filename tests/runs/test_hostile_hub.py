"""Hubs that are broken, or hostile: each ends a command in one line and in time, and leaves nothing of what it sent."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import resource
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import NamedTuple

import pytest

from sightline.contract.errors import CheckpointError
from sightline.published import hub_client
from sightline.published.hub import push_folder
from sightline.published.hub_client import HubLimits
from sightline.workbench.compress.packing import FILES as PACKED_FILES
from tests.answers import Answer, dripping, dripping_headers, endless, send, start
from tests.command import Outcome, run_here
from tests.hub_server import Hub, serve_hub
from tests.limits import HANG_S, limited
from tests.marks import long_but
from tests.processes import forked
from tests.trained import trained_run

FILES = {"config.yaml": b"name: a\n", "model.slq": b"SLQ1" + bytes(60_000), "facts.json": b"{}"}
TOTAL = sum(map(len, FILES.values()))
LISTING, FILE, FILE_HEAD = r"GET /api/models/me/run$", r"GET .*/model\.slq", r"HEAD .*/model\.slq"
HASTY = HubLimits(answer_s=1.5)
"""Time for nothing but what never ends: a healthy answer under load may take longer."""
BRISK = HubLimits(answer_s=4)
"""Time for the healthy answers before one that never ends."""
PATIENT = HubLimits(answer_s=HANG_S)
"""Time for healthy answers on any machine."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub() as served:
        served.repos["me/run"] = dict(FILES)
        for name, value in environment(served.url, tmp_path).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(hub_client, "LIMITS", PATIENT)
        yield served


def environment(url: str, folder: Path) -> dict[str, str]:
    home = str(folder / "home")
    return {"HF_ENDPOINT": url, "HF_HOME": home, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_test"}


def pull(folder: Path) -> Outcome:
    return run_here("runs", "pull", "hf://me/run", "--out", folder / "pulled")


def assert_refused(done: Outcome, told: str, folder: Path) -> None:
    """One line, and nothing on the disk but what the hub stated, in the cache."""
    assert done.code in (1, 2)
    assert done.out == ""
    assert re.search(told, done.err), done.err
    assert len(done.err.splitlines()) == 1
    assert {path.name for path in folder.iterdir()} <= {"home"}
    kept = [path for path in (folder / "home").rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in kept if path.name.endswith(".incomplete")]
    assert sum(path.stat().st_size for path in kept if path.parent.name == "blobs") <= TOTAL


# --- answers ---------------------------------------------------------------------------------------------------------


def cut(handler: BaseHTTPRequestHandler) -> None:
    start(handler, 200, {"Content-Length": str(len(FILES["model.slq"]))})
    handler.wfile.write(FILES["model.slq"][:30_000])


def unpacking(handler: BaseHTTPRequestHandler) -> None:
    """2 GB of spaces in 2 MB: a block of a megabyte, which does not refer to those before, many times."""
    packer = zlib.compressobj(wbits=31)
    head, block = (packer.compress(b" " * (1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    start(handler, 200, {"Content-Encoding": "gzip", "Connection": "close"})
    with contextlib.suppress(OSError):
        handler.wfile.write(head + block * 2000)


def circling(handler: BaseHTTPRequestHandler) -> None:
    start(handler, 302, {"Location": handler.path, "Content-Length": "0"})
    handler.close_connection = False


def listing(text: str) -> Answer:
    return send(text.encode(), Content_Type="application/json")


def stating(entry: str, sha: str = "0" * 40) -> Answer:
    return listing(f'{{"id": "me/run", "sha": "{sha}", "siblings": [{entry}]}}')


class Row(NamedTuple):
    """An answer to requests of a pattern, and what the line says of it."""

    asked: str
    answer: Answer
    told: str
    limits: HubLimits = PATIENT


ENDLESS = "sends more than an answer takes"
LATE = r"hf://me/run: http\S+ took more than \d+ s for "
ROWS = {
    "listing endless": Row(LISTING, endless, rf"{ENDLESS}|{LATE}an answer", HASTY),
    "listing unpacks": Row(LISTING, unpacking, r"sends more than an answer takes, over 1 GB; look at HF_ENDPOINT"),
    "listing dripping": Row(LISTING, dripping, rf"{LATE}an answer; .*try again later", HASTY),
    "headers dripping": Row(LISTING, dripping_headers, rf"{LATE}an answer", HASTY),
    "listing circling": Row(LISTING, circling, r"does not answer as a hub does \(.*redirects"),
    "listing is HTML": Row(
        LISTING, send(b"<html>log in"), r"does not answer as a hub does \(.*\); look at HF_ENDPOINT"
    ),
    "listing is a list": Row(LISTING, listing("[]"), r"does not answer as a hub does"),
    "listing is nested": Row(LISTING, listing("[" * 10**5), r"does not answer as a hub does"),
    "no files": Row(LISTING, listing('{"id": "me/run"}'), r"does not answer as a hub does \(it names no files\)"),
    "size is a word": Row(
        LISTING, stating('{"rfilename": "a", "size": "big"}'), r"\(the size of a is 'big'\); look at HF_ENDPOINT"
    ),
    "no digest": Row(LISTING, stating('{"rfilename": "a", "size": 1}'), r"\(the digest of a is None\)"),
    "commit is a path": Row(LISTING, stating("", sha="../../x"), r"\(its commit is '\.\./\.\./x'\)"),
    "error": Row(LISTING, send(b"", status=500), r"http\S+ answered 500: .*; try again later"),
    "file endless": Row(FILE, endless, r"sends more of model\.slq than the 60,004 bytes .*; nothing of it was kept"),
    "file dripping": Row(FILE, dripping, rf"{LATE}model\.slq, 60,004 bytes at 100 kB/s at least; nothing of it", BRISK),
    "file cut": Row(FILE, cut, rf"broke off model\.slq \(.*\); nothing of it|{LATE}model"),
    "file in an hour": Row(FILE, send(b"", status=429, Retry_After="3600"), rf"{LATE}model\.slq", BRISK),
    "file is an error": Row(FILE, send(b"", status=500), r"answered 500"),
    "file is another": Row(FILE, send(bytes(60_004)), r"model\.slq has the digest .* delete \S+, and fetch it again"),
    "tag is a path": Row(
        FILE_HEAD, send(b"", ETag='"../../../../evil"', X_Repo_Commit="0" * 40), r"\(the tag of a file is '\"\.\./"
    ),
    "commit of a file is a path": Row(
        FILE_HEAD, send(b"", ETag='"abc"', X_Repo_Commit="../evil"), r"\(the commit of a file is '\.\./"
    ),
}


DAILY = (
    *(
        "listing endless",
        "listing dripping",
        "listing is HTML",
        "size is a word",
        "commit is a path",
    ),
    *("error", "file endless", "file cut", "file is another", "tag is a path"),
)


@pytest.mark.parametrize("name", long_but(DAILY, ROWS))
def test_a_hostile_answer_ends_in_one_line(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    row = ROWS[name]
    hub.answers[row.asked] = row.answer
    monkeypatch.setattr(hub_client, "LIMITS", row.limits)
    with limited():
        done = pull(tmp_path)
    assert_refused(done, row.told, tmp_path)


def test_a_token_stays_with_its_hub(hub: Hub, tmp_path: Path) -> None:
    """A store that the hub sends readers to, as hubs do for large files, gets no credentials."""
    seen: list[str | None] = []

    def store(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers.get("Authorization"))
        send(FILES["model.slq"])(handler)

    with serve_hub() as other:
        other.answers["GET /store"] = store
        digest = hashlib.sha256(FILES["model.slq"]).hexdigest()
        headers = {"Location": f"{other.url}/store", "X_Linked_Etag": f'"{digest}"', "X_Linked_Size": "60004"}
        commit = hub.commit("me/run")
        hub.answers[r"(HEAD|GET) .*/model\.slq"] = send(b"", status=302, X_Repo_Commit=commit, **headers)
        assert "is not a run that can be read" in pull(tmp_path).err
    assert seen == [None]


# --- files that are no run -------------------------------------------------------------------------------------------

RUBBISH: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "weights of 2 bytes": ("model.slq", lambda _: b"xx", r"model\.slq: is not a packed model"),
    "half the weights": ("model.slq", lambda data: data[: len(data) // 2], r"model\.slq: is truncated"),
    "another network": ("config.yaml", lambda data: data.replace(b"dropout", b"drpout"), r"drpout"),
    "no config": ("config.yaml", lambda _: b"\x00\xff", r"config\.yaml"),
    "facts of words": ("facts.json", lambda _: b'{"num_classes": "many"}', r"facts\.json: num_classes is 'many'"),
    "list of figures": ("final.json", lambda _: b"[]", r"final\.json: does not hold a mapping"),
}


@pytest.mark.parametrize("name", long_but(("weights of 2 bytes", "another network", "list of figures"), RUBBISH))
def test_a_pulled_run_is_read_before_it_takes_its_place(hub: Hub, tmp_path: Path, name: str) -> None:
    file, spoil, told = RUBBISH[name]
    run = trained_run("packed")
    files = {path.name: path.read_bytes() for path in run.iterdir() if path.name in PACKED_FILES and path.is_file()}
    hub.repos["me/run"] = files | {file: spoil(files[file])}
    done = pull(tmp_path)
    assert done.code == 2
    assert re.search(f"hf://me/run: is not a run that can be read: .*{told}.*; nothing of it was kept: ", done.err)
    assert len(done.err.splitlines()) == 1
    assert str(tmp_path) not in done.err
    assert {path.name for path in tmp_path.iterdir()} == {"home"}


# --- disks and networks that end -------------------------------------------------------------------------------------


def test_a_disk_that_is_full_leaves_nothing(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        done = pull(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_refused(done, r"home/hub: cannot write: file too large; raise the limit .* run the same command", tmp_path)

    def fill(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"a part")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(shutil, "copyfile", fill)
    done = pull(tmp_path)
    assert_refused(done, r"config\.yaml: cannot write: no space left on device; free some space there", tmp_path)


@pytest.mark.parametrize("name", ["packed", pytest.param("classify", marks=pytest.mark.long)])
def test_a_disk_that_is_full_pushes_nothing(hub: Hub, tmp_path: Path, name: str) -> None:
    run = trained_run(name)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))
        done = run_here("runs", "push", run, "hf://me/run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert re.fullmatch(r"error: \S+: cannot write: file too large; raise the limit .* and push again\n", done.err)
    assert hub.requests == []


PUSHES = {
    "creation endless": Row("POST /api/repos/create", endless, rf"{ENDLESS}|{LATE}an answer", HASTY),
    "upload in an hour": Row("PUT /upload", send(b"", status=429, Retry_After="3600"), f"{LATE}the run", BRISK),
    "commit without an address": Row("POST .*/commit/main", send(b"{}"), "does not answer as a hub does"),
    "error": Row("POST .*/preupload", send(b"", status=400), "answered 400"),
}


@pytest.mark.parametrize("name", long_but(("creation endless",), PUSHES))
def test_a_push_that_ends_is_pushed_again(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    row = PUSHES[name]
    folder = packed_folder(tmp_path)
    hub.answers[row.asked] = row.answer
    monkeypatch.setattr(hub_client, "LIMITS", row.limits)
    with pytest.raises(CheckpointError, match=row.told):
        push(folder)
    assert hub.repos["me/run"] == FILES
    hub.answers.clear()
    monkeypatch.setattr(hub_client, "LIMITS", PATIENT)
    push(folder)
    assert hub.repos["me/run"] == FILES | {"model.slq": b"new" * 1000}


def test_a_push_without_a_network_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment("http://127.0.0.1:9", tmp_path).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CheckpointError, match=r"9 cannot be reached \(.*refused\); connect, and push again$"):
        push(packed_folder(tmp_path))


def test_a_killed_push_ends_at_once_and_is_pushed_again(hub: Hub, tmp_path: Path) -> None:
    has_begun, has_ended = threading.Event(), threading.Event()

    def wait(handler: BaseHTTPRequestHandler) -> None:
        has_begun.set()
        handler.connection.settimeout(HANG_S)
        if not handler.connection.recv(1):
            has_ended.set()
        handler.close_connection = True

    hub.answers["PUT /upload"] = wait
    folder = packed_folder(tmp_path)
    process = forked(push_elsewhere, folder, environment(hub.url, tmp_path))
    assert has_begun.wait(HANG_S)
    process.kill()
    assert has_ended.wait(HANG_S), "the process that calls the hub goes on without the one that asked"
    process.join()
    assert hub.repos["me/run"] == FILES
    hub.answers.clear()
    push(folder)
    assert hub.repos["me/run"]["model.slq"] == b"new" * 1000


def packed_folder(folder: Path) -> Path:
    (folder / "made").mkdir()
    (folder / "made/model.slq").write_bytes(b"new" * 1000)
    return folder / "made"


def push(folder: Path) -> None:
    push_folder(folder, "hf://me/run", is_public=True, replaced=["plugins/*"])


def push_elsewhere(folder: Path, variables: dict[str, str]) -> None:
    os.environ |= variables
    push(folder)
