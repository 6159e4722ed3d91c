"""The house rules that a program can check: imports point downward, files and functions stay small."""

from __future__ import annotations

import ast
import gc
import importlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from tests.marks import list_long_cases
from tests.processes import run_program

PACKAGE = Path(__file__).resolve().parents[1] / "sightline"
FILES = sorted(PACKAGE.rglob("*.py"))

# Rooms from the ground up: a room may import from those below it and from itself. What stands in one line is on one
# floor, where no room imports another. Nothing outside `areas` imports an area: registries find their parts by name.
FLOORS = """
contract commands ops config instrument
layers draw doctor
parts.boxes parts.losses parts.metrics parts.models parts.transforms
parts.tasks parts.voxels store.files
compression
store.box_fields store.computed_samples store.prepared store.loading store.scans store.streets
store.boxes store.cloud_preparation store.scene_preparation
store.boxes3d
published
runs
engine
workbench.predict workbench.evaluate
workbench.describe view workbench.probe workbench.compare
workbench.export
workbench.check workbench.serve
training
workbench.fit workbench.series
workbench.compress
workbench.weights
areas.clouds
areas.boxes3d areas.contrast areas.detect areas.pose areas.scans areas.scenes
verbs api register
cli
__main__ __init__
pytest_plugin
"""
FLOOR_OF = {room: floor for floor, line in enumerate(FLOORS.strip().splitlines()) for room in line.split()}
FOLDERS_OF_ROOMS = {"areas", "parts", "store", "workbench"}
"""Their own files hold a docstring and a table of names."""
MAX_FILES = 25
"""Of a folder."""

TORCH_LOAD = r"(?<!safetensors\.)torch\.load\("
"""Reads pickles, and a pickle is a program: two files alone may, with `weights_only=True`."""
READERS = ("published/files.py", "doctor/evidence/programs/saved.py")
FORBIDDEN = (
    r"\bimport pickle",
    r"yaml\.load\(",
    r"(?m)^\s*(import|from) (torchvision|timm)\b",
    r"\.cuda\(\)",
    r"\.to\(.cuda",
    TORCH_LOAD,
    r"\b(eval|exec)\(\"",
)
MAX_FILE_LINES = 600
MAX_BODY_LINES = 80
MAX_PARAGRAPHS = 2
"""Of a module's docstring: its first line is one of them."""
MAX_BODY_OF_ROOMS = {"doctor/rules": 30, "doctor/evidence": 60}


