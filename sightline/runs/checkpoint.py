"""Checkpoints on disk: atomic after any crash, every byte verified before a tensor is used, no pickle.

Optimiser slots by parameter name, and states of the random generators, as tensors and text.

Trained weights of a run, from a checkpoint or from the packed model of a compressed run.
"""

from __future__ import annotations

import base64
import contextlib
import difflib
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sightline.compression.packed_file import assert_whole, read_packed
from sightline.contract.errors import CheckpointError
from sightline.contract.regular_files import find_outward_link, parse_json
from sightline.runs.snapshots import (
    OWN_FILES,
    Snapshot,
    is_sound,
    parse_step,
    read_snapshot,
    read_steps,
    write_snapshot,
)
from sightline.runs.weights import describe_non_finite, find_non_finite, plain_name
from sightline.store.files.atomic_write import disk_failure, sync_folder
from sightline.store.prepared.prepared_set import compute_sha256


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's slots as `<parameter name>/<slot>`, without hyper-parameters of groups.

    A shared parameter has its first name. The tensors are the optimiser's own, not copies.
    """
    names: dict[Tensor, str] = {parameter: plain_name(name) for name, parameter in model.named_parameters()}
    tensors = {}
    for parameter in _iterate_parameters(optimizer):
        assert parameter in names, (
            f"the optimizer holds a parameter of shape {list(parameter.shape)} that the model lacks"
        )
        for slot, value in optimizer.state.get(parameter, {}).items():
            if value is None:  # SGD before its first step with momentum
                continue
            assert isinstance(value, Tensor), f"{names[parameter]}/{slot} is a {type(value).__name__}, not a tensor"
            assert "/" not in slot, f"the slot '{slot}' cannot be distinguished from a parameter's name"
            tensors[f"{names[parameter]}/{slot}"] = value.detach()
    return tensors


def restore_optimizer(model: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore the optimiser's slots, copied to each parameter's device; it changes completely or not at all.

    Raises CheckpointError for a parameter that the optimiser does not train, for a slot of an unfit shape, and for one
    that is not finite.
    """
    for key in find_non_finite(tensors):
        raise CheckpointError(
            f"optimizer state '{key}': {describe_non_finite(tensors[key])}, so that its parameter would never move "
            "again; resume from an earlier checkpoint"
        )
    trained = set(_iterate_parameters(optimizer))
    named_parameters = ((plain_name(name), p) for name, p in model.named_parameters(remove_duplicate=False))
    parameters = {name: parameter for name, parameter in named_parameters if parameter in trained}
    device_counted = {p for group in optimizer.param_groups if _counts_on_device(group) for p in group["params"]}
    restored: dict[Tensor, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, slot = key.rpartition("/")
        if name not in parameters:
            close = difflib.get_close_matches(name, list(parameters), n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise CheckpointError(f"optimizer state '{key}': this optimizer trains no such parameter{hint}")
        parameter = parameters[name]
        is_on_cpu = slot == "step" and parameter not in device_counted  # where torch counts steps
        device = torch.device("cpu") if is_on_cpu else parameter.device
        restored.setdefault(parameter, {})[slot] = _copy_slot(key, value, parameter, device)
    optimizer.state.clear()
    optimizer.state.update(restored)


def get_rng_state() -> dict[str, str]:
    """Return the global random states of torch (CPU and every visible CUDA device), Python and NumPy, as text."""
    algorithm, keys, position, has_gauss, gauss = cast(tuple[str, np.ndarray, int, int, float], np.random.get_state())
    assert algorithm == "MT19937", f"NumPy's global generator was replaced by {algorithm}"
    version, key, python_gauss = random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": _to_text(torch.get_rng_state()),
        "python": json.dumps([version, list(key), python_gauss]),
        "numpy": json.dumps([algorithm, keys.tolist(), position, has_gauss, gauss]),
        **{f"cuda:{index}": _to_text(state) for index, state in enumerate(cuda)},
    }


def set_rng_state(state: Mapping[str, str]) -> tuple[str, ...]:
    """Set the global random states to those of `get_rng_state`; all of them or, if an error is raised, none.

    Returns the devices among them that this process does not have. Raises CheckpointError for anything malformed.
    """
    num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = {f"cuda:{index}": index for index in range(num_devices)}
    for name in ("torch", "python", "numpy"):
        if name not in state:
            raise CheckpointError(f"random state: '{name}' is missing")
    settings: list[tuple[Callable[[Any], object], Any]] = []
    absent = []
    for name, text in state.items():
        try:
            if name.startswith("cuda:") and name not in devices:
                absent.append(name)
            elif name in devices:
                settings.append((torch.cuda.default_generators[devices[name]].set_state, _from_text(text)))
            else:
                settings.append(_parse_state(name, text))
        except (ValueError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"random state: '{name}' is invalid: {str(error)[:100]}") from error
    for put, value in settings:
        put(value)
    return tuple(absent)


def _parse_state(name: str, text: str) -> tuple[Callable[[Any], object], Any]:
    """Return the setter of a state and its value, after a separate generator has accepted it."""
    if name == "torch":
        state = _from_text(text)
        torch.Generator().set_state(state)
        return torch.set_rng_state, state
    if name == "python":
        version, key, gauss = parse_json(text)
        python_state = (version, tuple(key), gauss)
        random.Random().setstate(python_state)
        return random.setstate, python_state
    if name == "numpy":
        algorithm, keys, position, has_gauss, numpy_gauss = parse_json(text)
        if algorithm != "MT19937" or len(keys) != 624 or position not in range(625):
            raise ValueError("not 624 words and a position among them")  # NumPy would read past the end
        numpy_state = (algorithm, np.array(keys, dtype=np.uint32), position, has_gauss, numpy_gauss)
        np.random.RandomState(0).set_state(numpy_state)
        return np.random.set_state, numpy_state
    raise ValueError("unknown kind")


def _iterate_parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _counts_on_device(group: Mapping[str, Any]) -> bool:
    return bool(group.get("capturable") or group.get("fused"))


def _copy_slot(key: str, value: Tensor, parameter: Tensor, device: torch.device) -> Tensor:
    """Copy a slot to `device`, in the parameter's memory layout if it has the parameter's shape.

    Slots are of the parameter's shape, scalars, or factors that broadcast to it.
    """
    if value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype, device=device, requires_grad=False).copy_(value)
    try:
        fits = torch.broadcast_shapes(value.shape, parameter.shape) == parameter.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise CheckpointError(
            f"optimizer state '{key}': its shape is {list(value.shape)}, the parameter's {list(parameter.shape)}"
        )
    return value.detach().to(device, copy=True)


