"""`sightline weights` beside `data convert`: what is a file of weights, and the line that names the right command."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.contract.errors import UserError
from sightline.verbs.weights import refuse_weights
from tests.command import refuse, run_here


def test_a_file_of_weights_is_sent_to_its_own_command(tmp_path: Path) -> None:
    for name in (
        "net.pth",
        "NET.PT",
        "net.safetensors",
        "model.1024.t7",
        "yolov3.weights",
        "darknet53.conv.74",
        "my net.pth",
    ):
        path = tmp_path / name
        path.write_bytes(b"")
        with pytest.raises(UserError) as refusal:
            refuse_weights(path, command="data convert")
        quoted = f"'{path}'" if " " in name else path
        assert str(refusal.value).endswith(f"make a run of them: sightline weights convert {quoted} --to DIR")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "segmentation_decoder").touch()
    with pytest.raises(UserError, match="parts holds weights"):
        refuse_weights(tmp_path / "parts", command="data convert")


def test_labels_and_folders_of_them_pass(tmp_path: Path) -> None:
    for name in ("labels.json", "annotation_train.odgt", "a.xml", "a.bin"):
        (tmp_path / name).touch()
        refuse_weights(tmp_path / name, command="data convert")
    for path in (tmp_path, tmp_path / "none.pth"):
        refuse_weights(path, command="data convert")


def test_help_lists_the_commands_where_trained_runs_are_used() -> None:
    section = run_here("--help").out.partition("Use:")[2].partition("Search:")[0]
    lines = [line.split()[:2] for line in section.splitlines()]
    assert [words for words in lines if words[:1] == ["weights"]] == [
        ["weights", n] for n in ("list", "fetch", "convert")
    ]


def test_a_file_in_the_place_of_a_command_is_told_how_to_be_converted(tmp_path: Path) -> None:
    file = tmp_path / "net.pth"
    file.touch()
    assert refuse("weights", file, "--to", "run") == (
        f"error: {file}: is no command; write: sightline weights convert {file}\n"
    )