def module_of(path: Path) -> str:
    """The dotted name of a file below the package; a folder's own file is called as the folder."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """The room of a module: its longest beginning that stands on a floor."""
    parts = module.split(".")
    beginnings = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((beginning for beginning in beginnings if beginning in FLOOR_OF), parts[0])


MODULES = {module_of(path): path for path in FILES}


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    """Every file of the package, parsed once, by the worker that runs these tests alone."""
    gc.disable()  # a million new objects, none of them garbage: its searches take longer than the parser
    try:
        return {path: ast.parse(path.read_text()) for path in FILES}
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="module")
def imports(trees: dict[Path, ast.Module]) -> dict[str, dict[str, int]]:
    return {module: imports_of(trees[path]) for module, path in MODULES.items()}


def imports_of(tree: ast.Module) -> dict[str, int]:
    """Every module of the package that a file imports, also inside functions and for types alone, and the line."""
    found: dict[str, int] = {}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sightline":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("sightline.")]
        for name in names:
            module = name.removeprefix("sightline.")
            while module and module not in MODULES:
                module = module.rpartition(".")[0]
            if module:
                found.setdefault(module, node.lineno)  # type: ignore[attr-defined]
    return found


def test_imports_point_downward(imports: dict[str, dict[str, int]]) -> None:
    rooms = {module: room_of(module) for module in imports}
    unknown = set(rooms.values()) - FLOOR_OF.keys() - FOLDERS_OF_ROOMS
    assert not unknown, f"rooms without a floor: {unknown}"
    ground = 0
    upward = {
        (module, other): f"{module}:{line} imports '{other}'"
        for module, imported in imports.items()
        for other, line in imported.items()
        if rooms[other] != rooms[module] and {rooms[other], rooms[module]}.isdisjoint(FOLDERS_OF_ROOMS)
        if FLOOR_OF[rooms[other]] > FLOOR_OF[rooms[module]]
        or FLOOR_OF[rooms[other]] == FLOOR_OF[rooms[module]] > ground
        or (rooms[other].startswith("areas.") and not rooms[module].startswith("areas."))
    }
    assert not list(upward.values())


def test_operators_and_layers_need_nothing_of_the_workbench(imports: dict[str, dict[str, int]]) -> None:
    allowed = {
        "ops": {"ops", "contract.errors"},
        "layers": {"ops", "layers", "contract.errors"},
        "doctor": {"doctor", "instrument", "contract.errors", "contract.pytree"},
    }
    outside = [
        (module, other)
        for module, imported in imports.items()
        for other in imported
        if (room := module.split(".")[0]) in allowed
        if other not in allowed[room] and other.split(".")[0] not in allowed[room]
    ]
    assert not outside


def test_the_package_imports_nothing_of_the_checkout(trees: dict[Path, ast.Module]) -> None:
    """Textbook forms, tools and tests are not in a wheel."""
    outside = {"benchmarks", "tests", "tools"}
    nodes = [(path, node) for path, tree in trees.items() for node in ast.walk(tree)]
    imported = [(path, alias.name) for path, node in nodes if isinstance(node, ast.Import) for alias in node.names]
    imported += [(path, node.module or "") for path, node in nodes if isinstance(node, ast.ImportFrom)]
    assert not [(str(path), name) for path, name in imported if name.split(".")[0] in outside]


def test_no_files_import_each_other_in_a_circle(imports: dict[str, dict[str, int]]) -> None:
    assert list(circles(imports)) == []


def circles(imports: Mapping[str, Iterable[str]]) -> Iterator[list[str]]:
    """Groups of files that all import one another, by way of others or not."""
    reached = {module: set(imported) - {module} for module, imported in imports.items()}
    is_growing = True
    while is_growing:
        is_growing = False
        for module, others in reached.items():
            more = set().union(*(reached.get(other, set()) for other in others)) - others
            if more:
                reached[module] = others | more
                is_growing = True
    seen: set[str] = set()
    for module, others in reached.items():
        if module in others and module not in seen:
            group = sorted(other for other in others if module in reached.get(other, set()))
            seen.update(group)
            yield group


def test_circles_are_found() -> None:
    assert list(circles({"a": ["b"], "b": ["c"], "c": ["b", "d"], "d": []})) == [["b", "c"]]


def test_folders_files_and_functions_stay_small(trees: dict[Path, ast.Module]) -> None:
    counts = Counter(path.parent for path in FILES)
    large = {str(folder): count for folder, count in counts.items() if count > MAX_FILES}
    for path in FILES:
        text = path.read_text()
        if text.count("\n") > MAX_FILE_LINES:
            large[str(path)] = text.count("\n")
        for node in ast.walk(trees[path]):
            if isinstance(node, ast.FunctionDef):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                limits = (most for room, most in MAX_BODY_OF_ROOMS.items() if path.is_relative_to(PACKAGE / room))
                if (node.end_lineno or 0) - first.lineno >= next(limits, MAX_BODY_LINES):
                    large[f"{path}: {node.name}"] = (node.end_lineno or 0) - first.lineno
    assert not large


def count_paragraphs(text: str) -> int:
    """Number of paragraphs of prose: code, which is indented, and the items of a list belong to what is before them."""
    return sum(not re.match(r"    |[-*] |\d+\. ", paragraph) for paragraph in text.split("\n\n") if paragraph.strip())


def test_a_module_is_about_one_subject(trees: dict[Path, ast.Module]) -> None:
    """Its docstring says it in one paragraph, below one line that names it; details are at what they are about."""
    rooms = [PACKAGE / "doctor", PACKAGE / "workbench" / "check"]  # not yet
    texts = {path: ast.get_docstring(tree) or "" for path, tree in trees.items()}
    long = {path: count for path, text in texts.items() if (count := count_paragraphs(text)) > MAX_PARAGRAPHS}
    assert not {path: count for path, count in long.items() if not any(map(path.is_relative_to, rooms))}


def test_paragraphs_are_counted() -> None:
    assert count_paragraphs("A walk.\n\nIt has\ntwo lines.\n\n1. A list.\n2. Of two.\n\n    code\n\n    more\n") == 2


def names_bound_by(node: ast.stmt) -> list[str]:
    """Names that an assignment binds; none for any other statement."""
    if not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return []
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]


def words_read_by(tree: ast.Module) -> set[str]:
    """Names, attributes, imported names and texts of one word that a file reads."""
    words: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            words.add(node.id)
        elif isinstance(node, ast.Attribute):
            words.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            words.update(alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words.add(node.value)
    return words


def test_every_constant_is_read(trees: dict[Path, ast.Module]) -> None:
    """One of a module alone (`_NAME`, `logger`) there, any other somewhere in the package."""
    read = {path: words_read_by(tree) for path, tree in trees.items()}
    anywhere = set().union(*read.values()) | {"__all__"}
    unread = [
        f"{path}:{node.lineno} {name}"
        for path, tree in trees.items()
        for node in tree.body
        for name in names_bound_by(node)
        if name not in (read[path] if name.lstrip("_") != name != "__all__" or name == "logger" else anywhere)
    ]
    assert not unread


def stray_texts(tree: ast.Module) -> list[int]:
    """Lines of texts that describe nothing: each belongs right below the assignment of what it is about."""
    texts = []
    for owner in ast.walk(tree):
        body = getattr(owner, "body", None)
        if not isinstance(body, list):
            continue
        is_documented = isinstance(owner, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        for before, node in zip([None, *body], body, strict=False):
            is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if not is_text or not isinstance(node.value.value, str) or (before is None and is_documented):
                continue
            if before is None or not names_bound_by(before) or node.lineno != (before.end_lineno or 0) + 1:
                texts.append(node.lineno)
    return texts


def test_texts_stand_below_what_they_describe(trees: dict[Path, ast.Module]) -> None:
    assert not [f"{path}:{line}" for path, tree in trees.items() for line in stray_texts(tree)]


def test_stray_texts_are_found() -> None:
    sound = '"""Module."""\nA = 1\n"""Of A."""\n\n\nclass B:\n    """B."""\n\n    c: int\n    """Of c."""\n'
    assert stray_texts(ast.parse(sound)) == []
    assert stray_texts(ast.parse('"""Module."""\n\n"""Of what?"""\nA = 1\n"""Of A."""\n"""Of B."""\n')) == [3, 6]
    assert stray_texts(ast.parse('A = 1\n\n"""Apart."""\n')) == [3]


def test_tables_of_parts_hold_what_modules_register() -> None:
    """A name that no table has would never be imported; one that its module does not register could not be."""
    code = (
        "import importlib, pkgutil, sightline\n"
        "from sightline.contract.catalogue import find_modules, list_modules\n"
        "from sightline.contract.registry import REGISTRIES\n"
        "from sightline.doctor.rules import RULES\n"
        "for module in pkgutil.walk_packages(sightline.__path__, 'sightline.'):\n"
        "    if module.name != 'sightline.__main__':\n"
        "        importlib.import_module(module.name)\n"
        "for kind, registry in REGISTRIES.items():\n"
        "    registered = {name: entry.builder.__module__ for name, entry in registry._entries.items()}\n"
        "    assert registered == find_modules(kind), (kind, registered.items() ^ find_modules(kind).items())\n"
        "others = ('sightline.areas.', 'sightline.parts.', 'sightline.workbench.compress.')\n"
        "named = {rule.judge.__module__ for rule in RULES if rule.judge.__module__.startswith(others)}\n"
        "assert named == {*list_modules('rules')}\n"
    )
    done = run_program(code)
    assert done.returncode == 0, done.stderr


def test_the_engine_knows_no_task(imports: dict[str, dict[str, int]]) -> None:
    """Tasks and what wraps them, such as distillation, come from registries."""
    files = {module: names for module, names in imports.items() if room_of(module) == "engine"}
    assert files
    assert not [module for module, names in files.items() if "parts.tasks" in map(room_of, names)]


def test_processes_of_a_run_are_known_to_one_module_and_the_launcher() -> None:
    """The launcher drives torch's agent from the parent; the doctor reads processes of a user's own loop."""
    allowed = {"engine/distributed.py", "engine/launcher.py", "doctor/processes.py", "doctor/watch/ranks.py"}
    knowing = {str(p.relative_to(PACKAGE)) for p in FILES if "torch.distributed" in p.read_text()}
    assert knowing <= allowed | {"layers/batch_norm.py"}  # which only says in words that it does not import it


def test_only_one_module_knows_which_process_is_first() -> None:
    """What one process does for all goes through `rank_zero_only` and others of `World`."""
    asking = {str(p.relative_to(PACKAGE)) for p in FILES if re.search(r"\bis_first\b|world\.rank\b.*==", p.read_text())}
    assert not asking - {"engine/distributed.py"}


def forwards_of(tree: ast.Module) -> list[int]:
    """The lines that run a part of a task's forward pass: `task.prepare(`, `.losses(` or `.assess(`."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        call.lineno
        for call in calls
        if isinstance(call.func, ast.Attribute)
        if call.func.attr in ("losses", "assess")
        or (call.func.attr == "prepare" and ast.unparse(call.func.value).rpartition(".")[2].strip("_") == "task")
    ]


