"""Tables as a terminal of some width shows them."""

from __future__ import annotations

import io
import re

import pytest

from sightline.verbs.output import show_table

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
