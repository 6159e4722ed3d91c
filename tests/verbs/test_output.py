"""Tables as a terminal of some width shows them."""

from __future__ import annotations

import io
import re
from typing import ClassVar

import pytest

from sightline.verbs.output import print_note, show_evaluation, show_table

COLUMNS = ("module", "class", "outputs", "parameters")
ROWS = [["encode", "LinearNormMax", "3x1024", "131,584"], ["  a_long_name.of.a.layer.deep.inside", "Linear", "", ""]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    show_table("net", COLUMNS, ROWS, unbroken="module", droppable=("class", "outputs"))
    return re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()


def test_a_wide_terminal_shows_every_column(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(120, monkeypatch)
    assert lines[0] == "net"
    assert all(name in lines[2] for name in COLUMNS)


@pytest.mark.parametrize(("width", "dropped"), [(64, ("class",)), (53, ("class", "outputs"))])
def test_a_narrow_terminal_drops_the_first_columns_and_breaks_no_name(
    width: int, dropped: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest name has 36 characters, so module and parameters need 39 + 13 + 1 = 53, outputs 10 more."""
    text = "\n".join(lines := shown(width, monkeypatch))
    assert f"(the terminal is too narrow for: {', '.join(dropped)})" in " ".join(text.split())
    assert [name for name in COLUMNS if not any(name in line for line in lines if line.startswith("┃"))] == [*dropped]
    assert "a_long_name.of.a.layer.deep.inside" in text
    assert "131,584" in text


def test_yardsticks_of_a_data_set_stand_below_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    class Room:
        yardsticks: ClassVar = {"miou": {"the majority class": 0.02, "a forest": 0.417}}

    document = {
        "selection": "validation-selected",
        "per_class": {},
        "data": {"num_samples": 1},
        "metrics": {"miou": 0.5},
    }
    show_evaluation(document, title="a run", dataset=Room())
    assert "to compare miou with: 0.020 for the majority class, 0.417 for a forest" in capsys.readouterr().err


def test_names_of_files_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither as markup and emoji, nor in more than one line, nor as commands to the terminal."""
    show_table("files", ("file",), [["[bold]a.npy"], [":smile:.npy"], ["[/red].npy"], ["a\nb\x1b[31m\udcff.npy"]])
    told = capsys.readouterr().out
    told.encode()
    for name in ("[bold]a.npy", ":smile:.npy", "[/red].npy", r"a\nb\x1b[31m\udcff.npy"):
        assert f" {name} " in told


def test_names_of_classes_are_no_commands_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    classes = {"a\nb\x1b[31m": 0.25, "\u202eevil": 0.5}
    document = {
        "selection": "last",
        "per_class": {},
        "hard_classes": {"figure": "accuracy", "classes": classes},
        "data": {"num_samples": 1},
        "metrics": {"accuracy": 0.5},
    }
    show_evaluation(document, title="a run")
    print_note("line 1\nline 2 \x1b[31m")
    printed = capsys.readouterr().err.splitlines()
    assert r"hardest classes by accuracy: a\nb\x1b[31m (0.25), \u202eevil (0.5)" in printed
    assert printed[-2:] == ["line 1", r"line 2 \x1b[31m"]


def test_a_note_is_escaped_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_note("two\nlines\x1b[31m")
    assert capsys.readouterr().err == "two\nlines\\x1b[31m\n"
