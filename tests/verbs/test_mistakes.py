"""Mistakes of an hour with the later verbs and the Python API: one line each, and nothing is written."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sightline.contract.errors import UserError
from tests.command import run_here
from tests.trained import trained_run
from tests.verbs.call_mistakes import CALLS, CallMistake
from tests.verbs.mistakes import MISTAKES

CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as it is after an hour: runs, one of them without weights, and files of all kinds."""
    folder = tmp_path_factory.mktemp("mistakes")
    for name in ("run", "bare", "cut", "damaged", "unfinished", "my run é"):
        shutil.copytree(trained_run("plain"), folder / name, symlinks=True)
    shutil.copytree(trained_run("detect"), folder / "detect", symlinks=True)
    shutil.rmtree(folder / "bare" / "checkpoints")
    (folder / "cut" / "config.yaml").write_text("model: [\n")
    weights = folder / "damaged" / "checkpoints" / "step_00000008" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    for name in ("two/a/1", "two/a/2"):
        shutil.copytree(folder / "bare", folder / name)
    (folder / "unfinished" / "facts.json").write_bytes(b"")
    (folder / "link").symlink_to("run")
    (folder / "loop").symlink_to("loop")
    shutil.copy(folder / "run" / "config.yaml", folder)
    for name in ("empty", "dir.onnx"):
        (folder / name).mkdir()
    for name, text in {"file.txt": "notes\n", "list.yaml": "- a\n"}.items():
        (folder / name).write_text(text)
    (folder / "bad.journal").write_text('{"op_code": 0}\n{"op_code": 0, "worker_id"{"op_code": 1}\n{"op_code": 2}\n')
    (folder / "list.json").write_text("[1]")
    (folder / "nan.json").write_text('[{"image_id": 1, "category_id": 1, "bbox": [NaN, 0, 1, 1], "score": 2}]')
    for name, content in {"net.onnx": b"junk" * 99, "lone.onnx": b"", "net.pt2": b"", "photo.png": b"no"}.items():
        (folder / name).write_bytes(content)
    (folder / "huge.onnx").touch()
    with open(folder / "huge.onnx.json", "wb") as file:
        file.truncate(2**40)
    np.save(folder / "few.npy", np.eye(4, 3))
    np.save(folder / "nan.npy", np.full((99, 3), np.nan))
    return folder


@pytest.fixture(scope="module")
def busy_port() -> Iterator[int]:
    """A port on which something listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def read_tree(folder: Path) -> dict[str, int]:
    """The size of each file below a folder, and of each folder itself none."""
    return {str(path): path.lstat().st_size * path.is_file() for path in folder.rglob("*")}


def test_predict_without_files_names_those_that_the_run_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    clouds = r"one cloud from each file \(\.npy \.npz .*\), or folders of them: sightline predict"
    for words, said in {
        (): r"Missing argument 'RUN\|FILE\.onnx': a run directory, .*; usage: .*predict ",
        ("run",): rf"no file is given; a run of the task 'classify' reads {clouds} run cloud\.npy$",
        ("my run é", "--csv", "a.csv"): rf"no file is given; .* {clouds} 'my run é' cloud\.npy$",
        ("detect",): r"'detect' reads one image from each file \(\.bmp .*: sightline predict detect image\.bmp$",
    }.items():
        line = run_here("predict", *words).err.strip().splitlines()[-1]
        assert re.search(said, line), line


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=[" ".join(words)[:50] for words, _ in MISTAKES])
def test_a_mistake_on_the_command_line_is_one_line(
    words: tuple[str, ...], said: str, folder: Path, busy_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    before = read_tree(folder)
    done = run_here(*(word.replace("PORT", str(busy_port)) for word in words))
    assert done.code == 2, done
    assert done.err.startswith("error: "), done.err
    assert done.err.count("\n") == 1, done.err
    assert re.search(said.replace("PORT", str(busy_port)), done.err), f"{said}\n{done.err}"
    assert not CONTROLS.search(done.err)
    assert read_tree(folder) == before


@pytest.mark.parametrize("mistake", CALLS, ids=[f"{each.function}-{each.said[:40]}" for each in CALLS])
def test_a_mistake_in_a_call_is_one_line(mistake: CallMistake, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    before = read_tree(folder)
    with pytest.raises(UserError, match=mistake.said) as caught:
        mistake.call()
    assert not CONTROLS.search(str(caught.value))
    assert read_tree(folder) == before
