"""Small uploads that claim gigabytes, by each of their headers: one line, and little memory."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import laspy
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import sightline
from sightline.engine.distributed import World
from sightline.workbench.serve.app import Limits, open_app
from tests.limits import ENDLESS_S, limited
from tests.trained import copy_run

MOST_MB = 200
"""Most memory that an answer may take beyond what the server has."""


def make_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def make_png(width: int, height: int, *, rows: int, more: bytes = b"") -> bytes:
    """An image of zeros that holds so many of its rows, with further chunks in front of them."""
    packer = zlib.compressobj(9)
    row = bytes(3 * width + 1) if rows else b""
    data = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
    head = make_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + make_chunk(b"IDAT", data) + make_chunk(b"IEND", b"")


def make_jpeg(width: int, height: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (64, 64)).save(content, "JPEG")
    data = bytearray(content.getvalue())
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    return bytes(data)


def make_laz(*, num_points: int | None = None, num_chunks: int | None = None) -> bytes:
    """Five hundred points, with other numbers in the header and in the table of chunks."""
    cloud = laspy.LasData(laspy.LasHeader(point_format=6, version="1.4"))
    cloud.x, cloud.y, cloud.z = np.random.default_rng(0).random((3, 500))
    content = io.BytesIO()
    cloud.write(content, do_compress=True)
    data = bytearray(content.getvalue())
    (table,) = struct.unpack_from("<q", data, *struct.unpack_from("<I", data, 96))
    if num_points is not None:
        struct.pack_into("<Q", data, 247, num_points)
    if num_chunks is not None:
        struct.pack_into("<I", data, table + 4, num_chunks)
    return bytes(data)


TEXT = make_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000), 1))
BOMBS: dict[str, list[tuple[str, Callable[[], bytes]]]] = {
    "detect": [
        ("a.png", lambda: make_png(20_000, 20_000, rows=200)),
        ("a.png", lambda: make_png(2**31 - 1, 2**31 - 1, rows=0)),
        ("a.png", lambda: make_png(1, 2**30, rows=0)),
        ("a.png", lambda: make_png(64, 48, rows=48, more=TEXT)),
        ("a.jpg", lambda: make_jpeg(65_000, 65_000)),
        ("a.jpg", lambda: make_jpeg(12_000, 12_000)),
    ],
    "classify": [
        ("a.laz", lambda: make_laz(num_points=2**40)),
        ("a.laz", lambda: make_laz(num_chunks=2**32 - 1)),
        ("a.laz", lambda: make_laz(num_points=2**40, num_chunks=2**32 - 1)),
        ("a.laz", lambda: make_laz(num_points=2**20, num_chunks=2**19)),
    ],
}


def read_peak_mb() -> float:
    """Read the most memory that this process has had since that was forgotten."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


@pytest.mark.parametrize("task", BOMBS)
def test_what_claims_gigabytes_is_answered_in_one_line(task: str, tmp_path: Path) -> None:
    loaded, limits = sightline.load_run(copy_run(task, tmp_path / "run")), Limits(max_seconds=ENDLESS_S)
    with open_app(loaded, World(), limits=limits) as app, TestClient(app) as client:
        for name, make in BOMBS[task]:
            content = make()
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak
            before = read_peak_mb()
            with limited():
                answer = client.post("/predict", files={"file": (name, content)})
            assert answer.status_code == 422, (name, answer.text[:300])
            assert "\n" not in answer.json()["error"]
            assert read_peak_mb() - before < MOST_MB, answer.text
        assert client.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize(("width", "height"), [(8_000, 8_000), (24_001, 1_000)])
def test_photos_of_too_many_pixels_are_not_decoded(width: int, height: int, tmp_path: Path) -> None:
    """Sound ones, which a command predicts: a server decodes no more than it states."""
    content = make_jpeg(width, height)
    with open_app(sightline.load_run(copy_run("detect", tmp_path / "run")), World()) as app, TestClient(app) as client:
        Path("/proc/self/clear_refs").write_text("5")
        before = read_peak_mb()
        answer = client.post("/predict", files={"file": ("a.jpg", content)})
        assert answer.status_code == 413
        stated = f"the image has {width:,} x {height:,} pixels, {width * height / 1e6:.0f} million; at most 24 million"
        assert stated in answer.json()["error"]
        assert read_peak_mb() - before < 20
        assert client.get("/info").json()["limits"]["max_pixels"] == 24_000_000
