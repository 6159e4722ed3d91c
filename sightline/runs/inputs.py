"""Inputs of a run, stored in its folder: fields, features, input spec of clouds and scans, folds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from sightline import registry
from sightline.config import RunConfig
from sightline.errors import UserError
from sightline.runs.run_documents import load_document, read_facts
from sightline.types import CloudInputSpec, DataInfo, Dealing, Field, Folds, ScanInputSpec

__all__ = ["INPUTS_FILE", "inputs_document", "read_inputs"]

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


def read_inputs(run: Path, config: RunConfig) -> DataInfo:
    """Read the info of a run's training data, from the run directory alone.

    For a run of an older sightline, without this file, the data set is built. Raises UserError if neither can be read.
    """
    facts = read_facts(run)
    if not (run / INPUTS_FILE).exists():
        return _build_from_config(run, config)
    document = load_document(run / INPUTS_FILE)
    try:
        fields = {name: Field(**values) for name, values in document["fields"].items()}
        form = None if document["clouds"] is None else CloudInputSpec(**document["clouds"])
        stated_folds = document.get("folds")
        folds = None if stated_folds is None else Folds(tuple(stated_folds["names"]), tuple(stated_folds["tested"]))
        stated_scans = document.get("scans")
        scans = (
            None
            if stated_scans is None
            else ScanInputSpec(**{key: _list_to_tuple(value) for key, value in stated_scans.items()})
        )
        stated_dealing = document.get("split")
        dealing = (
            None
            if stated_dealing is None
            else Dealing(stated_dealing["rule"], stated_dealing["seed"], tuple(stated_dealing["parts"]))
        )
        features = tuple(document["features"])
        return DataInfo(facts, fields, features=features, clouds=form, folds=folds, scans=scans, dealing=dealing)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{run / INPUTS_FILE}: is not a document of a run's inputs ({error}); make the run again"
        ) from None


def _list_to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _field_to_plain(field: Field) -> dict[str, Any]:
    """Convert a field to values for JSON, with bounds as floats."""
    bounds = {name: None if (bound := getattr(field, name)) is None else float(bound) for name in ("low", "high")}
    return {**dataclasses.asdict(field), **bounds}


def _build_from_config(run: Path, config: RunConfig) -> DataInfo:
    try:
        info: DataInfo = registry.data.build(config.data, facts={"split": "train"}).info
    except UserError as error:
        raise UserError(
            f"{run / INPUTS_FILE}: is missing, an older sightline made the run, and its data set cannot be "
            f"read: {error}"
        ) from error
    return info
