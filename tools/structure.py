"""Prints the package's structure in numbers, keeps them from rising, or lists what a lint refuses.

    python tools/structure.py [COMMIT ...]                          figures, by default of the working tree
    python tools/structure.py --offenders openers sightline/engine  file:line: text, of one folder or file
    python tools/structure.py --accept                              write lower figures to tests/structure.json
    python tools/structure.py --accept --issue 42 --budget 300      ... which may hold 300 more code lines, for issue 42

tests/test_layout.py compares the working tree with tests/structure.json: no figure may rise. `--accept` refuses a rise,
too, but for code lines within an issue's budget, and one file for each 100 of them; the issue is recorded.

Lines of code are counted without blank lines, comments and docstrings. Climbs are those of a walk (`tools/walk.py`).
Lints (`tools/words.py`): openers, field_openers, functions, classes.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script sees its own folder alone

from sightline.contract.gc_pause import gc_paused
from tools import walk, words

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "tests" / "structure.json"
LAYOUT_TEST = Path("tests") / "test_layout.py"
BUDGETED = ("code lines", "files")
LINES_PER_FILE = 100
"""An issue's budget of code lines allows one new file for so many of them, rounded up."""
MAX_NEW = 20
"""Offenders named in the line of a figure that rose."""
_HOOK = re.compile(r"register_\w*hook")
_MODE = re.compile(r"Torch\w*Mode")
_DEFINITIONS = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """A package's parsed files, with the floors of its rooms."""

    package: Path
    trees: Mapping[Path, ast.Module]
    floors: walk.Floors

    def module(self, path: Path) -> str:
        """Return the dotted name of a file below the package; a folder's own file is called as the folder."""
        return ".".join(path.relative_to(self.package).with_suffix("").parts).removesuffix(".__init__")


def read_source(root: Path = ROOT) -> Source:
    """Parse the package of a working tree."""
    package = root / "sightline"
    floors = walk.Floors.from_test((root / LAYOUT_TEST).read_text())
    with gc_paused():  # millions of new objects, none of them garbage: its searches take longer than the parser
        return Source(package, words.parse_folder(package), floors)


def count_code_lines(text: str, tree: ast.Module) -> int:
    """Count the lines with code on them; a text of several lines counts with all of its lines, unless it documents."""
    texts: set[int] = set()
    documentation: set[int] = set()
    for node in words.list_nodes(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) and (node.end_lineno or 0) > node.lineno:
            texts.update(range(node.lineno, (node.end_lineno or 0) + 1))
        if isinstance(node, _DEFINITIONS) and ast.get_docstring(node, clean=False) is not None:
            documentation.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(text.splitlines(), start=1)
    has_code = {number for number, line in lines if line.strip() and not line.lstrip().startswith("#")}
    return len((has_code | texts) - documentation)


def count_structure(source: Source) -> dict[str, int]:
    """Name -> figure, of those that may only fall."""
    classes = {
        name: {source.floors.room(source.module(path)) for path, _ in places}
        for name, places in words.classes_by_name(source.trees).items()
        if len(places) > 1
    }
    package = walk.Package({source.module(path): tree for path, tree in source.trees.items()})
    climbs = {
        f"climbs of {name}": walk.count_climbs(package.walk(starts), source.floors)
        for name, starts in walk.STARTS.items()
    }
    return {
        "code lines": sum(count_code_lines(path.read_text(), tree) for path, tree in source.trees.items()),
        "files": len(source.trees),
        **climbs,
        "files that hang hooks": len(list_hook_files(source.trees)),
        "class names with two meanings": len(classes),
        "class names with two meanings across rooms": sum(len(rooms) > 1 for rooms in classes.values()),
        "docstrings with a forbidden opener": _length(words.list_openers(source.trees)),
        "texts of fields with a forbidden opener": _length(words.list_field_openers(source.trees)),
        "functions with a forbidden name": _length(words.list_functions(source.trees)),
    }


def list_hook_files(trees: Mapping[Path, ast.Module]) -> list[Path]:
    """List the files that call a `register_*hook`, or name one of torch's modes (`TorchFunctionMode`)."""
    return [path for path, tree in trees.items() if any(map(_hangs_hook, words.list_nodes(tree)))]