def test_only_one_module_runs_the_forward_pass_of_a_step(trees: dict[Path, ast.Module]) -> None:
    """prepare -> losses -> mean is written down in engine/step.py, so that nobody's copy of it can differ.

    A task that wraps another passes each call on to it.
    """
    running = {str(path.relative_to(PACKAGE)) for path, tree in trees.items() if forwards_of(tree)}
    assert running == {"engine/step.py", "parts/tasks/distillation.py"}


def test_forward_passes_are_found() -> None:
    step = "job.task.prepare(model, [batch], world)\nself._task.losses(model, batch, near)\n"
    assert forwards_of(ast.parse(step)) == [1, 2]
    assert forwards_of(ast.parse("data.prepare(source)")) == []


def test_only_one_module_builds_findings() -> None:
    """Guard, code and defaults come from `@check`; `merge` reads those of other processes."""
    building = {str(p.relative_to(PACKAGE)) for p in FILES if re.search(r"(?<![\w.])Finding\(", p.read_text())}
    assert building == {"doctor/finding.py", "doctor/rules/__init__.py"}


def test_only_one_module_opens_hdf5_files() -> None:
    """HDF5 makes up zeros and reads other files on request: array_files.py alone opens it, and refuses both."""
    importing = {str(p.relative_to(PACKAGE)) for p in FILES if re.search(r"(import|from) h5py", p.read_text())}
    assert importing == {"store/files/hdf5_files.py"}