def _to_text(state: Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode()


def _from_text(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text, validate=True)), dtype=torch.uint8)


_FOLDER = "checkpoints"
_LEFTOVER = re.compile(r"step_\d{8,}(\.replaced)?\.(partial|removed)", re.ASCII)
_REMEDY = "resume from it, or with --resume auto"


def _assert_nothing() -> None:
    """Check nothing: the default of `assert_own` without a lock."""


def save(
    directory: Path,
    snapshot: Snapshot,
    *,
    keep_last: int,
    is_best: bool,
    verified_steps: Collection[int] = (),
    assert_own: Callable[[], None] = _assert_nothing,
) -> Path:
    """Add a checkpoint to a run directory; at any moment, the newest complete one is on disk.

    `checkpoints/last`, and `best` if `is_best`, link to it; the oldest beyond `keep_last` are removed, except the
    linked ones. An earlier checkpoint of this step is replaced. A checkpoint that does not verify is kept as
    `step_<number>.damaged`; those of `verified_steps`, which this process has read or written, are not read for that.
    `assert_own` raises if the directory is another run's by now, before each step that replaces or removes; with it,
    the directory must exist.
    Raises RunError if the disk is full or read-only; earlier checkpoints are then intact.
    """
    assert keep_last >= 1, f"keep_last is {keep_last}, must be at least 1"
    assert snapshot.step >= 0, f"step is {snapshot.step}"
    folder = directory / _FOLDER
    target = folder / _format_folder_name(snapshot.step)
    try:
        assert_own()
        folder.mkdir(parents=assert_own is _assert_nothing, exist_ok=True)  # a moved directory is not created again
        _clean_up(folder)
        best_step = snapshot.step if is_best else _read_linked_step(folder, "best")
        partial = _with_suffix(target, "partial")
        write_snapshot(partial, snapshot, best_step=best_step)
        assert_own()
        _replace_checkpoint(target, partial, is_verified=snapshot.step in verified_steps)
        for link in ("best", "last") if is_best else ("last",):
            assert_own()
            _replace_link(folder, link, target.name)
        for old in _list_removable(folder, keep_last):
            assert_own()
            _remove(old, is_verified=parse_step(old) in verified_steps)
    except OSError as error:
        with contextlib.suppress(OSError):
            assert_own()
            _clean_up(folder)
        raise disk_failure(
            error, target, still_intact="earlier checkpoints are intact" if list_checkpoints(directory) else ""
        ) from error
    return target


def load(path: Path, *, remedy: str = _REMEDY) -> Snapshot:
    """Read a checkpoint folder, a link to one, or the `last` of a run directory.

    `remedy` states what to do with a sound checkpoint if this one is damaged; by default that of training.
    Raises CheckpointError, naming the file and the newest sound checkpoint in its folder, if a byte has changed.
    """
    checkpoint = resolve(path, remedy)
    try:
        return read_snapshot(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_format_sound_hint(checkpoint, remedy)}") from error


