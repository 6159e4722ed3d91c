"""Plants errors at places drawn by a seed, one at a time, and reports which of them the tests notice.

Use: tools/mutants.py --seed 42 --count 40 --tree FOLDER --out mutants.jsonl, where FOLDER is a checkout that
may be changed. Four kinds, as many of each: a comparison that takes or loses its bound, a sign, a normaliser (a divisor
larger by one, a sum for a mean), an index or bound off by one. The test files that import the module run first, then
those of its room, then all; the first failure ends a mutant.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOMS = ("areas", "ops", "layers", "engine", "parts", "doctor", "store", "config", "contract", "workbench")
KINDS = ("bound", "sign", "normaliser", "off_by_one")
_BOUNDS = {ast.Gt: ">=", ast.GtE: ">", ast.Lt: "<=", ast.LtE: "<"}
_NOT_NUMBERS = (ast.JoinedStr, ast.List, ast.Tuple, ast.ListComp, ast.Dict)


class Mutant(NamedTuple):
    """A place in a file and the text that replaces it; columns count bytes, as in `ast`."""

    file: str
    line: int
    column: int
    end_line: int
    end_column: int
    kind: str
    text: str


def list_mutants(tree: Path, rooms: Sequence[str] = ROOMS) -> dict[str, list[Mutant]]:
    """List all places of each kind in some rooms."""
    mutants: dict[str, list[Mutant]] = {kind: [] for kind in KINDS}
    for room in rooms:
        for path in sorted((tree / "sightline" / room).rglob("*.py")):
            source = path.read_text(encoding="utf-8")
            file = str(path.relative_to(tree))
            for node in ast.walk(ast.parse(source)):
                for kind, text in _mutate(node, source):
                    span = (node.lineno, node.col_offset, node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]
                    mutants[kind].append(Mutant(file, *span, kind, text))
    return mutants


def _mutate(node: ast.AST, source: str) -> Iterator[tuple[str, str]]:
    """Yield the kind and the new source of each error that fits a node."""

    def text(part: ast.AST) -> str:
        return f"({ast.get_source_segment(source, part)})"

    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _BOUNDS:
        yield "bound", f"{text(node.left)} {_BOUNDS[type(node.ops[0])]} {text(node.comparators[0])}"
    if isinstance(node, ast.BinOp) and not any(_is_text(side) for side in (node.left, node.right)):
        if isinstance(node.op, ast.Add | ast.Sub):
            yield "sign", f"({text(node.left)} {'-' if isinstance(node.op, ast.Add) else '+'} {text(node.right)})"
        if isinstance(node.op, ast.Div):
            yield "normaliser", f"({text(node.left)} / ({text(node.right)} + 1))"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "mean":
        arguments = ", ".join(ast.unparse(part) for part in (*node.args, *node.keywords))
        yield "normaliser", f"{text(node.func.value)}.sum({arguments})"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range" and node.args:
        arguments = ", ".join(ast.unparse(part) for part in node.args[1:])
        first = ast.unparse(node.args[0])
        yield "off_by_one", f"range({first} + 1, {arguments})" if arguments else f"range({first} - 1)"
    if isinstance(node, ast.Slice):
        bounds = [("" if bound is None else ast.unparse(bound)) for bound in (node.lower, node.upper)]
        for changed, bound in enumerate((node.lower, node.upper)):
            if isinstance(bound, ast.Constant) and type(bound.value) is int:
                yield "off_by_one", ":".join(str(bound.value + 1) if i == changed else b for i, b in enumerate(bounds))


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, _NOT_NUMBERS) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def plant(tree: Path, mutant: Mutant) -> str:
    """Replace the mutant's text in its file; return the file's text from before."""
    path = tree / mutant.file
    before = path.read_text(encoding="utf-8")
    lines = before.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    first = starts[mutant.line - 1] + mutant.column
    last = starts[mutant.end_line - 1] + mutant.end_column
    path.write_bytes(before.encode()[:first] + mutant.text.encode() + before.encode()[last:])
    return before


def find_tests(tree: Path, mutant: Mutant) -> list[list[str]]:
    """Return test files in the order in which they are tried: those that import the module, those of its room, all."""
    module = mutant.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    files = [path for path in sorted((tree / "tests").rglob("test_*.py")) if "long" not in path.parts]
    importing = [str(p) for p in files if module in p.read_text(encoding="utf-8")]
    room = tree / "tests" / mutant.file.split("/")[1]
    return [importing, [str(room)] if room.is_dir() else [], [str(tree / "tests")]]


def run_tests(tree: Path, tests: list[str], *, workers: int, limit_s: float) -> str | None:
    """Run tests until the first failure; return its name, "time" past the limit, or None if all passed."""
    words = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    if workers > 1:
        words += ["-n", str(workers), "--dist", "worksteal"]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    try:
        done = subprocess.run(
            words, cwd=tree, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        return "time"
    if done.returncode == 0:
        return None
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].split(" - ")[0] if failed else f"exit code {done.returncode}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--tree", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1, help="of the last step, all tests")
    parser.add_argument("--rooms", nargs="*", default=ROOMS, help="folders of the package in which errors are planted")
    parser.add_argument("--near", action="store_true", help="leave out the last step, all tests")
    options = parser.parse_args()
    generator = random.Random(options.seed)
    by_kind = list_mutants(options.tree, options.rooms)
    chosen = [m for kind in KINDS for m in generator.sample(by_kind[kind], options.count // len(KINDS))]
    done = [json.loads(line)["mutant"] for line in options.out.read_text().splitlines()] if options.out.exists() else []
    for mutant in chosen:
        if list(mutant) in done:
            continue
        start = time.monotonic()
        before = plant(options.tree, mutant)
        killer = None
        try:
            for tests in find_tests(options.tree, mutant)[: 2 if options.near else 3]:
                if tests and killer is None:
                    is_last = tests[0].endswith("/tests")
                    killer = run_tests(options.tree, tests, workers=options.workers if is_last else 1, limit_s=1800)
        finally:
            (options.tree / mutant.file).write_text(before, encoding="utf-8")
        row = {"mutant": list(mutant), "killed_by": killer, "seconds": round(time.monotonic() - start)}
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(  # noqa: T201
            f"{mutant.file}:{mutant.line} {mutant.kind} {mutant.text[:60]!r}: {killer or 'ALIVE'}", flush=True
        )


if __name__ == "__main__":
    main()
