"""Checkpoints: round trips to the bit, and damage or harm found wherever it is."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sightline.contract.errors import CheckpointError
from sightline.runs.checkpoint import Snapshot, enclosing_run, load, newest_valid, resolve, rewind, save
from sightline.runs.snapshots import OtherFormatError
from tests.cases import run_each
from tests.engine.snapshots import assert_same, bits, snapshot_of

FILES = ["model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json", "manifest.json"]


def reseal(folder: Path, **changes: Any) -> None:
    """Write a manifest that vouches for whatever is in the folder: what an attacker can do."""
    names = [name for name in FILES[:-1] if (folder / name).is_file()]
    files = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in ((name, (folder / name).read_bytes()) for name in names)
    }
    body = {"format_version": 1, "files": files} | changes
    sealed = body | {"sha256": hashlib.sha256(json.dumps(body, indent=1).encode()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(sealed, indent=1) + "\n")


def edit_state(folder: Path, **changes: Any) -> None:
    document = json.loads((folder / "state.json").read_text()) | changes
    (folder / "state.json").write_text(json.dumps(document))
    reseal(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path, snapshot_of(7), keep_last=2, is_best=False)


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_every_kind_of_tensor_comes_back_to_the_bit(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
        "bool": torch.tensor([True, False, True]),
        "int64": torch.tensor([2**63 - 1, -(2**63)]),
        "bfloat16": torch.randn(5).bfloat16(),
        "float16": torch.randn(5).half(),
        "float64": torch.tensor([math.pi, -0.0, 5e-324, math.inf]),
        "nan": torch.tensor([0x7FC01234, -4194303], dtype=torch.int32).view(torch.float32),
        "uint8": torch.arange(256, dtype=torch.uint8),
        "complex": torch.randn(3, dtype=torch.complex64).conj(),
        "transposed": base.t(),
        "strided": base[::2, 1::2],
        "expanded": torch.tensor([3.0]).expand(4),
        "overlapping": base[1:],
        "same storage, other shape": base.reshape(24),
        "é / ümlaut": torch.ones(1),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    snapshot = Snapshot(step=0, model=tensors, optimizer={}, ema=None, state={})
    found = load(save(tmp_path, snapshot, keep_last=1, is_best=False))
    expected = {name: bits(tensor.detach().resolve_conj()) for name, tensor in tensors.items()}
    assert {name: bits(tensor) for name, tensor in found.model.items()} == expected
    assert found.ema is None
    assert not any(tensor.requires_grad for tensor in found.model.values())


def test_plain_values_come_back_exactly(tmp_path: Path) -> None:
    state = {
        "floats": [0.1, 1e-300, -0.0, math.inf, -math.inf],
        "betas": (0.9, 0.999),
        "big": 2**70,
        "text": "a\nb \u2028 \x00 é",
        "none": None,
        "flags": {"yes": True, "no": False},
        "nested": {"": {"step": 3}},
    }
    found = load(save(tmp_path, Snapshot(1, {}, {}, None, state | {"nan": math.nan}), keep_last=1, is_best=False)).state
    assert math.isnan(found.pop("nan"))
    assert found == state | {"betas": [0.9, 0.999]}
    assert math.copysign(1, found["floats"][2]) == -1


def test_tied_tensors_are_stored_once_and_tied_again(folder: Path) -> None:
    stored = (folder / "model.safetensors").read_bytes()
    header = json.loads(stored[8 : 8 + int.from_bytes(stored[:8], "little")])
    assert sorted(header) == ["running_mean", "seen", "weight"]
    model = load(folder).model
    assert model["tied"].data_ptr() == model["weight"].data_ptr()


@pytest.mark.parametrize(
    "broken",
    [
        {"model": {"a": [1.0]}},
        {"model": {"encoder._orig_mod.weight": torch.ones(1)}},
        {"state": {"value": torch.ones(1)}},
        {"state": {1: "key"}},
        {"state": {"a": {"non_finite": "nan"}}},
        {"step": -1},
    ],
)
def test_what_cannot_be_kept_is_refused_and_leaves_nothing_that_counts(tmp_path: Path, broken: dict[str, Any]) -> None:
    whole = {"step": 1, "model": {}, "optimizer": {}, "ema": None, "state": {}}
    with pytest.raises(AssertionError):
        save(tmp_path, Snapshot(**(whole | broken)), keep_last=1, is_best=False)
    assert newest_valid(tmp_path) == (None, [])


# --- where it is kept ------------------------------------------------------------------------------------------------


def test_layout_and_every_way_to_name_a_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, snapshot_of(1), keep_last=3, is_best=True)
    newest = save(tmp_path, snapshot_of(2), keep_last=3, is_best=False)
    shelf = tmp_path / "checkpoints"
    assert newest == shelf / "step_00000002"
    assert sorted(os.listdir(shelf)) == ["best", "last", "step_00000001", "step_00000002"]
    assert sorted(os.listdir(newest)) == sorted(FILES)
    assert (os.readlink(shelf / "best"), os.readlink(shelf / "last")) == ("step_00000001", "step_00000002")
    ways = {tmp_path: 2, shelf: 2, shelf / "last": 2, newest: 2, shelf / "best": 1, shelf / "step_00000001": 1}
    assert {path: load(path).step for path in ways} == ways


@pytest.mark.parametrize("lost", [None, "step_00000002"])
def test_a_copy_without_links_goes_on(tmp_path: Path, lost: str | None) -> None:
    """As zip, S3 and `cp -L` make them: `last` and `best` are folders there."""
    for step in (1, 2):
        save(tmp_path / "run", snapshot_of(step), keep_last=3, is_best=step == 1)
    copied = Path(shutil.copytree(tmp_path / "run", tmp_path / "copied"))
    shelf = copied / "checkpoints"
    if lost is not None:
        shutil.rmtree(shelf / lost)
    assert_same(load(copied), snapshot_of(2))
    save(copied, snapshot_of(3), keep_last=3, is_best=False)
    assert sorted(os.listdir(shelf)) == ["best", "last", *(f"step_0000000{step}" for step in (1, 2, 3))]
    assert (os.readlink(shelf / "best"), os.readlink(shelf / "last")) == ("step_00000001", "step_00000003")
    for step in (1, 2, 3):
        assert_same(load(shelf / f"step_0000000{step}"), snapshot_of(step))


def test_a_damaged_copy_of_a_link_is_named_and_left(tmp_path: Path) -> None:
    save(tmp_path / "run", snapshot_of(1), keep_last=3, is_best=False)
    copied = Path(shutil.copytree(tmp_path / "run", tmp_path / "copied"))
    (copied / "checkpoints/last/model.safetensors").write_bytes(b"")
    for go_on in (lambda: save(copied, snapshot_of(2), keep_last=3, is_best=False), lambda: rewind(copied, step=1)):
        with pytest.raises(
            CheckpointError, match=r"model\.safetensors: damaged: 0 bytes.*last is a copy .*: remove it"
        ):
            go_on()
    assert sorted(os.listdir(copied / "checkpoints")) == ["last", "step_00000001"]


def test_the_oldest_go_but_never_the_best(tmp_path: Path) -> None:
    for step in range(1, 7):
        save(tmp_path, snapshot_of(step), keep_last=2, is_best=step == 2)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith("step"))
    assert kept == ["step_00000002", "step_00000005", "step_00000006"]


def test_steps_are_ordered_as_numbers_past_eight_digits(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        save(tmp_path, snapshot_of(step), keep_last=2, is_best=False)
    assert newest_valid(tmp_path)[0] == tmp_path / "checkpoints" / "step_100000000"


def test_only_our_own_leftovers_are_removed(tmp_path: Path) -> None:
    shelf = tmp_path / "checkpoints"
    for name in ("step_00000009.partial", "step_00000003.removed", "notes.partial"):
        (shelf / name).mkdir(parents=True)
        (shelf / name / "x").write_text("x")
    save(tmp_path, snapshot_of(10), keep_last=1, is_best=False)
    assert sorted(os.listdir(shelf)) == ["last", "notes.partial", "step_00000010"]


def test_rewind_forgets_the_abandoned_future(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, snapshot_of(step), keep_last=9, is_best=step in (1, 3))
    rewind(tmp_path, step=2)
    shelf = tmp_path / "checkpoints"
    assert sorted(os.listdir(shelf)) == ["best", "last", "step_00000001", "step_00000002"]
    assert (load(shelf / "best").step, load(tmp_path).step) == (1, 2)
    with pytest.raises(CheckpointError, match=r"step_00000004.*missing"):
        rewind(tmp_path, step=4)


# --- damage ----------------------------------------------------------------------------------------------------------


def assert_refused(path: Path, name: str) -> str:
    with pytest.raises((CheckpointError, OtherFormatError)) as caught:
        load(path)
    message = str(caught.value)
    assert name in message.split(": ")[0], message
    assert "\n" not in message
    return message


def put(path: Path, data: bytes) -> None:
    """A new file: ext4 would make every shortened one wait for the disk."""
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_byte_and_any_cut_is_refused_by_name(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    draw = random.Random(name)
    for _ in range(120):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= draw.randrange(1, 256)
        put(folder / name, damaged)
        assert_refused(folder, name)
    for length in {0, 1, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(40))}:
        put(folder / name, whole[:length])
        assert_refused(folder, name)
    (folder / name).write_bytes(whole + b"\n")
    assert_refused(folder, name)
    (folder / name).unlink()
    assert "missing" in assert_refused(folder, name)


def test_every_byte_of_the_manifest_counts(folder: Path) -> None:
    path = folder / "manifest.json"
    whole = path.read_bytes()
    for place, byte in enumerate(whole):
        damaged = bytearray(whole)
        damaged[place] = ord("\t") if byte in b" \n" else byte ^ 1
        put(path, damaged)
        assert_refused(folder, "manifest.json")
    path.write_text(json.dumps(json.loads(whole)))  # the same values in another rendering
    assert_refused(folder, "manifest.json")


def test_a_file_by_a_name_of_ours_that_was_not_saved_is_refused(folder: Path) -> None:
    (folder / "losses.safetensors").write_bytes(b"")
    assert "not part of this checkpoint" in assert_refused(folder, "losses.safetensors")


# --- files of a user, and checkpoints that do not verify, are never removed ------------------------------------------


def put_notes(shelf: Path, *steps: int) -> None:
    """Write two files and a folder into checkpoints: a user's, and what a file manager leaves."""
    for step in steps:
        folder = shelf / f"step_{step:08d}"
        (folder / "notes.txt").write_text(f"of {step}")
        (folder / ".DS_Store").write_bytes(b"\x00")
        (folder / "pictures").mkdir()


