"""Exported files of ONNX, read back as runs: `sightline predict` and `sightline serve` run them by onnxruntime."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.errors import ConfigError, RunError, UserError, assert_installed, summarise_error
from sightline.contract.model import model_output_keys
from sightline.contract.regular_files import read_regular_file
from sightline.engine.run_loading import OpenRun, TrainedRun, open_run, open_trained, warn_of_photos
from sightline.instrument.random_state import preserve_random_state
from sightline.runs.process_folder import process_folder
from sightline.runs.run_files import RunFiles
from sightline.workbench.export.description import DOCUMENTS, read_description
from sightline.workbench.export.formats import ENDING, MAX_ONNX_BYTES, make_run_options, make_session, run_session
from sightline.workbench.export.graph import get_parts, split_transforms

MAX_SECONDS = 300.0
"""Longest time of one run of a file: far above that of a network, far below forever."""
_MAX_UNREAD = 2**20
"""Most numbers of an input that a file needs without reading it, in one sample: those of exports have a few."""


def open_run_or_file(
    path: Path, *, checkpoint: str = "last", plugins: Sequence[str | Path] = (), max_seconds: float = MAX_SECONDS
) -> TrainedRun:
    """Open a run directory, or a file of ONNX that `sightline export` wrote, and ends a batch after `max_seconds`.

    Raises UserError as `open_trained` and `open_onnx`.
    """
    if path.suffix.lower() == ENDING and not path.is_dir():
        if checkpoint != "last":
            raise UserError(f"--checkpoint {checkpoint}: {path} holds the weights of one checkpoint; leave it out")
        return open_onnx(path, plugins=plugins, max_seconds=max_seconds)
    return open_trained(path, checkpoint=checkpoint, plugins=plugins)


def open_onnx(path: Path, *, plugins: Sequence[str | Path] = (), max_seconds: float = MAX_SECONDS) -> TrainedRun:
    """Open an exported file as a run whose network is computed by onnxruntime.

    Global random states stay as they are. Raises UserError for a file that is too large, holds data in other files or
    is not the one of its description.
    """
    content = _read_content(path)
    description = read_description(path)
    if hashlib.sha256(content).hexdigest() != description["sha256"]:
        raise UserError(f"{path}: is not the file that its description is about (SHA-256); export the run again")
    session = OnnxSession(path, content, max_seconds=max_seconds)
    with process_folder("onnx") as folder, _name_description(path, str(folder)):
        files = _restore_files(path, description, folder)
        return _make_run(path, files, session, description, plugins)


def _make_run(
    path: Path, files: RunFiles, session: OnnxSession, description: Any, plugins: Sequence[str | Path]
) -> TrainedRun:
    """Build the run of an exported file, with the transforms that are outside of it."""
    with preserve_random_state():
        run = open_run(files, plugins=[Path(plugin) for plugin in plugins])
        warn_of_photos(files)
        model = make_session_model(run, session)
        split = split_transforms(run.transforms, model)
        if [name for name, _ in split.inside] != description["inside"]:
            raise UserError(
                f"{path}: another version of sightline wrote it, with other transforms inside; export it again"
            )
        return TrainedRun(files, path.resolve(), run.config, model, split.outside)


def _read_content(path: Path) -> bytes:
    """Read a file of at most 2 GiB. Raises UserError for others, and for one with data in other files.

    Raises MissingExtraError first if a module that reads or runs it is not installed.
    """
    assert_installed("onnx", "onnxruntime", needed_by=str(path))
    try:
        content = read_regular_file(path, max_bytes=MAX_ONNX_BYTES)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; check the path") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(content)
    except DecodeError:
        raise UserError(f"{path}: is not a file of ONNX, or is damaged") from None
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _list_tensors(model)):
        raise UserError(f"{path}: keeps weights in other files; give a file that holds all of them")
    return content


def _list_tensors(message: Any) -> Iterator[Any]:
    """List all tensors of a model, in whichever of its graphs, functions and attributes they are."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in (value,) if hasattr(value, "DESCRIPTOR") else value:
                yield from _list_tensors(inner)


@contextlib.contextmanager
def _name_description(path: Path, folder: str) -> Iterator[None]:
    """Name the exported file in the errors of its documents, in place of the folder that they are read from."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(
            *(f"{path}: its description: {fault.replace(folder, 'run')}" for fault in error.faults)
        ) from None
    except UserError as error:
        if folder not in str(error):
            raise
        raise UserError(f"{path}: its description: {str(error).replace(folder, 'run')}") from None


def _restore_files(path: Path, description: Any, folder: Path) -> RunFiles:
    """Restore the documents of the run in a folder, and read them; afterwards the folder is not needed any more."""
    for name in DOCUMENTS:
        (folder / name).write_text(description["run"]["documents"][name], encoding="utf-8")
    files = RunFiles(folder)
    files.config, files.facts, files.inputs, files.lineage, files.environment  # noqa: B018 - read here, then kept
    files.path = path
    return files


def make_session_model(run: OpenRun, session: OnnxSession) -> torch.nn.Module:
    """Build the run's network, whose `forward`, or `encode` of an encoder, is computed by the session."""
    model = run.untrained_model().eval().requires_grad_(False)
    is_encoder = registry.tasks.get_class(run.config.task).compares_rows
    name = "encode" if is_encoder else "forward"
    parts = None if is_encoder else get_parts(model)
    owner = f"model '{run.config.model.name}'"
    session.choose_outputs({"encoding"} if is_encoder else model_output_keys(model, owner=owner))

    @wraps(getattr(model, name))
    def call(**inputs: Any) -> Any:
        outputs = session(inputs if parts is None else dict(parts.gather(**inputs)))
        return outputs["encoding"] if is_encoder else outputs

    object.__setattr__(model, name, call)
    return model


