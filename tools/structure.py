"""Prints the package's structure in numbers, or what a lint refuses.

    python tools/structure.py [COMMIT ...]                          figures, by default of the working tree
    python tools/structure.py --offenders openers sightline/engine  file:line: text, of one folder or file

Lines of code are counted without blank lines, comments and docstrings. Lints: openers, field_openers, functions,
classes (`tools/words.py`).
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import sys
import tarfile
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script sees its own folder alone

from tools import words

ROOT = Path(__file__).resolve().parents[1]
_LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
_HOOK = re.compile(r"\.register_(?:module_)?(?:full_)?(?:forward|backward)(?:_pre)?_hook\(")


def code_lines(text: str) -> int:
    """Lines with code on them."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                lines -= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(lines)


def figures(package: Path) -> dict[str, object]:
    """Name -> figure, of the package in a folder."""
    texts = {path: path.read_text() for path in package.rglob("*.py")}
    folders = Counter(str(path.parent.relative_to(package)) for path in texts)
    outside = {path: text for path, text in texts.items() if path.parts[-2:] != ("engine", "distributed.py")}
    return {
        "lines of code": sum(map(code_lines, texts.values())),
        "files": len(texts),
        "largest folders": ", ".join(f"{name} {count}" for name, count in folders.most_common(6)),
        "`is_first` outside engine/distributed.py": _count(outside.values(), re.compile(r"\.is_first\b")),
        "functions that build findings": _count(texts.values(), re.compile(r"-> Finding:|-> list\[Finding\]:")),
        "places that call Finding(": _count(texts.values(), re.compile(r"(?<![\w.])Finding\(")),
        "places that hang a hook on a model": _count(texts.values(), _HOOK),
        "members looked up by hasattr or getattr": _count(texts.values(), re.compile(r"\b(?:hasattr|getattr)\(")),
    }


def _count(texts: Iterable[str], pattern: re.Pattern[str]) -> int:
    return sum(len(pattern.findall(text)) for text in texts)


def _package_of(commit: str, folder: Path) -> Path:
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", commit, "sightline"], check=True, capture_output=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as held:
        held.extractall(folder, filter="data")
    return folder / "sightline"


def print_figures(commits: list[str]) -> None:
    for commit in commits or [""]:
        with tempfile.TemporaryDirectory() as folder:
            found = figures(_package_of(commit, Path(folder)) if commit else ROOT / "sightline")
        sys.stdout.write(f"{commit or 'working tree'}\n")
        for name, figure in found.items():
            sys.stdout.write(f"  {name}: {figure}\n")


def print_offenders(lint: str, folder: Path) -> None:
    """Print what a lint refuses below a folder, one a line, and their number."""
    offenders = sorted(words.LINTS[lint](words.parse_folder(folder)))
    sys.stdout.writelines(f"{offender}\n" for offender in offenders)
    sys.stderr.write(f"{len(offenders)} {lint}\n")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs="*", metavar="COMMIT or FOLDER")
    parser.add_argument("--offenders", choices=words.LINTS, help="list what this lint refuses")
    asked = parser.parse_args(arguments)
    if asked.offenders:
        for folder in asked.commits or ["sightline"]:
            print_offenders(asked.offenders, Path(folder))
    else:
        print_figures(asked.commits)


if __name__ == "__main__":
    main(sys.argv[1:])
