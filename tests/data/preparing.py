"""Preparations as the command line runs them, or killed on the way, names of samples, damage that files come with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sightline.contract import registry
from sightline.contract.errors import DataError
from tests.processes import run_program

Damage = Callable[[Path], object]
"""What is done to one file, or folder, of a source: a column of the tables of what is refused."""


def expect_progress(done: int, total: int, message: str) -> None:
    """A progress that checks its arguments."""
    assert 0 < done <= total
    assert message


def prepare_set(name: str, source: Path, target: Path, progress: Any = expect_progress, **options: Any) -> Any:
    """Prepare as the command line does, by the name of the set; its manifest."""
    builder = registry.data.get_entry(name).builder
    return builder.prepare(source=source, target=target, name=name, progress=progress, **options)


def kill_process(module: str, last: int, source: Path, target: Path) -> None:
    """Run `prepare` of a module in a process that is killed when its progress has come to `last`."""
    killed = run_program(
        f"import os, signal; from pathlib import Path; from {module} import prepare;"
        f"prepare(Path({str(source)!r}), Path({str(target)!r}),"
        f"progress=lambda done, total, message: os.kill(os.getpid(), signal.SIGKILL) if done == {last} else None)"
    )
    assert killed.returncode == -9, killed.stderr
    assert not target.exists()


def names_of(dataset: Any) -> list[str]:
    return [dataset.sample_name(index) for index in range(len(dataset))]


def read_files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir()}


def refuse(
    prepare: str | Callable[..., object],
    source: Path,
    message: str,
    *arguments: Any,
    is_list: bool = False,
    **options: Any,
) -> None:
    """An error of one line that names its place, or a list below such a line, and nothing at the target.

    `prepare` is the name of a set, or a function of source and target.
    """
    target = source.parent / "target"
    prepare = functools.partial(prepare_set, prepare) if isinstance(prepare, str) else prepare
    with pytest.raises(DataError, match=message) as caught:
        prepare(source, target, *arguments, **options)
    text = str(caught.value)
    assert "\n" not in text or (is_list and text.split("\n")[0].endswith("leave them out:"))
    assert str(source.parent) in text
    assert not target.exists()
    assert not target.with_name("target.partial").exists()


def flip_bit(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def cut(path: Path, *, by: int = 1) -> None:
    """Take the last bytes off a file."""
    path.write_bytes(path.read_bytes()[:-by])


def replace_line(number: int, line: str | Callable[[str], str] | None) -> Damage:
    """Replace a line, the first being 1, or change it; None cuts the file in front of it."""

    def damage(path: Path) -> None:
        lines = path.read_text().split("\n")
        new = line(lines[number - 1]) if callable(line) else line
        path.write_text("\n".join(lines[: number - 1] if new is None else [*lines[: number - 1], new, *lines[number:]]))

    return damage


def set_key(key: str, value: Any = None) -> Damage:
    """Set an array of an HDF5 file, or change it; without a value it is deleted."""

    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            new = value(file[key][...]) if callable(value) else value
            del file[key]
            if new is not None:
                file[key] = new

    return damage


def put(index: tuple[int, ...], value: float) -> Callable[[np.ndarray], np.ndarray]:
    """Set one value of an array."""

    def change(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return change


def list_other_notes(manifest: Any) -> list[str]:
    """The notes of a preparation, but those on small sets and copies, which tests of other matters write."""
    small = ("is not one of unseen", " more than once (", " classes have boxes in ")
    return [note for note in manifest["differences"] if not any(words in note for words in small)]
