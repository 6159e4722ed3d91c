"""Records of a step by programs that know nothing of sightline: of NumPy, of plain torch, and hostile ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cases import run_each
from tests.command import Outcome, run_here
from tests.compare.test_command import SMALL, compare, stranger
from tests.doc_blocks import ROOT, blocks_of

PAGE = ROOT / "docs" / "reference" / "compare_records.md"
PROGRAM, COMMAND = blocks_of(PAGE)
WITHOUT_SIGHTLINE = "\nimport sys\nassert not {'sightline', 'torch'} & sys.modules.keys()\n"


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record that the page's program writes, in a process of its own."""
    folder = tmp_path_factory.mktemp("numpy")
    subprocess.run([sys.executable, "-I", "-c", PROGRAM.text + WITHOUT_SIGHTLINE], cwd=folder, check=True)
    return folder / "record"


def compare_with(record: Path, folder: Path, *words: object) -> tuple[Outcome, dict[str, Any]]:
    """Run the page's command on a record; its outcome, and what it wrote as JSON."""
    (line,) = COMMAND.commands()
    typed = [ROOT / w if w.startswith("examples/") else str(record) if w == "record" else w for w in line[1:]]
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    outcome = run_here(*typed, *words, "--json", result)
    return outcome, json.loads(result.read_text()) if result.exists() else {}


def test_the_step_of_plain_numpy_is_ours(record: Path, tmp_path: Path) -> None:
    outcome, found = compare_with(record, tmp_path)
    assert outcome.code == 0, outcome.err
    assert [(row["stage"], row["compared"], row["differ"]) for row in found["stages"]] == [
        ("inputs", 0, 0),
        ("forward", 4, 0),
        ("loss", 1, 0),
        ("gradients", 6, 0),
        ("weights after the step", 6, 0),
    ]
    assert {row["format"] for row in found["layers"]} == {"float32"}
    assert all(row["measured"] > 0 for row in found["layers"] if row["class"] == "Linear")


