"""Exceptions by cause (user, run); the command line prints each in one line and returns its exit code."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence


def escape_to_one_line(text: str) -> str:
    r"""Escape characters that are not printable (line breaks as `\n`) and bytes that are not UTF-8."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _SPACES else c.encode("unicode_escape").decode() for c in text)


_SPACES = "\u00a0\u2009\u202f\u3000"
"""Characters that Python calls not printable, but that are harmless."""


def summarise_error(error: BaseException, *, max_length: int = 400) -> str:
    """Format the type of an exception and at most `max_length` characters of its message, in one line."""
    message = " ".join(str(error).split())[:max_length]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def join_some(names: Sequence[str], *, most: int, separator: str = ", ") -> str:
    """Join the first `most` names, and count the others: `a, b and 3 more`."""
    return separator.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class UserError(ValueError):
    """Mistake in the user's input: location, actual value, and what to do. Exit code 2.

    The message is one line: what is not printable, such as a terminal's escape codes in a file name, is escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(escape_to_one_line(message))


class ConfigError(UserError):
    """All faults of a config at once, one line each."""

    def __init__(self, *faults: str) -> None:
        super().__init__("")
        self.faults = faults
        self.args = ("\n".join(escape_to_one_line(line) for fault in faults for line in fault.split("\n")),)


class DataError(UserError):
    """Data file or folder that is missing, damaged or not what it claims to be; the message is one line."""

    @classmethod
    def from_lines(cls, lines: Sequence[str]) -> DataError:
        """Create an error of several faults: the first line counts them, each of the others is one."""
        error = cls(lines[0])
        error.args = ("\n  ".join(map(escape_to_one_line, lines)),)
        return error


class MissingDataError(DataError):
    """Data set that is not prepared, or not at its expected path."""


class CheckpointError(UserError):
    """Checkpoint that is damaged, incomplete or made for something else; the message is one line."""


class PluginError(UserError):
    """Plugin that is missing, changed, or cannot be imported."""


class OutputError(UserError):
    """Output of a model that a loss cannot read; `file` and `line` are those of the model's `forward`."""

    def __init__(self, message: str, *, file: str, line: int) -> None:
        super().__init__(message)
        self.file, self.line = file, line


class CountError(UserError):
    """Count of a loss that no sum can be divided by; of several processes, it may occur in one alone."""


class MissingExtraError(UserError, ImportError):
    """Missing optional packages; the message names the command that installs all of them."""

    def __init__(self, *modules: str, needed_by: str) -> None:
        packages = [_PACKAGES.get(module, module) for module in modules]
        named = f"the package{'s' if len(packages) > 1 else ''} {', '.join(map(repr, packages))}"
        extras = ",".join(dict.fromkeys(_EXTRAS[module] for module in modules))
        super().__init__(f"{needed_by} needs {named}: pip install 'sightline[{extras}]'")


def assert_installed(*modules: str, needed_by: str) -> None:
    """Raise MissingExtraError if modules of optional packages cannot be found; nothing is imported."""
    if missing := [module for module in modules if importlib.util.find_spec(module) is None]:
        raise MissingExtraError(*missing, needed_by=needed_by)


def assert_workbench_installed(needed_by: str) -> None:
    """Raise MissingExtraError if packages of the extra `workbench` cannot be found."""
    assert_installed(*_WORKBENCH, needed_by=needed_by)


_WORKBENCH = ("pydantic", "yaml", "jinja2", "typer", "rich", "h5py", "PIL", "safetensors", "numba")
_EXTRAS = {
    **dict.fromkeys(_WORKBENCH, "workbench"),
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "huggingface_hub": "hub",
    "mlflow": "mlflow",
    "sklearn": "probe",
    "scipy": "detect",
    "transformers": "transformers",
    "optuna": "search",
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "export"),
    **dict.fromkeys(("fastapi", "uvicorn", "python_multipart"), "serve"),
    "pypcd4": "pcd",
    **dict.fromkeys(("laspy", "lazrs"), "las"),
    "pye57": "e57",
}
"""Extra of pyproject.toml that brings a module."""
_PACKAGES = {
    "sklearn": "scikit-learn",
    "python_multipart": "python-multipart",
    "yaml": "PyYAML",
    "PIL": "pillow",
}
"""Name of the package that has a module, where it is another."""


class RunError(RuntimeError):
    """Failure for which the config is not to blame (disk full, non-finite gradient). Exit code 1."""


class DiskError(RunError):
    """Disk that refused a write, for which nothing that was to be written is to blame."""


class LostFolderError(RunError):
    """Run folder that was moved, deleted or taken by another run while this one wrote to it."""
