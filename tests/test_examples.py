"""Every registered metric, loss and transform has an example in its docstring, which gives what it shows."""

from __future__ import annotations

import doctest
import re
from collections.abc import Callable
from typing import Any

import pytest

from sightline.contract.metric import MeanMetric
from sightline.contract.registry import REGISTRIES

KINDS = [REGISTRIES[kind] for kind in ("metrics", "losses", "transforms")]
SUBJECTS = [(name, each.get_entry(name).builder) for each in KINDS for name in each.names() if name in each.modules]
"""Without the plugins that other tests register in this process."""
_NUMBER = re.compile(r"nan|-?\d+\.?\d*(?:e[-+]\d+)?")


class Figures(doctest.OutputChecker):
    """Compares numbers, to the rounding of another CPU's functions, and the text around them."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        ours, shown = ([float(number) for number in _NUMBER.findall(text)] for text in (got, want))
        frames = {" ".join(_NUMBER.sub("#", text).split()) for text in (got, want)}
        return len(frames) == 1 and ours == pytest.approx(shown, rel=1e-12, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize(("name", "builder"), [*SUBJECTS, ("mean_metric", MeanMetric)])
def test_the_example_of_the_docstring_runs(name: str, builder: Callable[..., Any]) -> None:
    """In a namespace that has imported nothing: what it imports, makes and prints is what a user would."""
    [example] = doctest.DocTestFinder(recurse=False, exclude_empty=False).find(builder, name, globs={})
    assert example.examples, f"'{name}' has no example: lines from `>>> ` in the docstring of {builder.__qualname__}"
    used = [line.source for line in example.examples if not line.source.startswith(("import ", "from "))]
    assert builder.__name__ in "".join(used), f"the example of '{name}' does not use {builder.__name__}"
    assert example.examples[-1].want, f"the last line of the example of '{name}' shows nothing"
    printed: list[str] = []
    doctest.DocTestRunner(Figures(), verbose=False).run(example, out=printed.append)
    assert not printed, "".join(printed)


def test_other_numbers_and_other_text_are_told_apart() -> None:
    judge = Figures().check_output
    assert judge("{'a': 0.5, 'b': nan}\n", "{'a': 0.5000000000000001,\n 'b': nan}\n", 0)
    assert not judge("tensor([1., 2.])", "tensor([1., 2.1])", 0)
    assert not judge("tensor(1.)", "tensor(True)", 0)
