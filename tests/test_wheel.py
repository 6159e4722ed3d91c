"""The wheel works where the checkout is not: its files, its configs, and a run in an empty folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from sightline.config import read_config
from sightline.config.shipped import copy_shipped, shipped_configs
from sightline.contract.errors import UserError
from tests.bare import list_modules_beside, write_bare_site
from tests.command import run_here, without_progress
from tests.doc_blocks import blocks_of
from tests.marks import long_but

ROOT = Path(__file__).resolve().parents[1]
BUILD = "from setuptools import build_meta as b; print(b.build_wheel('wheel'), b.build_editable('editable'))"
COMMANDS = """
import json, os, sys, warnings
import torch._dynamo  # of torch alone, once for both
commands, script = json.loads(sys.argv[1])
watched = os.fork()
if watched == 0:
    warnings.simplefilter("error")
    sys.stdout = open("watched.txt", "w")
    exec(script, {"__name__": "__main__"})
    print(sys.modules["sightline"].__file__, flush=True)
    os._exit(0)
assert os.waitpid(watched, 0)[1] == 0
from sightline.cli import main
for words in commands:
    sys.argv = ["sightline", *words]
    for stream in (sys.stdout, sys.stderr):
        print("$", *words, file=stream, flush=True)
    try:
        main()
    except SystemExit as ended:
        print("=", ended.code)
"""
"""Runs a script in a process that it forks, and then commands one after another in its own.