class OnnxSession:
    """Session of onnxruntime that takes the inputs of a network: packed clouds go through it one by one.

    A run of it that takes more than `max_seconds` is ended by a RunError.
    """

    def __init__(self, path: Path, content: bytes, *, max_seconds: float) -> None:
        """Raise UserError, naming the file at `path`, if onnxruntime refuses its content."""
        try:
            self._session = make_session(content)
        except Exception as error:  # noqa: BLE001 - onnxruntime has a class for each of its states
            raise UserError(f"{path}: onnxruntime refuses it: {summarise_error(error, max_length=200)}") from None
        self._path, self._max_seconds = path, max_seconds
        self._thread = ThreadPoolExecutor(1, "sightline-onnx")
        self._inputs = {value.name: value for value in self._session.get_inputs()}
        self._outputs = [value.name for value in self._session.get_outputs()]

    def choose_outputs(self, names: Collection[str]) -> None:
        """Compute these outputs alone, in the order of the file."""
        self._outputs = [name for name in self._outputs if name in names]
        if not self._outputs:
            raise UserError(f"{self._path}: computes none of {', '.join(sorted(names))}; export the run again")

    def __call__(self, inputs: dict[str, Any]) -> dict[str, Tensor]:
        offsets = inputs.get("offsets")
        read_inputs = {name: value for name, value in inputs.items() if name in self._inputs and value is not None}
        if offsets is None:
            return self._run(read_inputs)
        spans = list(pairwise(offsets.tolist()))
        parts = [self._run(_take_cloud(read_inputs, row, slice(*span))) for row, span in enumerate(spans)]
        per_point = {name for name, value in parts[0].items() if value.ndim == 3 and value.shape[1] == spans[0][1]}
        return {
            name: torch.cat([part[name][0] if name in per_point else part[name] for part in parts]) for name in parts[0]
        }

    def _run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        feeds = {name: _to_input(value, self._inputs[name]) for name, value in inputs.items()}
        size = len(next(iter(feeds.values())))
        for name in self._inputs.keys() - feeds.keys():  # only the decoding inside reads it, which is not run
            feeds[name] = self._make_unread(name, size)
        batch = self._fixed_batch()
        if batch is None or size == batch:
            return self._compute(feeds)
        if batch != 1:
            raise ValueError(f"the file takes batches of {batch}, found one of {size}; give --batch-size {batch}")
        rows = [self._compute({name: value[row : row + 1] for name, value in feeds.items()}) for row in range(size)]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _make_unread(self, name: str, size: int) -> np.ndarray:
        """Make an input that the run does not have. Raises ValueError for one that is not small and of a fixed size."""
        axes = self._inputs[name].shape[1:]
        if not all(isinstance(length, int) and length >= 0 for length in axes) or math.prod(axes) > _MAX_UNREAD:
            raise ValueError(f"the file needs an input '{name}' of {axes}, which this run has not; export it again")
        return np.zeros((size, *axes), dtype=np.float32)

    def _compute(self, feeds: dict[str, Any]) -> dict[str, Tensor]:
        """Compute in another thread, so that a signal is heard, and a loop that does not end is ended."""
        options = make_run_options()
        run = self._thread.submit(run_session, self._session, self._outputs, feeds, options=options)
        try:
            results = run.result(self._max_seconds)
        except TimeoutError:
            raise RunError(
                f"{self._path}: computes one batch for more than {self._max_seconds:g} s, and may never end; give "
                "--batch-size 1, or export the run again"
            ) from None
        except Exception as error:  # noqa: BLE001 - onnxruntime has a class for each of its states
            raise ValueError(summarise_error(error, max_length=200)) from None
        finally:
            options.terminate = True
        return {name: torch.from_numpy(result) for name, result in zip(self._outputs, results, strict=True)}

    def _fixed_batch(self) -> int | None:
        first = next(iter(self._inputs.values())).shape[0]
        return first if isinstance(first, int) else None


def _take_cloud(inputs: dict[str, Tensor], row: int, span: slice) -> dict[str, Tensor]:
    return {
        name: value[span][None] if name in ("points", "features") else value[row : row + 1]
        for name, value in inputs.items()
    }


_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(double)": np.float64,
}


def _to_input(value: Tensor, entry: Any) -> np.ndarray:
    return np.ascontiguousarray(value.detach().cpu().numpy().astype(_DTYPES.get(entry.type, np.float32), copy=False))
