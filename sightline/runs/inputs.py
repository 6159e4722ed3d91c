"""Inputs of a run, stored in its folder: fields, features, input spec of clouds and scans, folds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sightline.contract.errors import UserError
from sightline.contract.types import DataInfo, Field
from sightline.contract.validation import TypeAdapter, ValidationError
from sightline.runs.run_documents import load_document

INPUTS_FILE = "inputs.json"


def inputs_document(info: DataInfo) -> dict[str, Any]:
    """Build the document of `inputs.json` from a data set's info."""
    return {
        "fields": {name: _field_to_plain(field) for name, field in info.fields.items()},
        "features": list(info.features),
        "clouds": None if info.clouds is None else dataclasses.asdict(info.clouds),
        "folds": None if info.folds is None else dataclasses.asdict(info.folds),
        "scans": None if info.scans is None else dataclasses.asdict(info.scans),
        **({} if info.dealing is None else {"split": dataclasses.asdict(info.dealing)}),
    }


def read_inputs(run: Path, facts: Mapping[str, Any]) -> DataInfo:
    """Read the info of a run's training data, whose `facts` are read, from the run directory alone.

    Raises UserError for a document that a run of this version does not write.
    """
    document = load_document(run / INPUTS_FILE)
    try:
        return TypeAdapter(DataInfo).validate_python({**document, "facts": facts, "dealing": document.get("split")})
    except ValidationError as error:
        fault = error.errors()[0]
        raise UserError(
            f"{run / INPUTS_FILE}: is not a document of a run's inputs ({'.'.join(map(str, fault['loc']))}: "
            f"{fault['msg']}); make the run again"
        ) from None


def _field_to_plain(field: Field) -> dict[str, Any]:
    """Convert a field to values for JSON, with bounds as floats."""
    bounds = {name: None if (bound := getattr(field, name)) is None else float(bound) for name in ("low", "high")}
    return {**dataclasses.asdict(field), **bounds}
