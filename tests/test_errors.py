"""Messages of errors: one line, whatever the names in them are."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest

from sightline.contract.errors import ConfigError, DataError, MissingDataError, UserError, escape_to_one_line
from sightline.verbs.terminal import format_error
from tests.command import run_here
from tests.runs.small import PLAIN, ROOT, SMALL


def test_a_data_error_is_one_line() -> None:
    name = "a\nb\r\t\x1b[31m\u2028\u202e" + os.fsdecode(b"\xff.off")
    told = str(MissingDataError(f"{name}: is größer 点\u3000云"))
    assert told == r"a\nb\r\t\x1b[31m\u2028\u202e\udcff.off: is größer 点" + "\u3000云"
    assert told.encode()
    assert str(pickle.loads(pickle.dumps(DataError(told)))) == told
    assert escape_to_one_line("as it is") == "as it is"


def test_a_mistake_is_one_line_and_faults_of_a_config_are_one_each() -> None:
    assert str(UserError("a\nb.yaml: no such file")) == r"a\nb.yaml: no such file"
    assert str(ConfigError("one\x1b", "two")) == "one\\x1b\ntwo"


def test_a_machine_without_a_place_for_temporary_files_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """As a container whose root is read-only: what Python's `tempfile` raises there was a traceback."""
    raised = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/mnt']")
    assert format_error(raised) == 1
    said = "error: temporary files find no place, not in '/tmp', '/mnt'; set the variable TMPDIR to a folder that can"
    assert capsys.readouterr().err == f"{said} be written\n"


def test_a_batch_norm_with_one_value_is_one_line_before_a_run_without_checks(tmp_path: Path) -> None:
    """Forty-eight samples of training in batches of 47: the last batch has one. No folder is made for them."""
    words = ("train.batch_size=47", "--no-check", "--device", "cpu", "--out", tmp_path / "run")
    cuts = [cut for cut in SMALL if not cut.startswith("train.batch_size")]
    command = ("train", ROOT / "configs/classify/synthetic_shapes_pointnet.yaml", *cuts, *PLAIN, *words)
    done = run_here(*command)
    assert done.code == 2
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert line == (
        "error: command line: train.batch_size: step 1 cannot be taken: 48 training samples in batches of 47 make a "
        "batch of one sample; batch norm needs two samples: set train.tail=drop"
    )
    assert not (tmp_path / "run").exists()
    assert run_here(*command, line.rpartition(" set ")[2]).code == 0
