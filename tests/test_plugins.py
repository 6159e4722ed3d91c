"""A user's own files: run once, blamed by their own line, recorded by hash."""

from __future__ import annotations

import json
import linecache
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sightline.config import read_config
from sightline.contract import registry
from sightline.contract.cell_plugins import describe_modules
from sightline.contract.errors import ConfigError, PluginError
from sightline.contract.own_parts import name_own_parts
from sightline.contract.plugins import Plugin, check_recorded, find_plugin, load_plugins
from sightline.contract.types import ComponentConfig
from tests.command import run_here
from tests.runs.small import TINY

MODEL = '''import sightline


@sightline.register.model("{name}")
def build(*, num_classes: int, width: int = {width}) -> None:
    """A model of the user. Source: {name} 2026, eq. 1."""
'''


@pytest.fixture(autouse=True)
def _own_parts() -> Iterator[None]:
    """What a test registers is gone after it; plugins of tests before it stay whole."""
    modules, places = set(sys.modules), [*sys.path]
    before = {kind: dict(each._entries) for kind, each in registry.REGISTRIES.items() if each.names()}
    yield
    for kind, entries in before.items():
        registry.REGISTRIES[kind]._entries = entries
    for name in [name for name in sys.modules if name.startswith("sightline_plugin_") and name not in modules]:
        del sys.modules[name]
    forget_modules()
    sys.path[:] = places


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def model(folder: Path, name: str = "mine", width: int = 3, file: str = "parts.py") -> Path:
    return write(folder / file, MODEL.format(name=name, width=width))


def refused(*paths: Path) -> str:
    with pytest.raises(PluginError) as error:
        load_plugins(paths)
    return str(error.value)


def test_parts_are_registered_and_known_by_their_file(tmp_path: Path) -> None:
    path = model(tmp_path)
    (plugin,) = load_plugins([path])
    entry = registry.models.get_entry("mine")
    assert (entry.source, entry.facts) == ("mine 2026, eq. 1.", ["num_classes"])
    assert find_plugin(entry.builder) == path
    assert find_plugin(registry.models.get_entry("dgcnn").builder) is None
    assert plugin.record() == {"path": str(path), "name": "parts.py", "sha256": plugin.sha256, "modules": {}}
    assert read_config(TINY, ["model={name: mine}"]).model.arguments == {"width": 3}


def test_without_it_the_name_is_unknown_and_the_option_named() -> None:
    with pytest.raises(
        ConfigError, match=r"no model is called 'zzz'; there are .*; (your own: |parts of your own need --)"
    ):
        read_config(TINY, ["model={name: zzz}"])
    assert (
        name_own_parts({"dgcnn": registry.models.get_entry("dgcnn").builder})
        == "parts of your own need --plugin FILE.py"
    )


def test_without_it_a_file_beside_the_config_that_defines_the_name_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its text is searched: it is not run, not even where it ends the program."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a b.py", "raise SystemExit\n" + MODEL.format(name="zzz", width=1))
    write(tmp_path / "other.py", "register.model('zz')")
    config = write(tmp_path / "sub" / "mine.yaml", TINY.read_text().replace("pointnet_plain, embedding: 16", "yyy"))
    write(tmp_path / "sub" / "net.py", "@sightline.register.model( 'yyy' )")
    write(tmp_path / "sub" / "folder.py" / "x", "")
    with pytest.raises(ConfigError, match=r"no model is called 'zzz'; a b\.py defines it: give --plugin 'a b\.py'$"):
        read_config(TINY, ["model={name: zzz}"])
    with pytest.raises(ConfigError, match=rf"called 'yyy'; {config.parent}/net\.py defines it: give --plugin "):
        read_config(config)
    with pytest.raises(ConfigError, match=r"no model is called 'zz\.'; there are"):
        read_config(TINY, ["model={name: zz.}"])


