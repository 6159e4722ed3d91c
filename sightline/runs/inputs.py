"""What a run takes in, kept in its folder: fields, features, the form of clouds, the parts of the set."""

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
    """What `inputs.json` holds of a data set's info."""
    return {
        "fields": {name: _plain(field) for name, field in info.fields.items()},
        "features": list(info.features),
        "clouds": None if info.clouds is None else dataclasses.asdict(info.clouds),
        "folds": None if info.folds is None else dataclasses.asdict(info.folds),
        "scans": None if info.scans is None else dataclasses.asdict(info.scans),
        **({} if info.dealing is None else {"split": dataclasses.asdict(info.dealing)}),
    }


def read_inputs(run: Path, config: RunConfig) -> DataInfo:
    """The info of the data that a run was trained on, from its folder alone.

    A run made before folders held this asks its data set once more. Raises UserError where neither can be read.
    """
    facts = read_facts(run)
    if not (run / INPUTS_FILE).exists():
        return _asked_again(run, config)
    document = load_document(run / INPUTS_FILE)
    try:
        fields = {name: Field(**values) for name, values in document["fields"].items()}
        form = None if document["clouds"] is None else CloudInputSpec(**document["clouds"])
        parts = document.get("folds")
        folds = None if parts is None else Folds(tuple(parts["names"]), tuple(parts["tested"]))
        stated = document.get("scans")
        scans = None if stated is None else ScanInputSpec(**{key: _of_plain(each) for key, each in stated.items()})
        noted = document.get("split")
        dealing = None if noted is None else Dealing(noted["rule"], noted["seed"], tuple(noted["parts"]))
        features = tuple(document["features"])
        return DataInfo(facts, fields, features=features, clouds=form, folds=folds, scans=scans, dealing=dealing)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{run / INPUTS_FILE}: is not what a run's data set stated ({error}); make the run again"
        ) from None


def _of_plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _plain(field: Field) -> dict[str, Any]:
    """A field as JSON can hold it, whatever kind of number a plugin gave as its bounds."""
    bounds = {name: None if (bound := getattr(field, name)) is None else float(bound) for name in ("low", "high")}
    return {**dataclasses.asdict(field), **bounds}


def _asked_again(run: Path, config: RunConfig) -> DataInfo:
    try:
        info: DataInfo = registry.data.build(config.data, facts={"split": "train"}).info
    except UserError as error:
        raise UserError(
            f"{run / INPUTS_FILE}: is missing, an older sightline made the run, and its data set cannot be "
            f"read: {error}"
        ) from error
    return info