LISTS: dict[str, Callable[[words.Trees], Iterable[words.Offender]]] = {
    "files": lambda trees: [words.Offender(path, 1, "") for path in trees],
    "files that hang hooks": lambda trees: [words.Offender(path, 1, "") for path in list_hook_files(trees)],
    "class names with two meanings": words.list_classes,
    "class names with two meanings across rooms": words.list_classes,
    "docstrings with a forbidden opener": words.list_openers,
    "texts of fields with a forbidden opener": words.list_field_openers,
    "functions with a forbidden name": words.list_functions,
}
"""Figure -> what it counts."""


def describe_structure(source: Source) -> dict[str, object]:
    """Name -> figure, of those that are only shown."""
    texts = {path: path.read_text() for path in source.trees}
    sizes = [count_code_lines(text, source.trees[path]) for path, text in texts.items()]
    folders = Counter(str(path.parent.relative_to(source.package)) for path in texts)
    outside = {path: text for path, text in texts.items() if path.parts[-2:] != ("engine", "distributed.py")}
    names = [offender.text.lstrip("_") for offender in words.list_functions(source.trees)]
    return {
        "code lines of the median file": int(statistics.median(sizes)),
        "files below 40 code lines": sum(size < 40 for size in sizes),
        "largest folders": ", ".join(f"{name} {count}" for name, count in folders.most_common(6)),
        "of the forbidden function names, `*_of`": sum(name.endswith("_of") and name[:3] != "of_" for name in names),
        "`is_first` outside engine/distributed.py": _count(outside.values(), re.compile(r"\.is_first\b")),
        "functions that build findings": _count(texts.values(), re.compile(r"-> Finding:|-> list\[Finding\]:")),
        "places that call Finding(": _count(texts.values(), re.compile(r"(?<![\w.])Finding\(")),
        "members looked up by hasattr or getattr": _count(texts.values(), re.compile(r"\b(?:hasattr|getattr)\(")),
    }


def list_rises(before: Mapping[str, int], now: Mapping[str, int]) -> list[str]:
    """List the figures that rose, or that nobody accepted."""
    return [name for name, figure in now.items() if figure > before.get(name, -1)]


def describe_rises(before: Mapping[str, int], now: Mapping[str, int], source: Source) -> list[str]:
    """Describe each figure that rose in one line, with what is new in it since the figures were last committed."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            last = _git("log", "-1", "--format=%H", "--", str(RECORD)).strip()
            old = read_source(_extract(last, Path(folder)))
        except (OSError, subprocess.CalledProcessError, ValueError):  # an archive, or a clone without that commit
            old = None
        lines = []
        for name in list_rises(before, now):
            new = list_new(name, old, source) if old else []
            more = [f"and {len(new) - MAX_NEW} more"] if len(new) > MAX_NEW else []
            lines.append(
                ": new in it: ".join([f"{name}: rose from {before.get(name, 0)} to {now[name]}", *_join(new, more)])
            )
    return lines


def list_new(name: str, old: Source, new: Source) -> list[str]:
    """List what a figure counts in a package and not in an older one: `path:line: text`, or files and their growth."""
    if name == "code lines":
        sizes = [_count_by_file(source) for source in (old, new)]
        growth = {path: size - sizes[0].get(path, 0) for path, size in sizes[1].items()}
        return [
            f"{path} +{growth[path]}" for path in sorted(growth, key=lambda path: -growth[path]) if growth[path] > 0
        ]
    if name not in LISTS:
        return []
    known = Counter((_relative(each.path, old), each.text) for each in LISTS[name](old.trees))
    found = []
    for each in sorted(LISTS[name](new.trees)):
        key = _relative(each.path, new), each.text
        known[key] -= 1
        if known[key] < 0:
            found.append(f"{key[0]}:{each.line}: {each.text}")
    return found


def accept(
    record: dict[str, Any], now: Mapping[str, int], *, issue: str | None, budget: int, why: str
) -> dict[str, Any]:
    """Return the record with the figures of now. Raises ValueError for a rise that no budget covers."""
    before: dict[str, int] = record.get("figures", {})
    rises = list_rises(before, now) if before else []
    features: list[dict[str, Any]] = record.get("features", [])
    if rises:
        spent = [feature for feature in features if feature["issue"] == issue]
        limits = {"code lines": budget, "files": -(-budget // LINES_PER_FILE)}
        for name in rises:
            rise = now[name] - before.get(name, now[name])
            total = rise + sum(feature[name] for feature in spent if name in BUDGETED)
            if issue is None or name not in BUDGETED or total > limits[name]:
                allowed = f"; issue {issue} may raise it by {limits[name]}" if issue and name in BUDGETED else ""
                raise ValueError(f"{name}: rose from {before.get(name, 'nothing')} to {now[name]}{allowed}")
        raised = {name: max(0, now[name] - before[name]) for name in BUDGETED}
        features = [*features, {"issue": issue, "budget": budget, "why": why, **raised}]
    return {"figures": dict(now), "features": features}


def _hangs_hook(node: ast.AST) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return _HOOK.fullmatch(node.func.attr) is not None
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return _MODE.fullmatch(name) is not None


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True).stdout


def _join(new: list[str], more: list[str]) -> list[str]:
    return [" | ".join([*new[:MAX_NEW], *more])] if new else []


def _relative(path: Path, source: Source) -> str:
    return path.relative_to(source.package.parent).as_posix()


def _count_by_file(source: Source) -> dict[str, int]:
    return {_relative(path, source): count_code_lines(path.read_text(), tree) for path, tree in source.trees.items()}


def _length(items: Iterable[object]) -> int:
    return sum(1 for _ in items)


def _count(texts: Iterable[str], pattern: re.Pattern[str]) -> int:
    return sum(len(pattern.findall(text)) for text in texts)


def _extract(commit: str, folder: Path) -> Path:
    """Write a commit's package and layout test into a folder, and return it."""
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", commit, "sightline", str(LAYOUT_TEST)], check=True, capture_output=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder


