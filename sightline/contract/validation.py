"""Imports for schemas: bounds of `annotated_types`, and types of pydantic, both in the extra `workbench`."""

from __future__ import annotations

from sightline.contract.errors import MissingExtraError

try:
    from annotated_types import Ge, Gt, Le, Lt
    from pydantic import PydanticUserError, TypeAdapter, ValidationError
except ModuleNotFoundError:  # the first import of a plugin, in an installation without the workbench
    raise MissingExtraError("pydantic", needed_by="sightline.contract") from None

__all__ = ["Ge", "Gt", "Le", "Lt", "PydanticUserError", "TypeAdapter", "ValidationError"]
