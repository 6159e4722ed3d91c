"""Scripts that reproduce a diverging layer: with torch alone they end with 1; what cannot be written is said."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compare.test_command import SMALL, stranger
from tests.compare.test_command import compare as compare_plain
from tests.compare.test_faulty import PLUGIN, compare
from tests.processes import run_program

FILES = {"repro.json", "repro.py", "tensors.bin"}


ALONE = """
import os, runpy, sys
from importlib.abc import MetaPathFinder

class Refuse(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("sightline", "tests"):
            raise ImportError(name)

for name in [name for name in sys.modules if name.partition(".")[0] in ("sightline", "tests")]:
    del sys.modules[name]
sys.meta_path.insert(0, Refuse())
os.chdir(FOLDER)
runpy.run_path("repro.py", run_name="__main__")
"""


def run_script(folder: Path, *, is_forked: bool = True) -> tuple[int, str]:
    """Run a script in a process that has no sightline; its exit code, and what it printed.

    A forked one forgets what it has of sightline, and refuses to import it.
    """
    program = f"FOLDER = {str(folder)!r}{ALONE}"
    alone = [sys.executable, "-I", folder / "repro.py"]
    done = run_program(program) if is_forked else subprocess.run(alone, cwd=folder, capture_output=True, text=True)
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


def read_numbers(printed: str) -> tuple[float, float]:
    """The measured and the expected number of a line."""
    match = re.search(r"measured (\S+), expected (\S+)", printed)
    assert match is not None, printed
    return float(match[1]), float(match[2])


@pytest.mark.parametrize(
    ("model", "layer", "what", "holds"),
    [
        ("wrong_gradient_small", "second", "gradient of weight", {"_Spoilt", "spoil", "FACTOR", "WrongGradientLayer"}),
        ("wrong_result_small", "second", "result", {"spoil", "FACTOR", "WrongResultLayer"}),
        ("code_between_small", "second", "what head is given", {"spoil", "FACTOR", "Healthy", "CodeBetween"}),
    ],
)
def test_a_script_with_torch_alone_shows_both_numbers(
    model: str, layer: str, what: str, holds: set[str], tmp_path: Path
) -> None:
    folder = tmp_path / "repro"
    outcome, found = compare(tmp_path, model, "--against", "float64", "--steps", 0, "--repro", folder)
    assert outcome.code == 1, outcome.err
    assert (found["first"]["layer"], found["first"]["what"]) == (layer, what)
    assert {path.name for path in folder.iterdir()} == FILES
    text = (folder / "repro.py").read_text()
    assert not re.search(
        r"^\s*(import|from) (?!torch|__future__|abc|json|sys|collections|contextlib|functools|pathlib|typing)",
        text,
        re.M,
    )
    assert "sightline" not in text
    bound = {node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    assert holds - {"FACTOR"} <= bound
    code, printed = run_script(folder, is_forked=model != "wrong_gradient_small")
    measured, expected = read_numbers(printed)
    assert code == 1
    assert measured / expected == pytest.approx(1.001, rel=1e-5), "the planted factor"
    assert f"ends with 1: entry {printed.splitlines()[1].removeprefix('entry ')}" in outcome.err


def test_a_script_ends_with_0_once_the_layer_is_mended(tmp_path: Path) -> None:
    folder = tmp_path / "repro"
    compare(tmp_path, "wrong_result_small", "--steps", 0, "--repro", folder)
    text = (folder / "repro.py").read_text()
    assert text.count("FACTOR = 1.001") == 1
    (folder / "repro.py").write_text(text.replace("FACTOR = 1.001", "FACTOR = 1.0"))
    assert run_script(folder)[0] == 0


def test_a_layer_of_torch_beside_that_of_another_network(tmp_path: Path) -> None:
    """Two batch norms with two numbers: no class is written, and both are built from their attributes."""
    folder, path = tmp_path / "repro", stranger(tmp_path, EPSILON=1e-3)
    outcome, _ = compare_plain(tmp_path, *SMALL, "--against", path, "--steps", 0, "--repro", folder)
    assert outcome.code == 1
    code, printed = run_script(folder)
    assert code == 1
    assert printed.startswith("encode.2.norm (BatchNorm1d), result: float32 on cpu beside ")
    measured, expected = read_numbers(printed)
    assert 1 < measured / expected < 1.5, "a smaller epsilon divides by less"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("healthy_small", "--repro: nothing is written: no layer diverges by itself"),
        (
            "numpy_small",
            "cannot be written alone: sightline_plugin_faulty uses 'np' of numpy, and a script has torch alone",
        ),
        (
            "held_small",
            "alone does not show it: its attribute spoil holds a function, which no file of plain numbers can",
        ),
    ],
)
def test_what_is_not_written_is_said_in_one_line(model: str, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "repro"
    outcome, _ = compare(tmp_path, model, "--steps", 0, "--repro", folder)
    assert outcome.code == (model != "healthy_small"), outcome.err
    assert said in outcome.err.splitlines()[-1]
    assert not folder.exists()


def test_a_folder_that_is_not_empty_is_refused_before_anything_runs(tmp_path: Path) -> None:
    outcome, found = compare(tmp_path, "healthy_small", "--repro", PLUGIN.parent)
    assert (outcome.code, found) == (2, {})
    assert outcome.err == f"error: --repro {PLUGIN.parent}: is not an empty folder; give another\n"