def test_files_of_a_user_are_no_damage_and_survive_their_checkpoint(tmp_path: Path) -> None:
    shelf = tmp_path / "checkpoints"
    for step in (1, 2):
        save(tmp_path, snapshot_of(step), keep_last=2, is_best=False)
    put_notes(shelf, 1, 2)
    assert_same(load(tmp_path), snapshot_of(2))
    assert newest_valid(tmp_path) == (shelf / "step_00000002", [])
    save(tmp_path, snapshot_of(3), keep_last=2, is_best=False)
    assert sorted(os.listdir(shelf)) == ["last", "step_00000001.kept", "step_00000002", "step_00000003"]
    assert {".DS_Store", "notes.txt", "pictures"} <= set(os.listdir(shelf / "step_00000001.kept"))
    for _ in range(2):
        put_notes(shelf, 3)
        rewind(tmp_path, step=2)
        save(tmp_path, snapshot_of(3), keep_last=2, is_best=False)
    assert {"step_00000003.kept", "step_00000003.kept.2"} <= set(os.listdir(shelf)), "none is replaced"
    (shelf / "step_00000003/.DS_Store").touch()
    rewind(tmp_path, step=2)
    assert not (shelf / "step_00000003.kept.3").exists()


def flip(path: Path) -> bytes:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return bytes(data)


