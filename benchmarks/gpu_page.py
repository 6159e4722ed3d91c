"""Tables of docs/inside/gpu_queue.md from the lines of docs/results/gpu/results.jsonl."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.gpu_jobs import NETWORKS, TRAININGS
from benchmarks.gpu_operators import SHAPES
from benchmarks.gpu_steps import RECIPE_STEPS, ROOT
from benchmarks.marked_pages import with_block

RESULTS = ROOT / "docs" / "results" / "gpu" / "results.jsonl"
PAGE = ROOT / "docs" / "inside" / "gpu_queue.md"
BEGIN, END = "<!-- tables of benchmarks/gpu_page.py -->", "<!-- end of the queue -->"
NOT_RUN = "not run yet"

Line = Mapping[str, Any]


def newest_on_gpu(results: Sequence[Line]) -> dict[str, Line]:
    """Return for each job its last line of a GPU, one without an error where there is one."""
    newest: dict[str, Line] = {}
    for line in results:
        if line["card"] != "cpu" and ("error" not in line or "error" in newest.get(line["job"], {"error": ""})):
            newest[line["job"]] = line
    return newest


def write_page(results: Sequence[Line]) -> None:
    """Write the tables between the marks of the page."""
    block = "\n\n" + "\n".join(list_rows(results)) + "\n\n"
    PAGE.write_text(with_block(PAGE.read_text(), start=BEGIN, end=END, block=block))


def list_rows(results: Sequence[Line]) -> Iterator[str]:
    """List the lines of the page: tables of what was measured, and one sentence where nothing was."""
    lines = newest_on_gpu(results)
    if not lines:
        yield "The queue has not run on a GPU yet."
    for number, (header, rows) in enumerate(_list_tables(lines)):
        measured = [row for row in rows if NOT_RUN not in row]
        if measured:
            yield from ([""] if number else [])
            yield from (header, "|" + "---|" * (header.count("|") - 1), *measured)
    if lines:
        places = {f"{line['card']}, {line['commit']}, torch {line['torch']}" for line in lines.values()}
        yield from ("", "; ".join(sorted(places)))


def _list_tables(lines: Mapping[str, Line]) -> Iterator[tuple[str, list[str]]]:
    """Iterate over the tables: header and rows."""
    rows = []
    for step in RECIPE_STEPS:
        figures = _figures(lines, f"step {step.name}", "ms", "launches", "data_share")
        job = f"tf32 {step.name}"
        rounded = _figures(lines, job, "ms")[0] if job in lines else None
        bars = (step.max_ms, figures[1], step.max_launches, figures[2])
        commit = lines.get(f"step {step.name}", {}).get("commit")
        rows.append(_row(f"`{step.recipe}`, {step.size}", figures[0], rounded, *bars, commit))
    yield "| step, samples | ms | in tf32 | at most | launches | at most | waits for data | commit |", rows
    rows = []
    for shape in filter(lambda shape: shape.has_kernel, SHAPES):
        ms, plain, bits = _figures(lines, f"operator {shape.name}", "ms", "plain_ms", "equal_bits")
        rows.append(_row(f"`{shape.operator}`, {shape.label}", ms, shape.max_ms, plain, bits))
    yield "| operator | ms | at most | plain form, ms | bits |", rows
    rows = [_row(name, *_figures(lines, f"textbook {name}", "ours_ms", "textbook_ms")) for name in NETWORKS]
    yield "| network, textbook form beside it | ms | textbook, ms |", rows
    rows = [
        _row("host, microseconds an operator", _figures(lines, "host", "add_")[0]),
        _row("recipes with 20 steps without a wait", _count(lines, "waits ")),
        _row("recipes with the same bits twice, `strict`", _count(lines, "strict ")),
        _row("3D boxes on GPU and CPU, largest difference", *_figures(lines, "boxes3d on both", "difference")),
    ]
    yield "| other | measured |", rows
    rows = []
    for name in TRAININGS:
        names = ("best_overall_accuracy", "best_epoch", "last_overall_accuracy", "last_epoch", "seconds", "words")
        rows.append(_row(f"`classify/{name}`", *_figures(lines, f"training {name}", *names)))
    yield "| training | best on test | after epoch | last | after epoch | seconds | with |", rows


def _figures(lines: Mapping[str, Line], job: str, *names: str) -> list[Any]:
    line = lines.get(job, {"error": NOT_RUN})
    if "figures" in line:
        return [line["figures"].get(name) for name in names]
    return [line["error"], *[None] * (len(names) - 1)]


def _count(lines: Mapping[str, Line], kind: str) -> str:
    of_kind = [line for job, line in lines.items() if job.startswith(kind)]
    good = [line for line in of_kind if line.get("figures", {}).get("equal_bits", "figures" in line)]
    return f"{len(good)} of {len(of_kind)}" if of_kind else NOT_RUN


def _row(*cells: Any) -> str:
    return "| " + " | ".join(map(_format, cells)) + " |"


def _format(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "equal" if cell else "differ"
    if isinstance(cell, str):
        return cell.replace("|", "/")
    return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