Both streams name each command, and the output ends with its exit code.
"""
NAME = "classify/synthetic_shapes_pointnet"
DEMO = "configs/classify/synthetic_shapes_pointnet.yaml"


def ran(*words: object, cwd: Path, **variables: str) -> str:
    environment = os.environ | {"PIP_NO_INDEX": "1", "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run([sys.executable, *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git holds of the package, in a folder that is called as the package: a build leaves files beside it."""
    folder = tmp_path_factory.mktemp("above") / "sightline"
    for name in ("sightline", "configs", "examples", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheels(clone: Path) -> tuple[Path, Path]:
    """The wheel and the editable one."""
    wheel, editable = ran("-c", BUILD, cwd=clone).split()[-2:]
    return clone / "wheel" / wheel, clone / "editable" / editable


@pytest.fixture(scope="module")
def installed(wheels: tuple[Path, Path]) -> Path:
    target = wheels[0].parents[2] / "installed"
    words = ("install", "--quiet", "--no-deps", "--no-compile", "--target", target, wheels[0])
    ran("-m", "pip", *words, cwd=target.parent)
    return target


def test_the_wheel_holds_every_file_of_the_package_the_configs_and_the_licence(wheels: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(wheels[0]) as archive:
        names = set(archive.namelist())
    files = [path for path in (ROOT / "sightline").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    files += [path for folder in ("configs", "examples") for path in (ROOT / folder).rglob("*.yaml")]
    files += [path for path in (ROOT / "examples" / "projects").rglob("*") if path.suffix in (".py", ".md")]
    inside = {path.relative_to(ROOT).as_posix() for path in files}
    expected = {name if name.startswith("sightline/") else f"sightline/shipped/{name}" for name in inside}
    assert expected - names == set()
    (licence,) = (name for name in names if name.endswith("/LICENSE"))
    assert ".dist-info/" in licence
    assert not any("__pycache__" in name for name in names)


def test_the_wheel_holds_no_tools_of_maintainers(wheels: tuple[Path, Path]) -> None:
    """Benchmarks and planted faults stay in the checkout."""
    with zipfile.ZipFile(wheels[0]) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in names} == {"sightline"}
    assert not [name for name in names if re.search("/bench|/faults/|planted|textbook", name)]


def test_with_torch_and_numpy_alone_it_computes_and_names_the_extra(installed: Path, tmp_path: Path) -> None:
    site = write_bare_site(tmp_path / "site", list_modules_beside("torch", "numpy"))
    environment = os.environ | {"PYTHONPATH": f"{installed}{os.pathsep}{site}"}
    code = (
        "import importlib, pkgutil, sys, sightline, sightline.layers, sightline.ops, torch\n"
        "for room in (sightline.ops, sightline.layers):\n"
        "    for module in pkgutil.walk_packages(room.__path__, room.__name__ + '.'):\n"
        "        if not module.name.endswith('.lane_types'):  # types of numba\n"
        "            importlib.import_module(module.name)\n"
        "cloud = torch.rand(1, 9, 3)\n"
        "assert sightline.ops.nearest_neighbours(cloud, num_neighbours=1).flatten().tolist() == [*range(9)]\n"
        "batch = torch.rand(8, 4), torch.arange(8) % 3\n"
        "model = torch.nn.Linear(4, 3)\n"
        "report = sightline.check(model, torch.nn.CrossEntropyLoss(), batch)\n"
        "assert report.is_sound and report.verdict, str(report)\n"
        "def told(action):\n"
        "    try:\n"
        "        action()\n"
        "    except ImportError as error:\n"
        "        (line,) = str(error).splitlines()\n"
        "        assert line.endswith(\": pip install 'sightline[workbench]'\"), line\n"
        "        return line.partition(' needs ')[0]\n"
        "def import_registry():\n"
        "    from sightline.contract import registry\n"
        "with sightline.watch(model):\n"
        "    model(batch[0]).sum().backward()\n"
        "assert told(lambda: sightline.load_run) == 'sightline.load_run'\n"
        "assert told(lambda: sightline.check('a.yaml')) == 'sightline.check of a config'\n"
        "assert told(import_registry) == 'sightline.contract'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in (("-m", "sightline"), ("-c", "from sightline.__main__ import main; main()")):
        done = subprocess.run([sys.executable, *words], env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith("error: the command sightline needs the packages 'pydantic', 'PyYAML', ")
        assert done.stderr.endswith(": pip install 'sightline[workbench]'\n")


TEST_SUITE = """
import sys

def test_nothing_is_imported_before_it_is_asked():
    assert "torch" not in sys.modules

def test_net(sightline_doctor):
    check(sightline_doctor, squash=False)

def test_what_is_intended(sightline_doctor):
    check(sightline_doctor, squash=True, declared=["double-softmax"])

def test_squashed_net(sightline_doctor):
    check(sightline_doctor, squash=True)

def test_loop(sightline_doctor):
    train(sightline_doctor, clears=True)

def test_loop_that_keeps_gradients(sightline_doctor):
    train(sightline_doctor, clears=False)

def test_an_error_of_the_loop_is_passed_on(sightline_doctor):
    try:
        with sightline_doctor.watch(build(squash=False)):
            raise KeyError("own")
    except KeyError:
        return
    raise AssertionError

def test_its_assertions_are_its_own():
    assert type(sys.modules["sightline.doctor.check"].__loader__).__name__ == "SourceFileLoader"

def build(squash):
    import torch
    from torch import nn
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3), *[nn.Softmax(1)] * squash)

def batches():
    import torch
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    return [*zip(inputs.split(16), inputs[:, :3].argmax(1).split(16))]

def check(doctor, squash, **more):
    from torch import nn
    assert doctor.check(build(squash), nn.CrossEntropyLoss(), batches(), **more).verdict

def train(doctor, clears):
    import torch
    model = build(squash=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with doctor.watch(model, optimizer=optimizer):
        for inputs, labels in batches():
            if clears:
                optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
"""


@pytest.mark.parametrize("options", long_but(["-p no:xdist"], ["-p no:xdist", "-n 2 --dist loadfile"]))
def test_any_test_suite_has_the_doctor_as_a_fixture(options: str, installed: Path, tmp_path: Path) -> None:
    """By the wheel beside torch, NumPy and pytest with its plugins alone; `-p no:sightline` leaves it out."""
    plugins = {point.dist.name for point in metadata.entry_points(group="pytest11") if point.dist is not None}
    site = write_bare_site(tmp_path / "site", list_modules_beside("torch", "numpy", "pytest", *plugins))
    environment = os.environ | {"PYTHONPATH": f"{installed}{os.pathsep}{site}"}
    (tmp_path / "test_nets.py").write_text(TEST_SUITE)

    def run(*words: str) -> str:
        command = (sys.executable, "-m", "pytest", "-q", "-rA", "--color=no", "test_nets.py", *words)
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True).stdout

    printed = run(*options.split())
    outcomes = sorted(re.findall(r"(?m)^(PASSED|FAILED|ERROR) test_nets.py::test_(\w+)", printed))
    assert len(outcomes) == 8, printed
    failed = [name for outcome, name in outcomes if outcome != "PASSED"]
    assert failed == ["loop_that_keeps_gradients", "squashed_net"], printed
    assert "Failed: [double-softmax error loss.double_softmax]" in printed
    assert re.search(r"Failed: \[gradients-kept error[^\n]*\nE +where: \S*test_nets.py:\d+", printed)
    assert "fixture 'sightline_doctor' not found" in run("-p", "no:sightline", "-k", "test_squashed_net")


def test_it_lists_copies_and_trains_in_an_empty_folder_without_any_extra(installed: Path, tmp_path: Path) -> None:
    """A recipe of each task: tests/long/test_bare_wheel.py."""
    site = write_bare_site(tmp_path / "site")
    small = ("data.train_size=24", "data.test_size=12", "train.steps=1", "--no-check")
    commands = (
        ("list", "configs"),
        ("copy", "classify/synthetic_shapes_pointnet"),
        ("train", NAME, *small, "--device", "cpu", "--out", "run"),
        ("train", DEMO, "log.tensorboard=true", "--out", "logged"),
    )
    (tmp_path / "examples").mkdir()
    shutil.copy(installed / "sightline" / "shipped" / "examples" / "any_loop.py", tmp_path / "examples")
    watching = blocks_of(ROOT / "docs" / "manual" / "check.md")[0].text
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps((commands, watching))],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{installed}{os.pathsep}{site}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    listed, copied, trained, refused = (told.splitlines()[1:] for told in f"\n{done.stdout}".split("\n$ ")[1:])
    assert [told[-1] for told in (listed, copied, trained, refused)] == [*["= 0"] * 3, "= 2"], done.stderr
    assert NAME in listed
    assert copied[:-1] == [DEMO, "configs/classify/_pointnet.yaml", "configs/classify/_classify.yaml"]
    assert json.loads((tmp_path / "run" / "final.json").read_text())["data"]["num_samples"] == 12
    assert without_progress(done.stderr.split("\n$ ")[-1].split("\n", 1)[1]) == (
        "error: log.tensorboard needs the package 'tensorboard': pip install 'sightline[tensorboard]'\n"
    )
    assert not (tmp_path / "logged").exists()
    *_, told, where = (tmp_path / "watched.txt").read_text().splitlines()
    assert told == "watch: 3 errors, 0 warnings, updates 96"
    assert Path(where).is_relative_to(installed)


def test_a_script_beside_a_clone_imports_the_package(wheels: tuple[Path, Path], clone: Path) -> None:
    """Not the clone's folder as an empty namespace, which Python finds before any import hook."""
    site = clone.parent / "site"
    with zipfile.ZipFile(wheels[1]) as archive:
        archive.extractall(site)
    (clone.parent / "script.py").write_text(
        f"import site; site.addsitedir({str(site)!r})\n"
        "import sightline; print(sightline.__version__, sightline.__file__)\n"
    )
    version, file = ran("-S", "script.py", cwd=clone.parent, PYTHONPATH="").split()
    assert (version, Path(file)) == ("0.1.0", clone / "sightline" / "__init__.py")


def test_every_listed_config_can_be_copied_with_what_it_needs(tmp_path: Path) -> None:
    configs = shipped_configs()
    assert len(configs) > 60
    assert not [config.path for config in configs if not config.description or Path(config.path).name.startswith("_")]
    for name in ("configs", "examples"):
        copy_shipped(name, tmp_path / "all")
    for config in configs:
        to = tmp_path / config.path.replace("/", "_")
        written, _ = copy_shipped(config.path, to)
        assert written[0] == to / config.path
        if config.path.startswith("configs/"):
            assert read_config(to / config.path) == read_config(tmp_path / "all" / config.path)
        else:
            assert {path.suffix for path in written} == {".yaml", ".py"}


@pytest.mark.parametrize("form", ["{}", "{}.yaml", "classify/{}", "./configs/classify/{}.yaml"])
def test_a_config_has_its_usual_names(tmp_path: Path, form: str) -> None:
    name = form.format("modelnet40_dgcnn")
    written, alike = copy_shipped(name, tmp_path)
    assert (written[0], alike) == (tmp_path / "configs/classify/modelnet40_dgcnn.yaml", [])
    assert copy_shipped(name, tmp_path) == ([], written)


def test_slips_are_one_line_and_nothing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no shipped config is called '\.\./README'"):
        copy_shipped("../README", tmp_path)
    changed = tmp_path / "configs" / "classify" / "_classify.yaml"
    changed.parent.mkdir(parents=True)
    changed.write_text("seed: 1\n")
    with pytest.raises(UserError, match=r"_classify\.yaml: is there already, and differs"):
        copy_shipped("modelnet40_dgcnn", tmp_path)
    assert list(changed.parent.iterdir()) == [changed]


@pytest.mark.parametrize("name", [NAME, DEMO, f"./{DEMO}", f"{NAME}.yaml", "synthetic_shapes_pointnet"])
def test_a_shipped_config_is_read_by_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any folder, unless a file of that name is there; a base may be such a name, too."""
    monkeypatch.chdir(tmp_path)
    expected = run_here("show", ROOT / DEMO).out
    done = run_here("show", name)
    assert (done.code, done.out) == (0, expected), done.err
    (tmp_path / "own.yaml").write_text(f"base: {name}\nseed: 7\n")
    assert read_config(Path("own.yaml")).seed == 7
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("seed: [")
    assert f"error: {Path(name)}:1: not valid YAML" in run_here("show", name).err


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("classify/synthetic_shape_pointnet", f"'{NAME}'"),
        ("synthetic_shapes_pointnet.yaml", f"'{NAME}'"),
        ("synthetic_shapes_dgcnn", "'classify/synthetic_shapes_dgcnn' or 'segment/synthetic_shapes_dgcnn'"),
    ],
)
def test_a_misspelt_name_is_answered_with_a_config(
    name: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_here("train", name)
    assert (done.code, done.err) == (2, f"error: {name}: no such file; did you mean {meant}?\n")
    assert run_here("view", "../classify/synthetic_shapes_pointnet", "--out", "never").code == 2
