"""The documentation is true where a program can tell: commands, tables and quoted files. Links: test_site.py."""

from __future__ import annotations

import importlib.util
import re
import runpy
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

import sightline
from benchmarks import command as benchmarks
from benchmarks import gpu
from sightline.cli import app
from sightline.contract.registry import REGISTRIES
from sightline.engine.records import EvaluationRecord, StepRecord, average_records, evaluation_scalars
from tests.cases import run_each
from tests.command import built_once
from tests.doctor import __main__ as doctor

ROOT = Path(__file__).resolve().parents[1]
PARSERS = {"benchmarks": benchmarks.parse, "benchmarks.gpu": gpu.parse, "tests.doctor": doctor.parse}
"""Parsers of the programs of a checkout; a wrong word raises SystemExit."""
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_REFERENCE_PAGES = sorted((ROOT / "docs" / "reference").glob("[!d]*.md"))  # without the data sets
REFERENCE = "\n".join(page.read_text() for page in _REFERENCE_PAGES)


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    """docs/tables.py, which writes tables from the code."""
    spec = importlib.util.spec_from_file_location("docs_tables", ROOT / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")  # as for a program there
        spec.loader.exec_module(module)
    return module


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    joined = [re.sub(r"\\\n\s*", "", block) for block in blocks(page, "sh")]
    lines = [line.split("#")[0].strip() for block in joined for line in block.splitlines()]
    return [line for line in lines if line]


# --- pictures and notebooks -------------------------------------------------------------------------------------------


def test_every_picture_is_made_by_the_command_and_shown() -> None:
    folders = {"docs/pictures": ("*.png", "*.svg"), "docs/results/report": ("*",), "docs/manual/notebooks": ("*",)}
    files = [path for folder, ends in folders.items() for end in ends for path in (ROOT / folder).glob(end)]
    makers = runpy.run_path(str(ROOT / "docs" / "pictures" / "make.py"))["MAKERS"]
    assert {path.relative_to(ROOT).as_posix() for path in files} == makers.keys()
    text = "\n".join(page.read_text() for page in PAGES)
    assert [path.name for path in files if f"{path.parent.name}/{path.name})" not in text] == []


# --- pages and quotes ------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_pages(text: str) -> list[str]:
    """The `docs/...` paths of a text that lead nowhere, or to a heading that the page lacks."""
    named = {name.rstrip(".-/") for name in re.findall(r"(?<![\w/])docs/[\w./-]+(?:#[\w-]+)?", text)}
    pages = {name: name.partition("#")[::2] for name in sorted(named)}
    return [
        name
        for name, (path, anchor) in pages.items()
        if not (ROOT / path).exists() or (anchor and anchor not in anchors(ROOT / path))
    ]


def test_pages_that_the_package_names_exist() -> None:
    """Messages, docstrings and data files of the package send their readers to pages by path."""
    files = [
        path for path in (ROOT / "sightline").rglob("*") if path.suffix in {".py", ".json", ".yaml", ".html", ".js"}
    ]
    broken = {str(path.relative_to(ROOT)): broken_pages(path.read_text()) for path in files}
    assert {path: pages for path, pages in broken.items() if pages} == {}


def test_broken_pages_are_found() -> None:
    text = (
        "see docs/manual/train.md, docs/gone.md: docs/inside/how_to_add.md#a-test (docs/inside/how_to_add.md#a-guest)."
    )
    assert broken_pages(text) == ["docs/gone.md", "docs/inside/how_to_add.md#a-guest"]


@pytest.mark.parametrize("name", ["my_metric.py", "my_plugin.py", "my_transform.py", "my_plugin.yaml"])
def test_the_plugin_in_the_docs_is_the_tested_file(name: str) -> None:
    language = "python" if name.endswith(".py") else "yaml"
    assert (ROOT / "examples" / name).read_text() in blocks(ROOT / "docs" / "manual" / "own_parts.md", language)


def test_the_plugins_are_as_short_as_is_said() -> None:
    plugin, metric = (read_lines(ROOT / "examples" / f"my_{name}.py") for name in ("plugin", "metric"))
    assert sum(not line.startswith(("import ", "from ")) for line in plugin) <= 60
    assert len(metric) <= 1 + 10  # with its first line, which is of the file


def read_lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.strip()]


# --- commands --------------------------------------------------------------------------------------------------------


def parsed(words: list[str]) -> dict[str, Any]:
    """The parameters of a command line, without running it; typer raises for a verb or option that there is not."""
    command: Any = built_once(app)
    while hasattr(command, "commands"):
        context = command.make_context("sightline", list(words), resilient_parsing=True)
        given = [*context._protected_args, *context.args]  # with the verb that a group fills in
        _, command, words = command.resolve_command(context, given)
        assert command is not None, f"there is no verb '{given[0]}'"
    return command.make_context("sightline", list(words)).params


