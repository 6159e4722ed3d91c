"""Draws check.svg anew: .venv/bin/python docs/pictures/draw_check.py runs `sightline check` and draws its terminal."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ("check", "examples/faulty_net.yaml", "--plugin", "examples/faulty_net.py")
STYLES = {"error": "bold red", "warning": "bold yellow", "note": "dim"}


def main() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "sightline", *COMMAND], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 1, process.stderr
    console = Console(record=True, width=110, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ sightline {' '.join(COMMAND)}", style="bold green"))
    for line in (process.stdout + process.stderr).splitlines():
        console.print(_colour(line))
    svg = console.export_svg(title="layers in a plain list", unique_id="check")
    svg = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)  # fonts of another server
    svg = svg.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace")
    Path(__file__).with_name("check.svg").write_text(svg, encoding="utf-8")


def _colour(line: str) -> Text:
    finding = re.match(r"\[\S+ (error|warning|note) \S+\]", line)
    if finding:
        text = Text(line, style="dim" if finding[1] == "note" else "")
        text.stylize(STYLES[finding[1]], *finding.span())
        return text
    label = re.match(r"  (where|measured|expected|or|with it|do):", line)
    text = Text(line)
    if label:
        text.stylize("cyan", *label.span())
    return text


if __name__ == "__main__":
    main()