def test_long_tests_can_be_imported() -> None:
    """`make test` does not collect them: a name that moved would be missed."""
    for path in sorted((PACKAGE.parent / "tests" / "long").glob("test_*.py")):
        with suppress(pytest.skip.Exception):  # a library that is not installed
            importlib.import_module(f"tests.long.{path.stem}")


def test_long_cases_are_tests_and_say_what_still_runs() -> None:
    for name, reason in list_long_cases().items():
        path, *_, test = name.partition("[")[0].split("::")
        assert f"def {test}(" in (PACKAGE.parent / "tests" / path).read_text(), name
        assert reason.strip(), name


def test_nothing_forbidden() -> None:
    """No pickle, no unsafe YAML, no torchvision or timm, no device moved to by name."""
    found = [
        f"{path}: {forbidden}"
        for path in FILES
        for forbidden in FORBIDDEN
        if (forbidden != TORCH_LOAD or path not in [PACKAGE / name for name in READERS])
        and re.search(forbidden, path.read_text())
    ]
    assert not found


def test_published_weights_are_read_without_running_them() -> None:
    """The converter, and the doctor for the files of a loop, never let torch unpickle them."""
    for name in READERS:
        calls = re.findall(r"torch\.load\([^)]*\)", (PACKAGE / name).read_text())
        assert len(calls) == 1, name
        assert "weights_only=True" in calls[0]