def list_checkpoints(directory: Path) -> list[Path]:
    """List the checkpoints of a run directory, oldest first."""
    return _list_step_folders(_checkpoint_folder(directory))


def newest_valid(directory: Path) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint that verifies, and one line for each newer one that does not.

    Raises OtherFormatError for a newer one of another format.
    """
    rejected = []
    for folder in reversed(_list_step_folders(_checkpoint_folder(directory))):
        try:
            read_snapshot(folder)
        except CheckpointError as error:
            rejected.append(str(error))
        else:
            return folder, rejected
    return None, rejected


def rewind(directory: Path, *, step: int, assert_own: Callable[[], None] = lambda: None) -> None:
    """Make the checkpoint of `step` the newest: remove later ones, and reset `last` and `best`.

    For a resume from an earlier step: no checkpoint of the abandoned future is ever taken for a newer one. Those that
    do not verify are kept as `step_<number>.damaged`.
    `assert_own` as in `save`. Raises CheckpointError if there is no sound checkpoint of that step.
    """
    folder = _checkpoint_folder(directory)
    target = folder / _format_folder_name(step)
    try:
        assert_own()
        _clean_up(folder)
        _, best_step = read_steps(target)
        best = _format_folder_name(best_step) if best_step is not None else None
        assert_own()
        _replace_link(folder, "last", target.name)
        if best and (folder / best).is_dir():
            _replace_link(folder, "best", best)
        else:
            (folder / "best").unlink(missing_ok=True)
        for step_folder in _list_step_folders(folder):
            assert_own()
            if (parse_step(step_folder) or 0) > step:
                _remove(step_folder)
    except OSError as error:
        raise disk_failure(error, folder) from error


# --- writing ---------------------------------------------------------------------------------------------------------


def _replace_checkpoint(target: Path, new: Path, *, is_verified: bool = False) -> None:
    """Rename the folder `new` to `target`; an existing sound one is set aside first and stays a candidate."""
    old = _with_suffix(target, "replaced")
    if target.exists() and (is_verified or is_sound(target)):
        os.rename(target, old)
    _keep(target, "damaged")
    os.rename(new, target)
    sync_folder(target.parent)
    if old.exists():
        _remove(old, is_verified=True)


def _clean_up(folder: Path) -> None:
    """Remove leftovers of a killed process; a checkpoint that was set aside and not replaced is restored."""
    for leftover in sorted(folder.iterdir()):
        if leftover.name in (".last.new", ".best.new"):
            leftover.unlink()
        elif _LEFTOVER.fullmatch(leftover.name):
            shutil.rmtree(leftover)
        elif _is_set_aside(leftover):
            target = leftover.with_suffix("")
            if target.exists() and is_sound(target):
                _remove(leftover)
            else:
                _keep(target, "damaged")
                os.rename(leftover, target)
    _restore_links(folder)


def _restore_links(folder: Path) -> None:
    """Restore the links `last` and `best` if a copy of the run followed them, as zip, S3 and `cp -L` do."""
    for link in ("last", "best"):
        copied = folder / link
        if copied.is_symlink() or not copied.is_dir():
            continue
        try:
            step, _ = read_steps(copied)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {copied} is a copy instead of a link: remove it") from error
        target = folder / _format_folder_name(step)
        _replace_checkpoint(target, copied)
        _replace_link(folder, link, target.name)


def _list_removable(folder: Path, keep_last: int) -> list[Path]:
    linked_steps = {_read_linked_step(folder, "last"), _read_linked_step(folder, "best")}
    return [path for path in _list_step_folders(folder)[:-keep_last] if parse_step(path) not in linked_steps]


def _remove(folder: Path, *, is_verified: bool = False) -> None:
    """Delete a checkpoint that verifies, unless a user has put files into it: that one is renamed to `.kept`.

    It is renamed first, so that one half deleted is never mistaken for a damaged one.
    """
    if not is_verified and not is_sound(folder):
        _keep(folder, "damaged")
        return
    if any(name not in OWN_FILES and not name.startswith(".") for name in os.listdir(folder)):
        _keep(folder, "kept")
        return
    doomed = _with_suffix(folder, "removed")
    os.rename(folder, doomed)
    shutil.rmtree(doomed)


def _keep(folder: Path, reason: str) -> None:
    """Rename a checkpoint, if it is there, to a name that ends in the reason, under which nothing looks for one."""
    if not folder.exists():
        return
    free, number = folder.with_name(f"{folder.name.removesuffix('.replaced')}.{reason}"), 1
    while os.path.lexists(free):
        number += 1
        free = folder.with_name(f"{folder.name.removesuffix('.replaced')}.{reason}.{number}")
    os.rename(folder, free)


def _replace_link(folder: Path, link: str, target: str) -> None:
    temporary = folder / f".{link}.new"
    os.symlink(target, temporary)
    os.replace(temporary, folder / link)
    sync_folder(folder)


# --- names -----------------------------------------------------------------------------------------------------------


def _format_folder_name(step: int) -> str:
    return f"step_{step:08d}"


def _with_suffix(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")


def _is_set_aside(folder: Path) -> bool:
    return parse_step(folder) is not None and folder.suffix == ".replaced"


def _list_step_folders(folder: Path) -> list[Path]:
    """List checkpoint folders, oldest first; one that was set aside comes before its replacement."""
    folders = [path for path in folder.iterdir() if parse_step(path) is not None] if folder.is_dir() else []
    return sorted(folders, key=lambda path: (parse_step(path), not _is_set_aside(path)))


def _read_linked_step(folder: Path, link: str) -> int | None:
    path = folder / link
    return parse_step(Path(os.readlink(path))) if path.is_symlink() else None


def _checkpoint_folder(directory: Path) -> Path:
    return directory / _FOLDER if (directory / _FOLDER).is_dir() else directory


def resolve(path: Path, remedy: str = _REMEDY) -> Path:
    """Resolve a user's path to a checkpoint folder. Raises CheckpointError if it leads to none."""
    folder = _checkpoint_folder(path)
    if (folder / "last").is_symlink() or folder.name == _FOLDER:
        path = folder / "last"
    link = f"{path}: points to '{os.readlink(path)}'" if path.is_symlink() else ""
    if find_outward_link(path.parent, [path.name]) is not None:
        raise CheckpointError(f"{link}, out of {path.parent}; give the folder itself")
    if link and not path.exists():
        raise CheckpointError(f"{link}, which is not there; {_format_sound_hint(path, remedy)}")
    if not path.is_dir():
        reason = "is a file, not a checkpoint folder" if path.exists() else "no checkpoint is here"
        raise CheckpointError(f"{path}: {reason}; give a run directory or one of its {_FOLDER}/step_... folders")
    return path.parent / os.readlink(path) if path.is_symlink() else path