@run_each("page", PAGES)
def test_commands_exist(page: Path) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for line in commands(page):
        words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
        if words[0] == "make":
            assert words[1] in targets, line
        elif words[1:2] == ["-m"] and words[2] in PARSERS:
            PARSERS[words[2]](words[3:])
        elif words[0].split("/")[-1] == "sightline":
            parameters = parsed(words[1:])
            files = [parameters.get("config"), *(parameters.get("plugins") or [])]
            missing = [
                str(f) for f in files if str(f).startswith(("configs/", "examples/")) and not (ROOT / f).exists()
            ]
            assert missing == [], line


@run_each("page", PAGES)
def test_python_of_the_pages_compiles(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")


# --- the reference ---------------------------------------------------------------------------------------------------


def test_tables_of_the_reference_follow_from_the_code(tables: ModuleType) -> None:
    """All commands, options, keys, rules, members and functions are in them, as docs/tables.py lists them."""
    stale = [
        name for name, page in tables.PAGES.items() if tables.with_table(name, page.read_text()) != page.read_text()
    ]
    assert stale == [], "run .venv/bin/python docs/tables.py"


def test_every_verb_and_option_is_in_the_reference() -> None:
    """As typer has them, from which the tables are not written."""
    group: Any = typer.main.get_command(app)
    verbs = {name: command for name, command in group.commands.items() if not hasattr(command, "commands")}
    for title, within in group.commands.items():
        verbs |= {f"{title} {name}": command for name, command in getattr(within, "commands", {}).items()}
    missing = [verb for verb in verbs if f"| `{verb} " not in REFERENCE and f"| `{verb}`" not in REFERENCE]
    for verb, command in verbs.items():
        options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
        missing += [f"{verb} {option}" for option in options if f"`{option}" not in REFERENCE]
    assert missing == []


def test_a_table_without_its_end_is_not_written(tables: ModuleType) -> None:
    text = tables.PAGES["formats"].read_text().replace("<!-- end of formats -->", "")
    with pytest.raises(AssertionError, match="lost a mark"):
        tables.with_table("formats", text)


def test_configs_that_a_page_names_exist() -> None:
    """Whole paths, and names whose beginning is left out."""
    shipped = [str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")]
    for page in PAGES:
        for name in re.findall(r"(?<![\w/])(configs/\w+/\w+\.yaml|\.\.\._\w+\.yaml)", page.read_text()):
            ending = name.removeprefix("...")
            assert any(path == name or (ending != name and path.endswith(ending)) for path in shipped), (
                f"{page}: {name}"
            )


def test_the_readme_states_the_number_of_configs() -> None:
    """Those that were measured on a GPU, as the page of these figures has them, and those of the folder."""
    stated = re.search(r"first losses of (\d+) of the (\d+) configs on a GPU", (ROOT / "README.md").read_text())
    measured = re.search(r"first step of all (\d+) recipes", (ROOT / "docs/results/gpu.md").read_text())
    assert stated is not None
    assert measured is not None
    configs = [path for path in (ROOT / "configs").rglob("*.yaml") if not path.name.startswith("_")]
    assert (int(stated[1]), int(stated[2])) == (int(measured[1]), len(configs))


def test_every_kind_and_public_name_is_in_the_reference() -> None:
    public = [f"sightline.{name}" for name in sightline.__all__]
    names = [*public, *sightline.metrics.__all__, *REGISTRIES]
    missing = [name for name in names if not re.search(rf"`{re.escape(name)}\b", REFERENCE)]
    assert missing == []


def test_every_kind_is_in_the_table_of_parts() -> None:
    page = (ROOT / "docs" / "manual" / "own_parts.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|") and "@sightline.register." in line]
    kinds = [name for name, add in vars(sightline.register).items() if hasattr(add, "__self__")]
    assert {getattr(sightline.register, kind).__self__ for kind in kinds} == {*REGISTRIES.values()}
    missing = [kind for kind in kinds if not any(re.search(rf"\b{kind}\b", row) for row in rows)]
    assert missing == []
    (metric,) = (row for row in rows if "register.metric(" in row)
    assert "higher_is_better" in metric, "a metric without a direction needs evaluate.mode"


def test_every_key_of_metrics_jsonl_is_in_the_reference() -> None:
    seconds = dict.fromkeys(("data", "transfer", "prepare", "forward", "backward", "optimise"), 0.0)
    step = StepRecord(1, 1, 0, 1, 1, {"total": 0.0}, 0.0, 0.0, seconds, 0.0)
    evaluation = EvaluationRecord(1, 0, "validation", {}, {}, 0.0, 1, is_best=False)
    keys = {"step", "epoch", "split", "time_s", *average_records([step]), *evaluation_scalars(evaluation)}
    assert [key for key in sorted(keys) if f"`{key}`" not in REFERENCE] == []
