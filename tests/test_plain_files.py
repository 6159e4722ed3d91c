"""Plain files are read; pipes, devices, folders and giants are refused at once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from sightline.contract import regular_files
from sightline.contract.regular_files import JsonEntries, check_regular_file, parse_json, read_regular_file
from tests.cases import run_each


def test_a_plain_file_is_read_also_through_a_link(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"abc")
    link.symlink_to(path)
    assert [read_regular_file(path), read_regular_file(link)] == [b"abc", b"abc"]
    assert read_regular_file(path, max_bytes=3) == b"abc"
    assert check_regular_file(path) == 3


@pytest.mark.parametrize("kind", ["pipe", "device", "link to a device", "folder", "too large", "giant", "link"])
def test_anything_else_is_refused_unread(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    options: dict[str, object] = {}
    reason = "it is not a plain file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
        reason = "Is a directory"
    elif kind == "too large":
        path.write_bytes(b"abcd")
        options, reason = {"max_bytes": 3}, "it has 4 bytes, at most 3 are read"
    elif kind == "giant":
        with path.open("wb") as file:
            file.truncate(5 << 30)
        reason = "it has 5,368,709,120 bytes, at most 1,073,741,824 are read"
    else:
        path.symlink_to(tmp_path)
        options = {"allow_link": False}
    with pytest.raises(OSError, match=reason):
        read_regular_file(path, **options)  # type: ignore[arg-type]


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_regular_file(tmp_path / "file")


def test_a_file_that_the_memory_cannot_hold_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the free memory of the machine, or by a limit of the process, under which Python cannot take it."""
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 2**42)
    monkeypatch.setattr(Path, "read_bytes", mock.Mock(side_effect=MemoryError))
    for free in (2**41, 2**43):
        monkeypatch.setattr(regular_files, "_measure_free_memory", lambda free=free: free)
        with pytest.raises(OSError, match=r"its content takes 4,398,046,511,104 bytes, more than the memory"):
            read_regular_file(path, max_bytes=2**43)


def test_free_memory_is_that_of_the_machine() -> None:
    assert 0 < regular_files._measure_free_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@run_each("place", ["value", "key", "list"])
@run_each("code", ["d800", "dfff", "dc00", "DE00\\ud83d", "d83d\\ud83d\\ude00"])
def test_half_a_character_is_refused(code: str, place: str) -> None:
    half = json.loads(f'"a\\u{code}"')
    document = {"value": {"a": half}, "key": {half: 1}, "list": [[half]]}[place]
    for content in (text := json.dumps(document), text.encode(), json.dumps(document, ensure_ascii=False)):
        with pytest.raises(ValueError, match=r"text holds half a character, U\+D"):
            parse_json(content)
    with pytest.raises(ValueError, match="half a character"):  # as bytes that are no UTF-8
        parse_json(json.dumps(document, ensure_ascii=False).encode(errors="surrogatepass"))


def test_whole_characters_and_odd_bytes_of_names_are_read() -> None:
    for text in ("\U0001f600", "\udcff.png", "\\ud800", "\ud7ff", "\ue000"):
        for content in (json.dumps([text]), json.dumps([text]).encode()):
            assert parse_json(content) == [text]


def test_numbers_of_thousands_of_digits_are_refused() -> None:
    with pytest.raises(ValueError, match="a number has thousands of digits"):
        parse_json(f"[{'9' * 5000}]")
    assert parse_json(f"[{'9' * 400}, 1e400]") == [10**400 - 1, float("inf")]


def _read_entries(text: str) -> dict[str, object]:
    return {key: list(value) if isinstance(value, Iterator) else value for key, value in JsonEntries(text)}


@run_each(
    "text",
    [
        *("{}", ' {\n"a" : [ ] , "b":[1,[2],{"c":"]}"}],"d":{"e":[]},"f":null,"g":-1.5e3 }\n'),
        *('{"a":[NaN,"\\ud83d\\ude00"]}', "", "[]", "1", "{", '{"a"', '{"a":', '{"a":1', '{"a":[', '{"a":[1'),
        *('{"a":[1,', '{"a":[1,]}', '{"a":[,1]}', '{"a":1,}', '{"a":[1 2]}', '{"a" 1}', '{"a":1 "b":2}', '{"a":[]} 1'),
        *("{1:2}", '{"a":[01]}', '{"a":["\\ud800"]}', '{"a":["\\x"]}', '{"a":' + "[" * 300 + "]" * 300 + "}"),
        *('{"a":[' + "[" * 5000 + "]" * 5000 + "]}", '{"a":[' + "9" * 5000 + "]}"),
    ],
)  # fmt: skip
def test_entries_are_those_of_the_document(text: str) -> None:
    """Whatever is no JSON is refused, whichever way it is read, for the same reasons."""
    try:
        document = parse_json(text)
        assert isinstance(document, dict)
    except (AssertionError, ValueError):
        with pytest.raises(ValueError, match=r"Expecting|digits|deep|half|key|escape|Extra|delimiter"):
            _read_entries(text)
    else:
        assert repr(_read_entries(text)) == repr(document)


def test_entries_that_nobody_reads_are_passed_over_and_none_is_there_twice() -> None:
    assert [key for key, _ in JsonEntries('{"a":[1,2],"b":[3]}')] == ["a", "b"]
    with pytest.raises(ValueError, match="'a' is not a key, or is one twice"):
        _read_entries('{"a":[1],"a":[2]}')