def test_what_does_not_verify_is_kept_under_a_name_of_its_own(tmp_path: Path) -> None:
    """By `keep_last`, by a save of the same step, by a rewind, and twice."""
    shelf = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        save(tmp_path, snapshot_of(step), keep_last=3, is_best=False)
    damaged = [flip(shelf / f"step_0000000{step}/model.safetensors") for step in (1, 3)]
    rewind(tmp_path, step=2)
    for step, data in zip((3, 1), reversed(damaged), strict=True):
        save(tmp_path, snapshot_of(3), keep_last=2, is_best=False)
        assert (shelf / f"step_0000000{step}.damaged/model.safetensors").read_bytes() == data
    again = flip(shelf / "step_00000003/model.safetensors")
    save(tmp_path, snapshot_of(3), keep_last=2, is_best=False)
    assert (shelf / "step_00000003.damaged.2/model.safetensors").read_bytes() == again
    assert newest_valid(tmp_path) == (shelf / "step_00000003", [])
    names = ["last", "step_00000001.damaged", "step_00000002", "step_00000003"]
    assert sorted(os.listdir(shelf)) == [*names, "step_00000003.damaged", "step_00000003.damaged.2"]


def test_a_checkpoint_that_was_set_aside_returns_where_its_replacement_is_damaged(tmp_path: Path) -> None:
    folder = save(tmp_path, snapshot_of(1), keep_last=1, is_best=False)
    shutil.copytree(folder, folder.with_name("step_00000001.replaced"))
    data = flip(folder / "model.safetensors")
    rewind(tmp_path, step=1)
    assert_same(load(tmp_path), snapshot_of(1))
    assert (folder.with_name("step_00000001.damaged") / "model.safetensors").read_bytes() == data


