"""Sources that `init.from` names: a run of ours, a file of published weights, or one that is fetched by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sightline.contract.errors import CheckpointError
from sightline.published import transformers_files
from sightline.published.files import choose_layout, find_parts, read_published
from sightline.published.known_weights import describe_missing, fetch_weights, is_remote
from sightline.published.translation import convert_state_dict
from sightline.runs import checkpoint
from sightline.runs.trained_weights import evaluated_sha256, load_trained_state, resolve_weights
from sightline.store.prepared.prepared_set import compute_sha256

_ADVICE = "convert it: sightline weights convert FILE --layout NAME --to RUN, then init.from=RUN"


@dataclass(frozen=True)
class WeightSource:
    """Weights on this disk: a checkpoint folder, a packed file or a published one at `path`, of `run` if of any.

    `name` is what the config says, of fetched weights with their commit or SHA-256; `layout` is that of a published
    file, and `config` is the config of the library that it is made for, of a file that has one beside it.
    """

    name: str
    path: Path
    run: Path | None
    layout: str | None = None
    config: Mapping[str, Any] | None = field(default=None, repr=False)

    def compute_sha256(self) -> str:
        """Compute the SHA-256 of the weights."""
        return evaluated_sha256(self.path) if self.layout is None else compute_sha256(self.path)

    def read(self) -> Mapping[str, Tensor]:
        """Read the weights under our names, the EMA of a run that has one. Raises CheckpointError for damaged files."""
        if self.layout is None:
            return load_trained_state(self.path)
        try:
            state = read_published(self.path).state
            if self.config is not None:
                return transformers_files.convert_names(state, self.config)
            return convert_state_dict(state, self.layout)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {error}") from None


def open_source(name: str) -> WeightSource:
    """Find the weights that a name leads to, on the disk, or fetched from a hub or an address.

    Raises CheckpointError if it leads to none, and for a published file whose names are of no layout, or of several
    that read them differently.
    """
    path, run = Path(name), None
    if is_remote(name):
        file = fetch_weights(name)
        name, path, run = file.name, file.path, file.path.parent if file.is_run else None
    elif not path.exists() and path.suffix:
        raise CheckpointError(f"{name}: there is no such file or folder; {describe_missing(name)}")
    elif find_parts(path):
        raise CheckpointError(f"{name}: holds a network in parts; {_ADVICE}")
    elif not path.is_file() or path.suffix == ".slq":
        path = resolve_weights(path).resolve()
        run = checkpoint.enclosing_run(path)
    if path.is_dir() or path.suffix == ".slq":
        return WeightSource(name, path, run)
    if (config := transformers_files.read_config(path)) is not None:
        return WeightSource(name, path, run, transformers_files.LAYOUT, config)
    layout = choose_layout(read_published(path).state, name, is_for_weights=True, advice=_ADVICE)
    return WeightSource(name, path, run, layout)
