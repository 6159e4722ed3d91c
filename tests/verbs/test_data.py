"""What `data prepare` and `data info` print: counts by name, no hashes, nothing that has no answer."""

from __future__ import annotations

import json
import re
import resource
from pathlib import Path

import numpy as np

from sightline.verbs.data import list_options, list_preparable
from tests.command import run_here


def scans(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("box", "rod"):
        (folder / name).mkdir(parents=True)
        for index in range(5):
            np.save(folder / name / f"{index}.npy", rng.uniform(-1, 1, (40, 3)).astype(np.float32))
    return folder


def test_a_prepared_folder_is_told_in_few_lines(tmp_path: Path) -> None:
    to, document = tmp_path / "set", tmp_path / "prepared.json"
    words = ("up_axis=z", "num_points=32", "--json", document)
    made = run_here("data", "prepare", "cloud_folder", "--from", scans(tmp_path / "scans"), "--to", to, *words)
    assert made.code == 0, made.err
    known = run_here("data", "info", to)
    assert known.code == 0, known.err
    assert made.out.startswith("outcome: prepared\n")
    for text in (made.out, known.out):
        assert len(text.splitlines()) < 40
        assert not re.search(r"[0-9a-f]{64}", text)
        assert not re.search(r"(?m): *(None|\[\]|\{\})?$(?!\n +\S)", text), text
        counts = re.findall(r"(?m)^  \w+: box (\d+), rod (\d+)$", text)
        assert [sum(map(int, column)) for column in zip(*counts, strict=True)] == [5, 5]
    assert re.search(r"[0-9a-f]{64}", document.read_text())
    assert json.loads(document.read_text())["outcome"] == "prepared"


def test_names_of_classes_are_no_commands_to_the_terminal(tmp_path: Path) -> None:
    sources, to = scans(tmp_path / "scans"), tmp_path / "set"
    (sources / "box").rename(sources / "\u202ebox")
    (sources / "rod").rename(sources / "rod\n\x1b[31m")
    made = run_here("data", "prepare", "cloud_folder", "--from", sources, "--to", to, "up_axis=z", "num_points=32")
    assert made.code == 0, made.err
    for text in (made.out, made.err, run_here("data", "info", to).out):
        assert all(line.isprintable() for line in text.splitlines())
    assert re.search(r"train: rod\\n\\x1b\[31m \d, \\u202ebox \d", made.out)


def test_a_prepared_folder_is_verified_file_by_file(tmp_path: Path) -> None:
    to = tmp_path / "set"
    made = run_here("data", "prepare", "cloud_folder", "--from", scans(tmp_path / "scans"), "--to", to, "up_axis=z")
    assert made.code == 0, made.err
    done = run_here("data", "verify", to, "--json", tmp_path / "verified.json")
    assert (done.code, done.err) == (0, "")
    num_files = len(list(to.iterdir())) - 1  # the manifest answers for the others
    assert done.out == f"{to}: all {num_files} files are as they were written\n"
    assert json.loads((tmp_path / "verified.json").read_text()) == {"root": str(to), "num_files": num_files}
    path = to / "train.points.npy"
    content = bytearray(path.read_bytes())
    content[-2] ^= 4
    path.write_bytes(content)
    done = run_here("data", "verify", to)
    assert done.code == 2
    assert "train.points.npy: differs from what was written (SHA-256); prepare the set again" in done.err
    assert run_here("data", "verify", tmp_path / "scans").code == 2


def test_a_limit_on_the_size_of_a_file_is_one_line_and_the_same_command_goes_on(tmp_path: Path) -> None:
    words = ("data", "prepare", "cloud_folder", "--from", scans(tmp_path / "scans"), "--to", tmp_path / "set")
    words += ("up_axis=z", "num_points=1000")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        code, _, err = run_here(*words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 1
    line = err.splitlines()[-1]
    assert line.startswith(f"error: {tmp_path / 'set.partial'}: cannot write: File too large; raise the limit")
    assert "Traceback" not in err
    assert run_here(*words).code == 0


def test_the_help_of_prepare_lists_the_options_of_the_set() -> None:
    folder = run_here("data", "prepare", "cloud_folder", "--help").out.partition("Options of cloud_folder")[2]
    assert re.search(r"up_axis=VALUE +one of 'x', 'y', 'z'  \[required\]\n", folder)
    assert re.search(r"num_points=VALUE +a whole number, at least 1  \[default: 1024\]\n", folder)
    assert "source" not in folder
    assert "target" not in folder
    assert "min_views=VALUE" in run_here("data", "prepare", "views", "--help").out
    assert "faulty=VALUE" in run_here("data", "prepare", "--help", "yolo_txt").out


def test_the_help_of_prepare_lists_no_options_without_a_known_set() -> None:
    for words in ((), ("no_such_set",)):
        done = run_here("data", "prepare", *words, "--help")
        assert (done.code, "Options of" in done.out) == (0, False)
        assert "--from PATH" in done.out


def test_every_set_that_is_prepared_has_printable_options() -> None:
    for name in sorted(list_preparable()):
        title, rows = list_options((name,))
        assert name in title
        assert all(len(row) == 2 for row in rows)