def test_another_format_is_never_taken_for_damage(tmp_path: Path) -> None:
    """Neither in the search for a sound one, nor by what removes checkpoints."""
    for step in (1, 2):
        other = save(tmp_path, snapshot_of(step), keep_last=2, is_best=False)
    edit_state(other, format_version=99)
    for change in (
        lambda: newest_valid(tmp_path),
        lambda: rewind(tmp_path, step=1),
        lambda: save(tmp_path, snapshot_of(2), keep_last=2, is_best=False),
    ):
        with pytest.raises(OtherFormatError, match=r"step_00000002/state.json: has the format 99, .* move this check"):
            change()
        assert other.is_dir()


def test_damaged_last_names_the_newest_sound_one(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        damaged = save(tmp_path, snapshot_of(step), keep_last=3, is_best=False) / "model.safetensors"
    sound = damaged.parent.parent / "step_00000002"
    flip(damaged)
    assert str(sound) in assert_refused(tmp_path, "step_00000003/model.safetensors")
    found, rejected = newest_valid(tmp_path)
    assert found == sound
    assert len(rejected) == 1
    assert str(damaged) in rejected[0]
    shutil.rmtree(damaged.parent)
    assert str(sound) in assert_refused(tmp_path, "checkpoints/last")


def test_paths_without_a_checkpoint_say_what_to_give(tmp_path: Path, folder: Path) -> None:
    for path in (tmp_path / "absent", folder / "model.safetensors"):
        assert "give a run directory" in assert_refused(path, path.name)
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", "manifest.json")
    assert newest_valid(tmp_path / "absent") == (None, [])


def test_another_format_is_refused_by_name(folder: Path) -> None:
    reseal(folder, format_version=2)
    assert "has the format 2, this sightline reads 1" in assert_refused(folder, "manifest.json")
    edit_state(folder, format_version=3)
    assert "has the format 3, this sightline reads 1" in assert_refused(folder, "state.json")


def test_a_folder_under_another_step_is_refused_but_any_other_name_is_fine(folder: Path) -> None:
    copy = shutil.copytree(folder, folder.with_name("step_00000008"))
    assert "is of step 7" in assert_refused(copy, "state.json")
    assert_same(load(copy.rename(folder.with_name("pretrained"))), snapshot_of(7))


# --- inputs made to harm ---------------------------------------------------------------------------------------------


class Payload:
    """Unpickling this makes the folder named `harm`."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("harm",)


def safetensors_bytes(header: Any, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[int], end: int) -> dict[str, Any]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


def torch_file(tmp_path: Path) -> bytes:
    torch.save(Payload(), tmp_path / "payload.pt")
    return (tmp_path / "payload.pt").read_bytes()


HARMFUL_TENSORS: dict[str, Callable[[Path], bytes]] = {
    "pickle": lambda _: pickle.dumps(Payload()),
    "torch file": torch_file,
    "header of 2^62 bytes": lambda _: (2**62).to_bytes(8, "little") + b"{}",
    "header of 2^64-1 bytes": lambda _: b"\xff" * 8 + b"{}",
    "header of 99 MB in 10 bytes": lambda _: (99_000_000).to_bytes(8, "little") + b"{}",
    "header nested": lambda _: (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "unknown dtype": lambda _: safetensors_bytes(entry("OBJECT", [1], 4), b"1234"),
    "dtype torch lacks": lambda _: safetensors_bytes(entry("F4", [2], 1), b"1"),
    "shape overflows": lambda _: safetensors_bytes(entry("F32", [2**62, 2**62], 4), b"1234"),
    "negative shape": lambda _: safetensors_bytes(entry("F32", [-1], 4), b"1234"),
    "tensors without number": lambda _: safetensors_bytes(
        {str(number): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(2**16 + 1)}
    ),
    "offsets outside": lambda _: safetensors_bytes(entry("F32", [2**20], 2**22), b"1234"),
    "offsets backwards": lambda _: safetensors_bytes(
        {"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"1234"
    ),
}
HARMFUL_STATES: dict[str, Callable[[str], str]] = {
    "nested": lambda _: "[" * 100_000,
    "nested mappings": lambda _: '{"a":' * 100_000,
    "huge number": lambda text: text.replace('"step": 7', f'"step": {"9" * 10_000}'),
    "number not finite": lambda text: text.replace('"step": 7', '"step": NaN'),
    "step is text": lambda text: text.replace('"step": 7', "\"step\": \"__import__('os').mkdir('harm')\""),
    "key twice": lambda text: text.replace('"step": 7', '"step": 8, "step": 7'),
    "unknown key": lambda text: text.replace('"step": 7', '"step": 7, "__class__": "os.mkdir"'),
    "yaml tag": lambda _: "!!python/object/apply:os.mkdir [harm]",
    "list": lambda _: "[]",
    "tied to nothing": lambda text: text.replace('"tied": "weight"', '"tied": "../../x"'),
    "tied to itself": lambda text: text.replace('"tied": "weight"', '"weight": "weight"'),
    "tied to a list": lambda text: text.replace('"tied": "weight"', '"tied": ["weight"]'),
    "marker abused": lambda text: text.replace('"step": 7', '"step": {"non_finite": "harm"}'),
}


@pytest.fixture
def nothing_harms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "harm").exists()


@pytest.mark.usefixtures("nothing_harms")
@pytest.mark.parametrize("name", HARMFUL_TENSORS)
def test_harmful_tensor_files_are_refused_though_the_manifest_vouches(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / "model.safetensors").write_bytes(HARMFUL_TENSORS[name](tmp_path))
    reseal(folder)
    assert_refused(folder, "model.safetensors")


@run_each("is_stated, says", [(False, "damaged: 4,398,046,511,104 bytes, its header states 128"), (True, "the memory")])
def test_a_sparse_file_is_refused_before_it_fills_the_memory(tmp_path: Path, is_stated: bool, says: str) -> None:
    """Four TiB that take no disk, though the manifest vouches for the size, and the header may."""
    folder = save(tmp_path / str(is_stated), snapshot_of(7), keep_last=2, is_best=False)
    header = json.dumps(entry("F32", [2**40 - 32], 2**42 - 128) if is_stated else {}).ljust(120).encode()
    files = json.loads((folder / "manifest.json").read_text())["files"]
    reseal(folder, files=files | {"model.safetensors": {"size": 2**42, "sha256": "0" * 64}})
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(folder / "model.safetensors", 2**42)
    assert says in assert_refused(folder, "model.safetensors")


@pytest.mark.usefixtures("nothing_harms")
@pytest.mark.parametrize("name", HARMFUL_STATES)
def test_harmful_states_are_refused_though_the_manifest_vouches(folder: Path, name: str) -> None:
    text = (folder / "state.json").read_text()
    harmful = HARMFUL_STATES[name](text)
    assert harmful != text
    (folder / "state.json").write_text(harmful)
    reseal(folder)
    assert_refused(folder, "state.json")


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "x.pt", "", "..", "sub/x"])
def test_a_manifest_names_nothing_but_its_own_files(folder: Path, name: str) -> None:
    files = json.loads((folder / "manifest.json").read_text())["files"]
    reseal(folder, files=files | {name: {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()}})
    assert_refused(folder, "manifest.json")


@pytest.mark.parametrize("entry", [None, 3, {"size": -1, "sha256": ""}, {"size": True, "sha256": ""}, {"size": 0}])
def test_a_manifest_of_another_form_is_refused(folder: Path, entry: object) -> None:
    names = ("model.safetensors", "optimizer.safetensors", "state.json")
    reseal(folder, files=[] if entry is None else dict.fromkeys(names, entry))
    assert_refused(folder, "manifest.json")


@pytest.mark.parametrize(
    ("text", "says"),
    [("[" * 60_000, "damaged"), (" " * 10_000_000, "too large"), ("[1]", "damaged"), ('{"sha256": 1}', "damaged")],
)
def test_a_manifest_that_is_none_is_refused(folder: Path, text: str, says: str) -> None:
    (folder / "manifest.json").write_text(text)
    assert says in assert_refused(folder, "manifest.json")


def test_links_and_pipes_are_not_opened(folder: Path, tmp_path: Path) -> None:
    path = folder / "model.safetensors"
    elsewhere = path.rename(tmp_path / "elsewhere")
    path.symlink_to(elsewhere)
    assert "not a plain file" in assert_refused(folder, "model.safetensors")
    path.unlink()
    os.mkfifo(path)
    assert "not a plain file" in assert_refused(folder, "model.safetensors")


# --- the run around --------------------------------------------------------------------------------------------------


def test_the_run_around_a_checkpoint_is_found_from_everywhere_in_it(folder: Path, tmp_path: Path) -> None:
    assert enclosing_run(folder) is None
    (tmp_path / "config.yaml").write_text("")
    for place in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "last", folder, resolve(tmp_path)):
        assert enclosing_run(place) == tmp_path
    (tmp_path / "elsewhere").symlink_to(folder)
    assert enclosing_run(tmp_path / "elsewhere") == tmp_path
