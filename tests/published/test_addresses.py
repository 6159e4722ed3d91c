"""Files of weights at an address: fetched whole, also after a cut; other bytes and broken servers are refused."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import resource
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest

from sightline.config.shipped import shipped_configs
from sightline.contract.errors import CheckpointError
from sightline.published import addresses, known_weights
from sightline.published.addresses import parse_address
from sightline.published.hub_client import HubLimits
from sightline.published.known_weights import find_on_machine, is_remote, list_known
from tests.answers import Answer, dripping, dripping_headers, endless, send, start
from tests.command import Outcome, refuse, run_here, succeed
from tests.file_server import FileServer, serve_files
from tests.limits import HANG_S, limited
from tests.marks import long_but
from tests.processes import ROOT

DATA = bytes(range(256)) * 4000
"""A megabyte, so that a cut lies inside it."""
DIGEST = hashlib.sha256(DATA).hexdigest()
HASTY = HubLimits(answer_s=1.5)
"""Time for nothing but what never ends: a healthy answer under load may take longer."""
PATIENT = HubLimits(answer_s=HANG_S)
"""Time for healthy answers on any machine."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server of one file, and an empty cache."""
    with serve_files() as served:
        served.files["/net.pth"] = DATA
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.delenv("HF_ASSETS_CACHE", raising=False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(addresses, "LIMITS", PATIENT)
        yield served


def name_of(server: FileServer, digest: str = DIGEST) -> str:
    return f"{server.url}/net.pth#sha256={digest}"


def fetch(server: FileServer, digest: str = DIGEST) -> Outcome:
    return run_here("weights", "fetch", name_of(server, digest))


def kept(folder: Path) -> dict[str, bytes]:
    """What is in the cache, without locks."""
    files = [path for path in (folder / "home").rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {path.name: path.read_bytes() for path in files}


# --- the road --------------------------------------------------------------------------------------------------------


def test_a_file_is_fetched_once_and_printed(
    server: FileServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = name_of(server)
    assert find_on_machine(name) is None
    done = succeed("weights", "fetch", name, "--json", tmp_path / "out.json")
    (said,) = caplog.messages
    told = json.loads((tmp_path / "out.json").read_text())
    path = Path(told["path"])
    assert (told["bytes"], told["sha256"], told["name"]) == (len(DATA), DIGEST, name)
    assert path.read_bytes() == DATA
    assert path.is_relative_to(tmp_path / "home/assets/sightline/weights")
    assert find_on_machine(name) == path
    assert said == f"fetch: {name}: 1,024,000 bytes from {server.url}/net.pth to {path.parent}"
    assert "sha256: " + DIGEST in done.out
    succeed("weights", "fetch", name)
    assert len(caplog.messages) == len(server.ranges) == 1, "what is here is not fetched again"


def test_a_few_digits_find_the_file_and_the_whole_digest_is_told(server: FileServer) -> None:
    assert DIGEST in succeed("weights", "fetch", name_of(server, DIGEST[:8].upper())).out
    assert "is stated" in refuse("weights", "fetch", name_of(server, DIGEST[:8] + "0" * 56))


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_a_cut_transfer_goes_on_where_it_ended(
    server: FileServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, ranges: bool
) -> None:
    def cut(handler: BaseHTTPRequestHandler) -> None:
        start(handler, 200, {"Content-Length": str(len(DATA))})
        handler.wfile.write(DATA[:400_000])

    server.answers["/net.pth"] = cut
    done = fetch(server)
    assert done.code == 2
    told = re.search(r"broke off \(.*\); ([\d,]+) of 1,024,000 bytes are kept: run the same command again", done.err)
    assert told, done.err
    (part,) = kept(tmp_path).values()
    assert len(part) == int(told[1].replace(",", "")) == 400_000
    assert find_on_machine(name_of(server)) is None, "a part is not the file"
    server.answers = {} if ranges else {"/net.pth": send(DATA)}
    done = fetch(server)
    assert done.code == 0, done.err
    assert ("(400,000 of them are here)" in caplog.messages[-1]) is ranges
    assert server.ranges == [None, "bytes=400000-"]
    assert kept(tmp_path) == {"net.pth": DATA}


def test_a_part_that_is_longer_than_the_file_is_fetched_anew(server: FileServer, tmp_path: Path) -> None:
    folder = tmp_path / "home/assets/sightline/weights" / DIGEST[:8]
    folder.mkdir(parents=True)
    (folder / ".net.pth.partial").write_bytes(DATA + b"more")
    assert fetch(server).code == 0
    assert kept(tmp_path) == {"net.pth": DATA}


def test_a_damaged_copy_is_deleted_and_fetched_again(server: FileServer, tmp_path: Path) -> None:
    assert fetch(server).code == 0
    path = find_on_machine(name_of(server))
    assert path is not None
    path.write_bytes(DATA[:-1])
    assert "the copy in the cache has the SHA-256" in fetch(server).err
    assert kept(tmp_path) == {}
    assert fetch(server).code == 0


# --- refusals, one line each -----------------------------------------------------------------------------------------


def stating(length: object, **more: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        start(handler, 200, {"Content-Length": str(length), **more})
        handler.wfile.write(DATA)

    return answer


def circling(handler: BaseHTTPRequestHandler) -> None:
    start(handler, 302, {"Location": "http://other.example/\x1b[2Jnet.pth", "Content-Length": "0"})


def dripping_body(handler: BaseHTTPRequestHandler) -> None:
    start(handler, 200, {"Content-Length": str(len(DATA))})
    handler.wfile.write(DATA[:1000])
    dripping_headers(handler)


def silent(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.settimeout(HANG_S)
    handler.connection.recv(1)


class Row(NamedTuple):
    """An answer, and what the line says of it."""

    answer: Answer
    told: str
    limits: HubLimits = PATIENT


WRONG = DATA[:-1] + b"!"
ROWS = {
    "other bytes": Row(
        send(WRONG), rf"has the SHA-256 {hashlib.sha256(WRONG).hexdigest()} \(1,024,000 bytes\), {DIGEST} is stated; "
    ),
    "endless": Row(endless, r"does not state how many bytes it sends; download it yourself"),
    "huge": Row(stating(9 << 30), r"has 9,663,676,416 bytes, at most 8,589,934,592 are fetched"),
    "beyond all disks": Row(stating("9" * 40), r"at most 8,589,934,592 are fetched"),
    "less than none": Row(stating(-5), r"does not state how many bytes"),
    "redirect": Row(circling, r"answered 302, and names http://other\.example/\S*net\.pth; redirects are not followed"),
    "missing": Row(send(b"", status=404), r"answered 404: Not Found; look at the address"),
    "busy": Row(send(b"", status=503), r"answered 503: Service Unavailable; try again later"),
    "packed": Row(stating(len(DATA), Content_Encoding="gzip"), r"does not answer as a server of files does \(it packs"),
    "silent": Row(silent, r"took more than \d+ s for an answer; try again later", HASTY),
    "headers dripping": Row(dripping_headers, r"took more than \d+ s for an answer", HASTY),
    "dripping": Row(dripping, r"does not state how many bytes it sends", PATIENT),
    "no HTTP": Row(lambda handler: handler.wfile.write(b"\x80\x04\n"), r"does not answer as a server of files does"),
}
DAILY = ("other bytes", "endless", "huge", "redirect", "missing", "silent")


@pytest.mark.parametrize("name", long_but(DAILY, ROWS))
def test_a_hostile_answer_ends_in_one_line(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    row = ROWS[name]
    server.answers["/net.pth"] = row.answer
    monkeypatch.setattr(addresses, "LIMITS", row.limits)
    with limited():
        done = fetch(server)
    assert done.code == 2
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert re.search(row.told, done.err), done.err
    assert kept(tmp_path) == {}
    assert len(server.ranges) == 1, "what is refused is not asked for again"


def test_a_body_that_drips_ends_with_its_time_and_is_kept(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers["/net.pth"] = dripping_body
    monkeypatch.setattr(addresses, "LIMITS", HubLimits(answer_s=3, bytes_per_s=2e6))
    with limited():
        done = fetch(server)
    assert re.search(r"took more than \d+ s for 1,024,000 bytes at 2000 kB/s at least; [\d,]+ of 1,024,000 ", done.err)
    (part,) = kept(tmp_path).values()
    assert part[:1000] == DATA[:1000]
    server.answers.clear()
    monkeypatch.setattr(addresses, "LIMITS", PATIENT)
    assert "is stated; it is another file" in fetch(server).err, "the part had other bytes after the first"
    assert fetch(server).code == 0


def test_a_row_bounds_the_bytes_of_its_file(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    row = known_weights.KnownWeights("torchvision://Net", "", "", 0.9, "none", f"{server.url}/net.pth", DIGEST[:8])
    monkeypatch.setattr(known_weights, "list_known", lambda: (row,))
    told = refuse("weights", "fetch", row.name)
    assert "has 1,024,000 bytes, at most 950,000 are fetched" in told
    row = known_weights.KnownWeights("torchvision://Net", "", "", 1.0, "none", f"{server.url}/net.pth", DIGEST[:8])
    monkeypatch.setattr(known_weights, "list_known", lambda: (row,))
    done = succeed("weights", "fetch", row.name)
    assert caplog.messages[-1].endswith("; licence: none")
    assert name_of(server) in done.out.replace("\n    ", "")


def test_a_disk_that_is_full_keeps_nothing(server: FileServer, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        done = fetch(server)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done.code == 1
    assert "cannot write: file too large; raise the limit on the size of a file" in done.err
    assert kept(tmp_path) == {}
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with mock.patch.object(os, "replace", side_effect=full):
        assert "no space left on device; free some space there and run the same command again" in fetch(server).err


def test_a_disk_with_less_space_than_the_file_takes_gets_nothing_of_it(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "LIMITS", PATIENT._replace(max_bytes=1 << 62))
    server.answers["/net.pth"] = stating(1 << 60)
    assert "cannot write: no space left on device; free some space there" in fetch(server).err
    assert kept(tmp_path) == {}


def test_offline_ends_in_one_line_with_the_address_and_the_command(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = "detect/photos_finetune"
    row = next(row for row in list_known() if "RetinaNet" in row.name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = ("data={name: synthetic_crowds}", "--no-check", "--device", "cpu", "--out", tmp_path / "run")
    done = run_here("train", config, *words)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert f"{row.address} cannot be reached (HF_HUB_OFFLINE is set)" in done.err
    assert f"run 'sightline weights fetch {row.name}', or give the path of the file" in done.err
    assert not (tmp_path / "run").exists()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    closed = f"http://127.0.0.1:9/net.pth#sha256={DIGEST}"
    assert re.search(rf"{closed}: its server cannot be reached \(.*refused\)", refuse("weights", "fetch", closed))


FORMS = {
    "no digest": (
        "https://a.org/net.pth",
        r"states no SHA-256, .* write https://a\.org/net\.pth#sha256=DIGEST, of 8 to",
    ),
    "few digits": ("https://a.org/net.pth#sha256=1234567", r"'sha256=1234567' is no SHA-256"),
    "other digest": ("https://a.org/net.pth#md5=12345678", r"'md5=12345678' is no SHA-256"),
    "http": ("http://a.org/net.pth#sha256=12345678", r"can change what http:// brings; write https://"),
    "password": (
        "https://me:secret@a.org/net.pth#sha256=12345678",
        r"^error: https://\.\.\.@a\.org: has a name or pass",
    ),
    "no file": ("https://a.org/#sha256=12345678", r"ends with no name of a file"),
    "path": ("https://a.org/..%2fnet.pth#sha256=12345678", r"ends with no name of a file"),
    "no host": ("https://#sha256=12345678", r"is no address"),
    "port": ("https://a.org:http/net.pth#sha256=12345678", r"is no address"),
    "line break": ("https://a.org/a\n/net.pth#sha256=12345678", r"is no address"),
    "unknown": (
        "torchvision://ResNet18_Weights.IMAGENET1K",
        r"no known name; did you mean 'torchvision://ResNet18_Wei",
    ),
    "run": ("runs/a", r"runs/a is no name of weights that are fetched: write one of 'sightline weights list'"),
}


@pytest.mark.parametrize(("name", "told"), FORMS.values(), ids=list(FORMS))
def test_a_name_of_no_form_is_refused_with_what_is_missing(name: str, told: str) -> None:
    said = refuse("weights", "fetch", name)
    assert re.search(told, said), said
    assert said.count("\n") == 1
    assert "secret" not in said


# --- the table -------------------------------------------------------------------------------------------------------


def test_every_row_is_of_the_form_that_fetching_needs() -> None:
    for row in list_known():
        assert is_remote(row.name)
        assert find_on_machine(row.name) is None or Path(row.source)
        if row.address is not None:
            address = row.parse()
            assert address.url == row.address
            assert address.url.startswith("https://download.pytorch.org/models/")
            assert row.sha256 == re.findall(r"-([0-9a-f]{8})\.pth$", address.file)[0], "torchvision's own digits"
    assert len({row.name for row in list_known()}) == len(list_known())


def test_shipped_configs_name_weights_of_the_table() -> None:
    names = {row.name for row in list_known()}
    texts = [(ROOT / config.path).read_text() for config in shipped_configs()]
    named = [name for text in texts for name in re.findall(r"from: \"?((?:hf|torchvision|https)://[^\s\",}]+)", text)]
    assert len(named) >= 3
    assert {*named} <= names


def test_the_list_says_what_is_on_this_machine(server: FileServer, tmp_path: Path) -> None:
    row = next(row for row in list_known() if row.name.endswith("ResNet18_Weights.IMAGENET1K_V1"))
    place = addresses.cache_folder() / row.parse().sha256 / row.parse().file
    place.parent.mkdir(parents=True)
    place.write_bytes(b"")
    hub = tmp_path / "home/hub/models--timm--resnet18.a1_in1k"
    (hub / "snapshots/c1").mkdir(parents=True)
    (hub / "snapshots/c1/model.safetensors").write_bytes(b"")
    (hub / "refs").mkdir()
    (hub / "refs/main").write_text("c1")
    listed = succeed("weights", "list", "--json", tmp_path / "out.json").out
    assert f"licence: none stated; ImageNet's terms may hold; {place}\n" in listed
    rows = {row["name"]: row for row in json.loads((tmp_path / "out.json").read_text())["weights"]}
    here = {name for name, row in rows.items() if row["path"]}
    assert here == {row.name, "hf://timm/resnet18.a1_in1k"}
    assert rows[row.name]["source"] == row.address


def test_a_file_that_a_row_has_is_named_where_its_path_is_missing() -> None:
    with pytest.raises(CheckpointError, match="states no SHA-256"):
        parse_address("https://a.org/a.pth")
    row = list_known()[0]
    assert row.address is not None
    file = Path(row.address).name
    assert known_weights.describe_missing(f"weights/{file}") == f"init.from={row.name} fetches a file of this name"
