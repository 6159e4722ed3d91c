"""Sections of a batch: tensors with rows of their own, or of a loader inside of the loader, while the rest stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightline.contract.pytree import dense_leaves, tree_map
from sightline.doctor.attempts import MissingError, NotApplicableError, attempt
from sightline.doctor.batches import count_rows
from sightline.doctor.forms.step_form import StepForm, get_part, list_entries, observe_section, set_part
from sightline.doctor.subject import Subject, count_samples

_MAX_SECTIONS, _MIN_ROWS = 4, 2
Reading = tuple[Any, Any]
"""Loader inside of a loader, and its first batch, whose tensors are in the first batch of the outer one."""


class Section(NamedTuple):
    """Part of a batch: `first` is the section of the first one, `places` its paths there by those inside of it.

    `loader` yields such sections, if there is one.
    """

    first: Any
    places: dict[str, str]
    loader: Any = None

    def take(self, batch: Any) -> Any:
        """Take the section of a batch."""
        return tree_map(self.first, lambda path, t: get_part(batch, self.places[path]) if path in self.places else t)

    def join(self, step: Callable[[Any], Tensor], batch: Any) -> Callable[[Any], Tensor]:
        """Return the step as a function of the section: the rest is that of a batch."""

        def run(section: Any) -> Tensor:
            whole = batch
            for path, tensor in dense_leaves(section):
                whole = set_part(whole, self.places[path], tensor) if path in self.places else whole
            return step(whole)

        return run


def make_sections(subject: Subject, batches: Sequence[Any], readings: Sequence[Reading]) -> list[Subject]:
    """Make a subject of each section of a step's batches whose samples are rows of all its inputs and targets.

    Those with a target come first. `batches` are on the device of the model.
    """
    form = subject.form
    if not isinstance(form, StepForm):
        return []
    found = []
    for section in list(_list_sections(batches[0], readings))[:_MAX_SECTIONS]:
        made = attempt("section", _make_section, {"subject": subject, "section": section, "batches": batches})
        if not isinstance(made, MissingError):
            found.append(made)
    return sorted(found, key=lambda each: not any(True for _ in dense_leaves(each.batches[0].target)))


def _make_section(subject: Subject, section: Section, batches: Sequence[Any]) -> Subject:
    assert isinstance(subject.form, StepForm)
    form = observe_section(subject.form, section.join(subject.form.loss, batches[0]), section.first)
    divided = [form.split(section.take(batch)) for batch in batches]
    if count_samples(divided[0]) < _MIN_ROWS:
        raise NotApplicableError("no row for each sample")
    return Subject(subject.model, form, divided, (), subject.optimizers, section.loader)


def _list_sections(batch: Any, readings: Sequence[Reading]) -> Iterator[Section]:
    """List the sections that loaders inside yield, and, of several sizes, the tensors of one number of rows each."""
    paths = dict(dense_leaves(batch))
    open_paths = {path: paths[path] for path in list_entries(batch, paths) if path in paths and paths[path].ndim}
    for loader, inside in readings:
        places = {
            own: path
            for own, tensor in dense_leaves(inside)
            for path, other in open_paths.items()
            if tensor.shape == other.shape and torch.equal(tensor.to(other.device), other)
        }
        if places:
            first = _exchange(inside, {own: open_paths[path] for own, path in places.items()})
            yield Section(first, places, loader)
            open_paths = {path: tensor for path, tensor in open_paths.items() if path not in places.values()}
    sizes = dict.fromkeys(count_rows(tensor) for tensor in open_paths.values())
    for size in sizes if len(sizes) > 1 or readings else ():
        names = [path for path, tensor in open_paths.items() if len(tensor) == size]
        yield Section(tuple(open_paths[name] for name in names), {str(n): name for n, name in enumerate(names)})


def _exchange(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    return tree_map(tree, lambda path, tensor: tensors.get(path, tensor))