PLANTED = {
    "activation": ("np.maximum(hidden, 0)\n", "np.maximum(hidden, 0.05)\n", ("encode.1", "forward", "result")),
    "layout": ('active @ w["encode.2.weight"].T', 'active @ w["encode.2.weight"]', ("encode.2", "forward", "result")),
    "scale": ("/ 3, np.zeros", "/ 3.001, np.zeros", ("head.2", "backward", "gradient of weight")),
    "sum": (".mean()\n", ".sum()\n", ("(loss)", "loss", "result total")),
    "gradient": ("to_features.T @ active", "to_features.T @ hidden", ("encode.2", "backward", "gradient of weight")),
    "backward": (" * (hidden > 0)", "", ("encode.0", "backward", "gradient of weight")),
    "rate": ("np.float32(0.1)", "np.float32(0.1001)", ("encode.0", "update", "weight after the step")),
}
"""What is written in place of what, and the layer, pass and tensor that are named first."""
STAGE_NAMES = {"forward": "forward", "loss": "loss", "backward": "gradients", "update": "weights after the step"}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_bug_in_the_other_program_is_named(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after, named = PLANTED[bug]
    assert PROGRAM.text.count(before) == 1
    monkeypatch.chdir(tmp_path)
    exec(compile(PROGRAM.text.replace(before, after), bug, "exec"), {"__name__": "__main__"})
    outcome, found = compare_with(tmp_path / "record", tmp_path)
    assert outcome.code == 1
    first = found["first"]
    assert (first["layer"], first["pass"], first["what"]) == named
    assert f"the first stage that differs: {STAGE_NAMES[named[1]]}; they diverge first at {named[0]}" in outcome.err
    assert {row["pass"] for row in found["guilty"]} == {named[1]}, "the other stages follow from the record"


@pytest.mark.parametrize("has_input", [True, False])
def test_code_between_layers_shows_in_what_the_next_one_reads(
    has_input: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PROGRAM.text.replace("pooled = np.maximum(", "pooled = 1.001 * np.maximum(")
    if has_input:
        text = text.replace('("forward.head.2.out"', '("forward.head.2.in", pooled), ("forward.head.2.out"')
    monkeypatch.chdir(tmp_path)
    exec(compile(text, "pooled", "exec"), {"__name__": "__main__"})
    _, found = compare_with(tmp_path / "record", tmp_path)
    guilty = [(row["layer"], row["pass"], row["what"]) for row in found["guilty"] if row["pass"] == "forward"]
    assert guilty == [("head.2", "forward", "input" if has_input else "result")]


RENAMED = {"encode.0": "inner", "encode.1": "relu1", "encode.2": "outer", "head.2": "classes"}


def rename(record: Path, folder: Path, names: dict[str, str]) -> dict[str, np.ndarray]:
    """The arrays of a record under the program's own names of layers."""
    arrays = {}
    for file in record.iterdir():
        number, stage, name = file.stem.split(".", 2)
        for ours, theirs in names.items():
            name = theirs + name[len(ours) :] if name.startswith(f"{ours}.") else name
        arrays[f"{number}.{stage}.{name}"] = np.load(file)
    return arrays


def test_names_of_the_program_and_one_archive(record: Path, tmp_path: Path) -> None:
    path, keys = tmp_path / "record.npz", tmp_path / "keys.json"
    np.savez(path, **rename(record, tmp_path, RENAMED))
    outcome, found = compare_with(path, tmp_path)
    assert outcome.code == 0, outcome.err
    assert "guess: encode.1 (ReLU) = relu1, by order and shape" in found["notes"]
    assert any(note.startswith("guess: encode.2 = outer, the only one with bias (32,)") for note in found["notes"])
    keys.write_text(json.dumps(RENAMED))
    outcome, found = compare_with(path, tmp_path, "--keys", keys)
    assert outcome.code == 0, outcome.err
    assert not any(note.startswith("guess") for note in found["notes"])
    assert [row["compared"] for row in found["stages"]] == [0, 4, 1, 6, 6]


TORCH_PROGRAM = """
import os, runpy, sys
import numpy as np, torch
build, wrong, folder = sys.argv[1:]
torch.manual_seed(0)
net = runpy.run_path(build)["build"]().train()
points, label = torch.randn(8, 32, 3), torch.arange(8)
record, backward = [("inputs.points", points), ("inputs.label", label)], []
record += [("weights." + name, p.detach().clone()) for name, p in net.state_dict().items() if "num_batches" not in name]
def hang(name, layer):
    def keep(layer, inputs, output):
        record.append((f"forward.{name}.out", output.detach().clone()))
        output.register_hook(lambda g: backward.append((f"gradients.{name}.out", g.clone())))
    layer.register_forward_hook(keep)
for name, layer in net.named_modules():
    if not list(layer.children()): hang(name, layer)
if wrong == "backward":
    net.bns[2].register_full_backward_hook(lambda layer, given, made: (given[0] * 1.01,))
loss = torch.nn.functional.cross_entropy(net(points), label)
loss.backward()
record += [("loss.cross_entropy", loss.detach()), *backward]
record += [("gradients." + name, p.grad) for name, p in net.named_parameters()]
torch.optim.SGD(net.parameters(), 0.1).step()
record += [("after." + name, p.detach()) for name, p in net.state_dict().items() if "num_batches" not in name]
os.makedirs(folder)
for number, (name, value) in enumerate(record):
    np.save(f"{folder}/{number:04d}.{name}.npy", value.numpy())
assert "sightline" not in sys.modules
"""
PLAIN_STEP = ("optimizer={name: sgd, lr: 0.1, momentum: 0, weight_decay: 0}", "schedule={name: constant}")


@pytest.mark.parametrize(
    ("change", "wrong", "guilty"),
    [
        pytest.param({}, "nothing", [], marks=pytest.mark.long),
        (
            {"EPSILON": 1e-3},
            "backward",
            [
                ("encode.2.norm", "result"),
                ("encode.2.norm", "gradient of weight"),  # a sum of normalised values
                ("encode.2.norm", "gradient of input"),
            ],
        ),
    ],
)
def test_a_step_of_plain_torch_with_batch_norms_in_another_layout(
    change: dict[str, Any], wrong: str, guilty: list[tuple[str, str]], tmp_path: Path
) -> None:
    """Hooks write it; layers have other names, tensors are (B, C, N), and statistics after the step are compared."""
    words = [sys.executable, "-I", "-c", TORCH_PROGRAM, stranger(tmp_path, **change), wrong, tmp_path / "record"]
    subprocess.run(words, check=True)
    outcome, found = compare(tmp_path, *SMALL, *PLAIN_STEP, "--against", tmp_path / "record")
    assert outcome.code == bool(guilty), outcome.err
    assert [(row["layer"], row["what"]) for row in found["guilty"]] == guilty
    whats = {(row["layer"], row["what"]) for row in found["layers"]}
    assert {("encode.2.norm", "running_var after the step"), ("head.0.linear", "result")} <= whats
    assert [row["compared"] > 15 for row in found["stages"]] == [False, True, False, True, True]


def test_inputs_that_are_said_to_be_samples_here(record: Path, tmp_path: Path) -> None:
    """Of three samples that are not those of the record, the first stage is the data."""
    folder = tmp_path / "record"
    shutil.copytree(record, folder)
    np.save(folder / "0000.inputs.sample_index.npy", np.arange(3))
    outcome, found = compare_with(folder, tmp_path)
    assert outcome.code == 1
    assert (found["first"]["layer"], found["first"]["pass"]) == ("points", "inputs")
    assert "the first stage that differs: inputs; they diverge first at points, inputs, values" in outcome.err


def _save(name: str, values: Any) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / f"{name}.npy", values, allow_pickle=True)


def _cut(folder: Path) -> None:
    path = next(folder.glob("*.weights.encode.2.weight.npy"))
    path.write_bytes(path.read_bytes()[:-8])


def _remove(pattern: str) -> Callable[[Path], None]:
    return lambda folder: [path.unlink() for path in folder.glob(pattern)] and None


def _huge(folder: Path) -> None:
    with open(folder / "0099.weights.more.npy", "wb") as file:
        file.truncate(2**43)


HOSTILE: list[tuple[Callable[[Path], Any], str]] = [
    (_save("0050.forward.encode.0.weight", np.ones(3)), "forward.encode.0.weight names no tensor; write forward.LAYER"),
    (_save("notes", np.ones(3)), "'notes' is not a name of a record; use NUMBER.STAGE.NAME"),
    (_save("0050.forwards.encode.0.out", np.ones(3)), "stages are inputs, weights, forward, loss, gradients, after"),
    (
        _save("0050.inputs.colour", np.ones(3)),
        "inputs.colour: the batch has no such key; it has label, offsets, points",
    ),
    (_save("0050.inputs.points", np.ones(3)), "inputs.points is there twice; record one step"),
    (_save("0050.loss.focal", np.float32(3)), "loss.focal: the losses here are cross_entropy, total; use one of these"),
    (_save("0050.loss.cross_entropy", np.ones(3, np.float32)), "has the shape (3,); write a number"),
    (_save("0050.after.more", np.array([{}, "run me"])), "holds Python objects, which would run code when read"),
    (_save("0050.after.more", np.ones(3, complex)), "is complex128 with 1 axes; store real numbers of up to 8 bytes"),
    (_save("0050.weights.more", np.ones((5, 7))), "which tensors correspond: more (5, 7) of the reference"),
    (
        _save("0002.inputs.label", np.array([0, 1, 7])),
        "cannot compute the step on the record's inputs: RuntimeError: index 7 is",
    ),
    (_save("0002.inputs.label", np.array([0, 1, 0.5])), "inputs.label: holds fractions, and the batch has torch.int64"),
    (_cut, "encode.2.weight.npy: the array claims to be float32 (32, 32), 4096 bytes, and 4088 follow"),
    (_huge, "bytes, more than the memory that is free"),
    (lambda folder: (folder / "notes.txt").touch(), "notes.txt: is no array of a record; move it elsewhere"),
    (lambda folder: os.mkfifo(folder / "0098.after.more.npy"), "0098.after.more.npy: is not a regular file"),
    (_remove("*.inputs.*"), "the record has no inputs; write them as NUMBER.inputs.NAME"),
    (_remove("*.inputs.label.npy"), "the record has no inputs.label, which the step reads; write it"),
    (_remove("*.weights.head.2.bias.npy"), "head.2.bias (3,) of the model"),
    (_remove("*.npy"), "holds no arrays of a record; write files named NUMBER.STAGE.NAME"),
]


@run_each("change, said", HOSTILE)
def test_a_damaged_record_is_one_line(
    change: Callable[[Path], Any], said: str, record: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    shutil.copytree(record, folder / "record")
    change(folder / "record")
    outcome, found = compare_with(folder / "record", folder)
    assert (outcome.code, found) == (2, {})
    assert said in outcome.err.splitlines()[-1], outcome.err


@pytest.mark.parametrize(("word", "value"), [("--steps", "2"), ("--samples", "2"), ("--repro", "new")])
def test_options_that_say_nothing_beside_a_record(word: str, value: str, record: Path, tmp_path: Path) -> None:
    outcome, _ = compare_with(record, tmp_path, word, value)
    assert outcome.code == 2
    assert outcome.err.endswith(f"--against with a record: does not go with {word}; leave one of them out\n")


def test_an_archive_that_is_none_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "record.npz"
    path.write_bytes(b"PK\3\4 no archive")
    outcome, _ = compare_with(path, tmp_path)
    assert outcome.code == 2
    assert "record.npz: the archive cannot be read" in outcome.err.splitlines()[-1]
