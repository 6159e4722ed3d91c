"""Correct training programs as projects write them: a model, an optimiser, a loader, and a step of one batch."""

from __future__ import annotations

from tests.doctor.programs import clouds_and_graphs, images, representations, sequences, tables, unusual
from tests.doctor.programs.program import FORMS, PROGRAMS, PlainForm, Program

__all__ = [
    "FORMS",
    "PROGRAMS",
    "PlainForm",
    "Program",
    "clouds_and_graphs",
    "images",
    "representations",
    "sequences",
    "tables",
    "unusual",
]