def test_what_runs_is_what_was_hashed_and_nothing_is_written_beside_it(tmp_path: Path) -> None:
    """No compiled copy, which could be stale: two files of one size in one second look alike to Python's cache."""
    load_plugins([model(tmp_path, width=3)])
    load_plugins([model(tmp_path, width=4)])
    assert registry.models.get_entry("mine").parameters["width"].default == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.py"]


def test_one_file_given_twice_runs_once(tmp_path: Path) -> None:
    path = write(tmp_path / "count.py", "import sys\nsys.counted = getattr(sys, 'counted', 0) + 1\n")
    (tmp_path / "link.py").symlink_to(path)
    try:
        assert len(load_plugins([path, tmp_path / "." / "count.py", tmp_path / "link.py"])) == 1
        assert sys.counted == 1  # type: ignore[attr-defined]
    finally:
        del sys.counted  # type: ignore[attr-defined]


def test_a_file_of_windows_runs_as_python_runs_it(tmp_path: Path) -> None:
    """With the mark of UTF-8 in front, which `python FILE` reads past, and line ends of two characters."""
    path = model(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    load_plugins([path])
    assert find_plugin(registry.models.get_entry("mine").builder) == path


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    said = refused(model(tmp_path / "a", name="one"), model(tmp_path / "b", name="two"))
    assert f"{tmp_path / 'a' / 'parts.py'} and {tmp_path / 'b' / 'parts.py'} have one name" in said


def test_two_plugins_may_not_share_a_part_of_one_name(tmp_path: Path) -> None:
    said = refused(model(tmp_path, file="one.py"), model(tmp_path, file="two.py"))
    assert "two.py:4: the model 'mine' is registered already, by sightline_plugin_one.build" in said


def test_a_built_in_name_is_refused_with_the_line(tmp_path: Path) -> None:
    assert "parts.py:4: the model 'dgcnn' is registered already, by sightline.areas.clouds.models.dgcnn" in refused(
        model(tmp_path, name="dgcnn")
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1\ndef broken(:\n", r"bad.py:2: invalid syntax"),
        ("import nothing_of_that_name\n", r"bad.py:1: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("def f():\n    return 1 / 0\n\n\nf()\n", r"bad.py:2: ZeroDivisionError: division by zero"),
        ("import json\njson.loads('{')\n", r"bad.py:2: JSONDecodeError: "),
        ("import sys\n\nsys.exit(3)\n", r"bad.py:3: ends the program; a plugin only defines parts"),
        ("raise ValueError('two\\nlines')\n", r"bad.py:1: ValueError: two lines"),
        ("raise KeyError\n", r"bad.py:1: KeyError: no message"),
        ("x = '\x00'\n", r"bad.py"),
        (MODEL.format(name="x", width=1).replace("*, ", ""), "every argument must be keyword-only and named"),
        (MODEL.format(name="x", width=1).replace(": int =", " ="), "annotate the argument 'width'"),
        (
            MODEL.format(name="x", width=1).replace("register.model", "register.models"),
            "no attribute 'models'; did you ",
        ),
        (MODEL.format(name="x", width=1) * 2, "the model 'x' is registered twice in this file, as build; keep one"),
        (
            "import sightline\n\n\n@sightline.register.loss\nclass Mine(sightline.Loss):\n    pass\n",
            'bad.py:4: a loss is registered by its name in configs; write @sightline.register.loss("NAME") above',
        ),
    ],
)
def test_what_fails_in_a_plugin_is_named_by_its_own_line(tmp_path: Path, text: str, expected: str) -> None:
    said = refused(write(tmp_path / "bad.py", text))
    assert said.startswith(f"--plugin {tmp_path}")
    assert expected in said
    assert "\n" not in said


def test_a_constructor_that_fails_is_named_by_its_own_line(tmp_path: Path) -> None:
    """But for ValueError, which states what a builder refuses."""
    text = """
import sightline
from torch import nn

@sightline.register.model("halves")
class Halves(sightline.Model):
    def __init__(self, *, width: int) -> None:
        self.half = 4 // width
        self.layer = nn.Linear(4, self.half)

    def forward(self, *, points):
        return points
"""
    load_plugins([write(tmp_path / "halves.py", text)])

    def build(width: int) -> str:
        with pytest.raises(ConfigError) as error:
            registry.models.build(ComponentConfig("halves", {"width": width}), facts={})
        return str(error.value)

    assert "halves.py:8: Halves cannot be made: ZeroDivisionError: integer division or modulo by zero (" in build(0)
    assert "halves.py:9: Halves cannot be made: AttributeError: " in build(2)
    assert build(2).endswith("; write super().__init__() first")
    with pytest.raises(ConfigError, match=r"no model is called 'zzz'; there are .*; your own: (.*, )?halves(, .*)?$"):
        registry.models.get_entry("zzz")


def test_annotations_may_name_a_class_inside_of_a_function(tmp_path: Path) -> None:
    """Which only Python itself, as it comes to them, can evaluate."""
    text = """
from typing import TypedDict
import sightline

def make(name):
    class Width(TypedDict):
        size: int

    def build(*, width: Width) -> None:
        pass

    sightline.register.model(name)(build)

make("local")
"""
    load_plugins([write(tmp_path / "local.py", text)])
    assert list(registry.models.get_entry("local").arguments) == ["width"]


def test_annotations_may_name_a_class_further_down(tmp_path: Path) -> None:
    """No file that Python imports as it is, but earlier versions took it, and runs were made with such files."""
    text = MODEL.format(name="early", width=1) + "def unused() -> Later: ...\nclass Later: pass\n"
    load_plugins([write(tmp_path / "later.py", text)])
    assert "early" in registry.models.names()


def test_a_plugin_runs_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PluginError, match="NameError: name 'missing' is not defined"):
        load_plugins([write(tmp_path / "typo.py", "print('here')\nmissing\n")])
    assert capsys.readouterr().out == "here\n"


RULE = """
from sightline.doctor.rules import rule
@rule("{code}", "{severity}", "{cause}", holds="it", do="that")
def own(run):
    return None
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"severity": "fatal"}, "there is no severity 'fatal'"),
        ({"cause": "data.bad"}, "there are no causes ['data.bad']"),
    ],
)
def test_a_rule_with_unknown_words_is_refused_by_its_line(tmp_path: Path, given: dict[str, str], expected: str) -> None:
    words = {"code": "own-words", "severity": "error", "cause": "data.split"} | given
    said = refused(write(tmp_path / "own.py", RULE.format(**words)))
    assert "own.py:3: rule 'own-words': " in said
    assert expected in said


def test_files_that_are_no_plugin(tmp_path: Path) -> None:
    (tmp_path / "latin.py").write_bytes(b"# \xfc\n")
    assert refused(tmp_path / "none.py") == f"--plugin {tmp_path / 'none.py'}: no such file; check the path"
    assert refused(tmp_path) == f"--plugin {tmp_path}: cannot be read: Is a directory"
    assert refused(tmp_path / "latin.py") == f"--plugin {tmp_path / 'latin.py'}: is not UTF-8 text (byte 2)"
    assert refused(write(tmp_path / "a.txt", "")) == f"--plugin {tmp_path / 'a.txt'}: is not a Python file (.py)"


def test_plugins_of_a_run_missing_and_changed_are_named(tmp_path: Path) -> None:
    path = model(tmp_path)
    recorded = [Plugin(path).record()]
    assert check_recorded(recorded, [Plugin(path)], run=tmp_path) == []
    moved = model(tmp_path / "elsewhere")
    assert check_recorded(recorded, [Plugin(moved)], run=tmp_path) == [], "the text counts, not the place"
    with pytest.raises(PluginError) as error:
        check_recorded(recorded, [], run=tmp_path)
    assert str(error.value) == f"{tmp_path}: was made with the plugin {path}; give it again: --plugin {path}"
    entries = [{"name": name, "path": name, "sha256": "0", "modules": {}} for name in ("a.py", "b b.py")]
    with pytest.raises(PluginError) as both:
        check_recorded(entries, [], run=tmp_path)
    assert str(both.value).endswith("with the plugins a.py, b b.py; give them again: --plugin a.py --plugin 'b b.py'")
    path.rename(path.with_suffix(".gone"))  # the run is on another machine now
    copy = write(tmp_path / "plugins" / "parts.py", "")
    with pytest.raises(PluginError, match=f"give it again: --plugin {copy}$"):
        check_recorded(recorded, [], run=tmp_path)
    (note,) = check_recorded(recorded, [Plugin(model(tmp_path, width=9))], run=tmp_path)
    assert note.startswith(f"plugin-changed: {path} is not what {tmp_path} was made with")
    assert str(tmp_path / "plugins" / "parts.py") in note


# --- modules beside a plugin -----------------------------------------------------------------------------------------

BESIDE = {
    "parts.py": "import beside\nimport lab.nets\nWIDTH = beside.WIDTH + lab.nets.WIDTH\n",
    "beside.py": "WIDTH = 1\n",
    "lab/__init__.py": "",
    "lab/nets.py": "from .layers import WIDTH\n",
    "lab/layers.py": "WIDTH = 2\n",
    "unused.py": "",
}


def beside(folder: Path, **changed: str) -> Path:
    """Write a plugin and the modules that it imports; return its path."""
    for name, text in BESIDE.items():
        write(folder / name, changed.get(Path(name).stem, text))
    return folder / "parts.py"


def width(path: Path) -> int:
    """Load a plugin; return the number that it computed from those of its modules."""
    load_plugins([path])
    total: int = sys.modules["sightline_plugin_parts"].WIDTH
    return total


def test_modules_beside_a_plugin_are_recorded_and_a_change_is_named(tmp_path: Path) -> None:
    path, run = beside(tmp_path), tmp_path / "run"
    (plugin,) = load_plugins([path])
    names = ["beside.py", "lab/__init__.py", "lab/layers.py", "lab/nets.py"]
    record = json.loads(json.dumps(plugin.record()))
    assert sorted(record["modules"]) == names
    assert plugin.files() == {name: BESIDE[name].encode() for name in ("parts.py", *names)}
    assert check_recorded([record], [plugin], run=run) == []
    layers = write(tmp_path / "lab" / "layers.py", "WIDTH = 5\n")
    assert check_recorded([record], [plugin], run=run) == [], "what was imported counts, not the file of today"
    forget_modules()
    (plugin,) = load_plugins([path])
    copy = run / "plugins" / "lab" / "layers.py"
    note = f"plugin-changed: {layers} is not what {run} was made with (its copy: {copy})"
    assert check_recorded([record], [plugin], run=run) == [note]
    for name in ("unused.py", "gone.py"):  # imported later then, in a function
        late = {**record, "modules": {name: "0"}}
        (note,) = check_recorded([late], [plugin], run=run)
        assert note.startswith(f"plugin-changed: {tmp_path / name} is not what"), note


def forget_modules() -> None:
    """Let the next import read the files again, as in another session."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("beside", "lab")]:
        del sys.modules[name]


def test_a_copy_of_a_plugin_imports_the_copies_of_its_modules(tmp_path: Path) -> None:
    """Also in a session that has imported those of the plugin, which imports its own again afterwards."""
    original, copy = beside(tmp_path / "here"), beside(tmp_path / "run" / "plugins")
    assert width(original) == 3
    beside(tmp_path / "here", beside="WIDTH = 10\n", layers="WIDTH = 20\n")
    assert width(copy) == 3
    assert width(original) == 30


def test_a_plugin_inside_of_a_package_and_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    write(tmp_path / "lab" / "__init__.py", "")
    write(tmp_path / "lab" / "beside.py", "WIDTH = 4\n")
    path = write(tmp_path / "lab" / "parts.py", "from lab import beside\nWIDTH = beside.WIDTH\n")
    (plugin,) = load_plugins([path])
    assert sorted(plugin.files()) == ["lab/__init__.py", "lab/beside.py", "parts.py"]
    for name, content in plugin.files().items():
        write(tmp_path / "run" / "plugins" / name, content.decode())
    record = plugin.record()
    write(tmp_path / "lab" / "beside.py", "WIDTH = 5\n")
    assert width(tmp_path / "run" / "plugins" / "parts.py") == 4
    (copy,) = load_plugins([tmp_path / "run" / "plugins" / "parts.py"])
    assert check_recorded([record], [copy], run=tmp_path) == []
    (plugin,) = load_plugins([path])
    assert "lab/beside.py is not what" in check_recorded([record], [plugin], run=tmp_path)[0]


def test_installed_packages_below_a_plugin_are_not_its_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, prefix in (("env/lib/python3/site-packages", sys.prefix), ("env", str(tmp_path / "env"))):
        monkeypatch.setattr(sys, "prefix", prefix)
        monkeypatch.syspath_prepend(str(write(tmp_path / folder / "lab" / "__init__.py", "WIDTH = 1\n").parents[1]))
        (plugin,) = load_plugins([write(tmp_path / "parts.py", "import lab\n")])
        assert "lab" in sys.modules
        assert plugin.modules() == {}
        forget_modules()


def test_two_plugins_with_modules_of_one_name(tmp_path: Path) -> None:
    """Equal ones are one to the run; of others it could keep only one."""
    first, second = (beside(tmp_path / name) for name in ("a", "b"))
    second = second.rename(second.with_name("more.py"))
    load_plugins([first, second])
    forget_modules()
    write(tmp_path / "b" / "beside.py", "WIDTH = 7\n")
    assert refused(first, second) == (
        f"--plugin: {tmp_path / 'a' / 'beside.py'} and {tmp_path / 'b' / 'beside.py'} have one name, and a run keeps "
        "them by name; rename one"
    )


def test_a_part_that_a_module_beside_a_plugin_registers(tmp_path: Path) -> None:
    """A run keeps it: nobody has to import it again."""
    beside(tmp_path, beside=MODEL.format(name="mine", width=3) + "WIDTH = 1\n")
    (plugin,) = load_plugins([tmp_path / "parts.py"])
    assert "beside.py" in plugin.digests()
    assert describe_modules({"mine"}) == []


def test_repeating_a_run_asks_for_its_plugins(tmp_path: Path) -> None:
    """`show RUN` and `train RUN/config.yaml` know what the run was made with."""
    path = model(tmp_path)
    load_plugins([path])
    from sightline.config import render_config

    run = tmp_path / "run"
    write(run / "config.yaml", render_config(read_config(TINY, ["model={name: mine}"]), origins=False))
    entry = {"path": str(path), "name": "parts.py", "sha256": "0", "modules": {}}
    write(run / "environment.json", json.dumps({"plugins": [entry]}))
    for given in (run, run / "config.yaml"):
        code, _, err = run_here("show", given)
        assert (code, err) == (2, f"error: {run}: was made with the plugin {path}; give it again: --plugin {path}\n")
        code, out, err = run_here("show", given, "--plugin", path)
        assert code == 0
        assert 'name: "mine"' in out
        assert err.startswith(f"warning: plugin-changed: {path}")


def test_tracebacks_show_the_plugin_s_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.py", "def f():\n    raise ValueError('here')  # this very line\n")
    load_plugins([path])
    with pytest.raises(ValueError, match="here") as error:
        sys.modules["sightline_plugin_bad"].f()
    entry = error.traceback[-1]
    assert "this very line" in linecache.getline(str(entry.path), entry.lineno + 1)
