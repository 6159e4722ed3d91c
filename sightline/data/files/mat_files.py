"""Variables of MATLAB's .mat files."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from sightline.data.files.input_files import assert_regular
from sightline.errors import DataError

__all__ = ["read_mat"]


def read_mat(path: Path, key: str, *, kinds: str = "fiu") -> np.ndarray:
    """One array of a file of MATLAB 5 to 7.2, of numbers, or of NumPy's `kinds` ("O" for cells).

    Raises DataError for a file without it, and for one that is broken.
    """
    from scipy.io import loadmat  # here, because every verb that lists data sets imports the modules that use this
    from scipy.io.matlab import MatReadError

    assert_regular(path)
    try:
        found = loadmat(path, variable_names=[key])
    except (OSError, ValueError, TypeError, KeyError, EOFError, NotImplementedError, MatReadError, zlib.error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: {key} cannot be read ({reason}); get the file again") from error
    if key not in found or found[key].dtype.kind not in kinds:
        what = "cells" if kinds == "O" else "numbers"
        raise DataError(f"{path}: has no array of {what} '{key}'; get the file again")
    array: np.ndarray = found[key]
    return array