def enclosing_run(path: Path) -> Path | None:
    """Return the run directory that a path is, or that contains the checkpoint `path`; None without a config.

    Only two levels are searched: a config somewhere above does not describe copied weights.
    """
    folders = (path, *path.resolve().parents[:2])
    return next((folder for folder in folders if (folder / "config.yaml").is_file()), None)


def _format_sound_hint(damaged: Path, remedy: str) -> str:
    sound, _ = newest_valid(damaged.parent)
    return f"the newest sound one is {sound}; {remedy}" if sound else "no other checkpoint in its folder is sound"


PACKED_FILE = "model.slq"
"""File of a run directory that contains its weights if the run is packed; such a run has no checkpoints."""


def is_packed(run: Path) -> bool:
    """Return True if a run directory contains a packed model."""
    return (run / PACKED_FILE).is_file()


def resolve_weights(path: Path) -> Path:
    """Resolve a user's path to a checkpoint folder or a packed file. Raises CheckpointError if it is neither."""
    if is_packed(path):
        return path / PACKED_FILE
    return path if path.suffix == ".slq" and path.is_file() else resolve(path)


def load_trained_state(path: Path, *, remedy: str | None = None) -> Mapping[str, Tensor]:
    """Load the weights to evaluate, by plain names: the EMA if the run has one.

    `remedy` states what to do with a sound checkpoint if this one is damaged. Raises CheckpointError for damaged files.
    """
    if is_packed(path) or path.suffix == ".slq":
        return read_packed(resolve_weights(path)).state
    return (load(path) if remedy is None else load(path, remedy=remedy)).evaluation_weights


def load_losses(path: Path) -> Mapping[str, Tensor]:
    """Load the parameters of losses to evaluate, `<loss>.<parameter>`; empty if none are stored.

    A packed model leaves them out: predictions do not need them.
    """
    return {} if is_packed(path) or path.suffix == ".slq" else load(path).evaluated_losses


def evaluated_sha256(weights_path: Path) -> str:
    """Compute the SHA-256 of the weights to evaluate, at a path from `resolve_weights`.

    Raises CheckpointError for a packed file whose size differs from the one in its header.
    """
    if not weights_path.is_dir():
        assert_whole(weights_path)
        return compute_sha256(weights_path)
    average = weights_path / "ema.safetensors"
    return compute_sha256(average if average.exists() else weights_path / "model.safetensors")


def assert_sha256(path: Path, expected: str | None) -> str:
    """Compute the SHA-256 of a teacher's weights. Raises CheckpointError if it differs from `expected`."""
    digest = evaluated_sha256(resolve_weights(path))
    if expected not in (None, digest):
        raise CheckpointError(
            f"{path}: holds other weights (SHA-256 {digest[:16]}...) than this run was trained with "
            f"({str(expected)[:16]}...); name the checkpoint that has those: teacher.from=PATH"
        )
    return digest
