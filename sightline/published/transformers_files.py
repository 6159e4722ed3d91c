"""Weights of detectors of the library transformers: a safetensors file next to the `config.json` that describes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sightline.contract.errors import CheckpointError, assert_installed, escape_to_one_line, join_some
from sightline.contract.regular_files import read_regular_file
from sightline.instrument.random_state import preserve_random_state

CONFIG_FILE = "config.json"
LAYOUT = "transformers"
"""Layout of such files, whose names follow from their config and are no row of a table."""
PREFIXES = {"d_fine": "DFine", "rt_detr_v2": "RTDetrV2"}
"""Beginning of the library's class names, by `model_type`."""
_MAX_BYTES = 1 << 20
_MAX_NAMES_SHOWN = 3


def read_config(weights: Path) -> dict[str, Any] | None:
    """Read the config beside a safetensors file; None without one, and for one of a model that is not of `PREFIXES`.

    Raises CheckpointError for a config that is no JSON mapping.
    """
    path = weights.parent / CONFIG_FILE
    if weights.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        config = json.loads(read_regular_file(path, max_bytes=_MAX_BYTES))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON ({escape_to_one_line(str(error))[:160]})") from None
    return config if isinstance(config, dict) and config.get("model_type") in PREFIXES else None


def convert_names(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert a file's tensors to the names of the model `transformers_detector`, as the library itself loads them.

    Files of earlier versions of the library have other names. Raises CheckpointError for tensors that the network of
    `config` lacks, needs, or has in another shape, and MissingExtraError without the library.
    """
    assert_installed("transformers", needed_by="a file of weights of its detectors")
    import transformers
    from transformers.utils import logging

    prefix = PREFIXES[config["model_type"]]
    verbosity, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity(logging.CRITICAL)
        logging.disable_progress_bar()
        with preserve_random_state():
            network, loading = getattr(transformers, f"{prefix}ForObjectDetection").from_pretrained(
                None,
                config=getattr(transformers, f"{prefix}Config").from_dict(dict(config)),
                state_dict=dict(state),
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # of the library, which checks what it reads in many ways
        text = escape_to_one_line(str(error))[:160]
        raise CheckpointError(f"transformers cannot load it ({type(error).__name__}: {text})") from error
    finally:
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()
    faults = [
        f"{len(names)} tensors are {fault} ({join_some(sorted(map(str, names)), most=_MAX_NAMES_SHOWN)})"
        for fault, names in (
            ("missing", loading["missing_keys"]),
            ("unknown", loading["unexpected_keys"]),
            ("of another shape", {name for name, *_ in loading["mismatched_keys"]}),
        )
        if names
    ]
    if faults:
        raise CheckpointError(f"does not fit its {CONFIG_FILE}: {'; '.join(faults)}; get both files again")
    return {f"network.{name}": value for name, value in network.state_dict().items()}
