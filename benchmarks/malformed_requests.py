"""Requests that are wrong in many ways, each by name, as arguments of a client's `request`."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["MALFORMED", "fuzzed"]

_JSON = {"Content-Type": "application/json"}
_FORM = {"Content-Type": "multipart/form-data; boundary=x"}


def post(content: bytes, headers: dict[str, str]) -> dict[str, Any]:
    return {"method": "POST", "url": "/predict", "content": content, "headers": headers}


def upload(name: str, content: bytes) -> dict[str, Any]:
    head = f'--x\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    return post(head.encode("utf-8", "surrogateescape") + content + b"\r\n--x--\r\n", _FORM)


MALFORMED: dict[str, dict[str, Any]] = {
    "no address": {"method": "GET", "url": "/nothing"},
    "wrong method": {"method": "GET", "url": "/predict"},
    "no body": post(b"", {}),
    "no json": post(b"{", _JSON),
    "not utf-8": post(b'{"points": "\xff"}', _JSON),
    "a list": post(b"[]", _JSON),
    "deep": post(b"[" * 20_000, _JSON),
    "deep points": post(b'{"points": ' + b"[" * 900 + b"]" * 900 + b"}", _JSON),
    "many digits": post(b'{"points": ' + b"9" * 9_000 + b"}", _JSON),
    "unknown key": post(b'{"points": [[0, 0, 0]], "path": "/etc/passwd"}', _JSON),
    "ragged": post(b'{"points": [[0, 0, 0], [1]]}', _JSON),
    "texts": post(b'{"points": [["a", "b", "c"]]}', _JSON),
    "nan": post(b'{"points": [[NaN, 0, 0]]}', _JSON),
    "infinite": post(b'{"points": [[1e999, 0, 0]]}', _JSON),
    "huge": post(b'{"points": [' + b", ".join([b"[1e300, 0, 1]"] * 32) + b"]}", _JSON),
    "null": post(b'{"points": null}', _JSON),
    "empty": post(b'{"points": []}', _JSON),
    "one point": post(b'{"points": [[0, 0, 0]]}', _JSON),
    "two columns": post(b'{"points": [[0, 0], [1, 1], [2, 2]]}', _JSON),
    "half a character": post(b'{"points": "\\ud83d"}', _JSON),
    "category": post(b'{"points": [[0, 0, 0]], "category": "chair"}', _JSON),
    "category of another kind": post(b'{"points": [[0, 0, 0]], "category": 7}', _JSON),
    "too large": post(b" " * 60_000, _JSON),
    "length that is no number": post(b"{}", {**_JSON, "Content-Length": "2"}),
    "text": post(b"hello", {"Content-Type": "text/plain"}),
    "no boundary": post(b"hello", {"Content-Type": "multipart/form-data"}),
    "broken form": post(b"--x\r\nContent-Disposition: form-da", _FORM),
    "form without file": post(b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n', _FORM),
    "no ending": upload("cloud", b"1 2 3"),
    "another ending": upload("cloud.exe", b"MZ"),
    "empty file": upload("cloud.npy", b""),
    "broken array": upload("cloud.npy", b"\x93NUMPY\x01\x00"),
    "pickle": upload(
        "cloud.npy", b"\x93NUMPY\x01\x00\x3e\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,)}   \nx"
    ),
    "broken zip": upload("cloud.npz", b"PK\x03\x04"),
    "broken ply": upload("cloud.ply", b"ply\nformat ascii 1.0\nelement vertex 999999999\nend_header\n"),
    "broken off": upload("cloud.off", b"OFF\n3 1 0\n0 0 0\n"),
    "odd name": upload("../../etc/passwd\\.npy", b"x"),
}


def fuzzed(rng: np.random.Generator) -> dict[str, Any]:
    """A malformed request of the list with some of its bytes changed."""
    request = dict(list(MALFORMED.values())[int(rng.integers(len(MALFORMED)))])
    content = bytearray(request.get("content", b"")[:2_000])
    for _ in range(int(rng.integers(0, 6)) if content else 0):
        content[int(rng.integers(len(content)))] = int(rng.integers(256))
    return {
        **request,
        "content": bytes(content),
        "headers": {k: v for k, v in request.get("headers", {}).items() if k != "Content-Length"},
    }