def print_figures(commits: list[str]) -> None:
    """Print the figures of commits, or of the working tree."""
    for commit in commits or [""]:
        with tempfile.TemporaryDirectory() as folder:
            source = read_source(_extract(commit, Path(folder)) if commit else ROOT)
            figures = {**count_structure(source), **describe_structure(source)}
        sys.stdout.write(f"{commit or 'working tree'}\n")
        sys.stdout.writelines(f"  {name}: {figure}\n" for name, figure in figures.items())


def print_offenders(lint: str, folder: Path) -> None:
    """Print what a lint refuses below a folder, one a line, and their number."""
    offenders = sorted(words.LINTS[lint](words.parse_folder(folder)))
    sys.stdout.writelines(f"{offender}\n" for offender in offenders)
    sys.stderr.write(f"{len(offenders)} {lint}\n")


def write_record(*, issue: str | None, budget: int, why: str) -> None:
    """Write the figures of the working tree to tests/structure.json."""
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    source = read_source()
    now = count_structure(source)
    try:
        record = accept(record, now, issue=issue, budget=budget, why=why)
    except ValueError as error:
        sys.exit("\n".join([f"not accepted: {error}", *describe_rises(record["figures"], now, source)]))
    RECORD.write_text(json.dumps(record, indent=2) + "\n")


def main(arguments: list[str]) -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it quietly
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="*", metavar="COMMIT or FOLDER")
    parser.add_argument("--offenders", choices=words.LINTS, help="list what this lint refuses")
    parser.add_argument("--accept", action="store_true", help="write the figures to tests/structure.json")
    parser.add_argument("--issue", help="the issue whose feature raises lines and files")
    parser.add_argument("--budget", type=int, default=0, help="code lines that the issue may add, all in all")
    parser.add_argument("--why", default="", help="what the lines are for; recorded")
    asked = parser.parse_args(arguments)
    if (asked.issue is None) != (asked.budget == 0) or (asked.issue and not asked.accept):
        parser.error("--issue and --budget go together, with --accept")
    if asked.accept:
        write_record(issue=asked.issue, budget=asked.budget, why=asked.why)
    elif asked.offenders:
        for folder in asked.places or ["sightline"]:
            print_offenders(asked.offenders, Path(folder))
    else:
        print_figures(asked.places)


if __name__ == "__main__":
    main(sys.argv[1:])
