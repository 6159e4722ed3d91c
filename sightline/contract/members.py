"""Members of the base classes of components: their descriptions, and misspelt or missing ones of a subclass."""

from __future__ import annotations

import ast
import difflib
import dis
import inspect
import textwrap
import types
from collections.abc import Collection, Iterator
from types import CodeType
from typing import Any, NamedTuple

from sightline.contract.facts import FACTS

_PACKAGE = __name__.partition(".")[0]
_MIN_SIMILARITY = 0.85
"""Minimal similarity of a misspelling: one wrong letter of seven, one too many or too few of three."""
_MAX_LENGTH_DIFFERENCE = 2
"""Maximal difference in length of a misspelling, and maximal number of letters in one of both alone."""
_ENDINGS = ("", "es", "d", "ed", "r", "er", "or", "n", "ion", "ing")


def list_members(base: type) -> frozenset[str]:
    """List the public attributes and methods that a base class, and its own bases in this package, define."""
    parts = [part for part in base.__mro__ if _is_ours(part)]
    names = {name for part in parts for name in (*vars(part), *inspect.get_annotations(part))}
    return frozenset(name for name in names if not name.startswith("_"))


class Description(NamedTuple):
    """Purpose of a member, and whether it has a default, so that a subclass may do without it."""

    text: str
    has_default: bool


def describe_members(base: type) -> dict[str, Description]:
    """Describe the members that a base class itself defines: name → the text below it, or in it.

    A method is described with its signature.
    """
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
    assert isinstance(definition, ast.ClassDef)
    described = {}
    for node, after in zip(definition.body, [*definition.body[1:], ast.Pass()], strict=True):
        match node, after:
            case ast.AnnAssign(target=ast.Name(id=name), value=value), ast.Expr(ast.Constant(value=str(text))):
                described[name] = Description(_join(text), value is not None)
            case ast.FunctionDef(name=name), _ if not name.startswith("_"):
                call = f"{name}({', '.join(argument.arg for argument in node.args.args[1:])})"
                is_abstract = name in getattr(base, "__abstractmethods__", ())
                described[name] = Description(f"`{call}`: {_join(ast.get_docstring(node) or '')}", not is_abstract)
    return described


def list_unset(component: object, base: type) -> list[str]:
    """List the attributes that a base class has without a value, and that a component has not set, each explained."""
    parts = [part for part in base.__mro__ if _is_ours(part)]
    names = dict.fromkeys(name for part in parts for name in vars(part).get("__annotations__", ()))
    # A property is not computed: the static look finds it; `hasattr` finds the layers of a network.
    unset = [n for n in names if inspect.getattr_static(component, n, None) is None and not hasattr(component, n)]
    return [f"{name} ({_explain_member(base, name)})" for name in unset]


def _join(text: str) -> str:
    """Join the lines of a docstring; its last sentence has no full stop."""
    return " ".join(text.split()).removesuffix(".")


def _is_ours(part: type) -> bool:
    return part.__module__.partition(".")[0] == _PACKAGE


def assert_members(builder: type, base: type, *, subject: str) -> None:
    """Raise AssertionError for a class without the base class of its kind, or with a misspelt or missing member.

    A misspelt one would never be called, without any sign of it.
    """
    written = f"class {builder.__name__}({_PACKAGE}.{base.__name__})"
    assert issubclass(builder, base), f"{subject}: {builder.__name__} lacks the base class of its kind; write {written}"
    for misspelt, member in find_misspelt_members(base, builder):
        raise AssertionError(
            f"{subject}: {builder.__qualname__}.{misspelt} is close to '{member}' ({_explain_member(builder, member)})"
            f"; call it '{member}', or give a member of your own a name that is less like it"
        )
    missing = sorted(getattr(builder, "__abstractmethods__", ()))
    assert not inspect.isabstract(builder), (
        f"{subject}: {builder.__qualname__} has to define {' and '.join(missing)}, as its base class says"
    )


def _explain_member(builder: type, name: str) -> str:
    """Return what a member means to the base class of `builder` that describes it."""
    described = (describe_members(part).get(name) for part in builder.__mro__ if _is_ours(part))
    return next((member.text for member in described if member is not None), "a member of its base class")


def suggest_member(member_names: Collection[str], name: str) -> str | None:
    """Return the one of `member_names` that `name` misspells; None for a known name, or a user's own.

    A known name with another ending, or with a further word, is no misspelling (`encoder` and `encode_all` next to
    `encode`); neither is a private name, or that of a fact.
    """
    if name in member_names or name in FACTS or name.startswith("_"):
        return None
    similarity = {member: _similarity(_normalise(name), _normalise(member)) for member in member_names}
    candidates = [
        member for member in member_names if similarity[member] >= _MIN_SIMILARITY and not _is_derived(name, member)
    ]
    return max(candidates, key=lambda member: similarity[member], default=None)


def _normalise(name: str) -> str:
    """Normalise a name: `per_class`, `perClass` and `perclass` become equal."""
    return name.replace("_", "").casefold()


def _similarity(one: str, other: str) -> float:
    """Compute a similarity from 0 to 1; two swapped letters are one slip, which `difflib` counts as two."""
    if abs(len(one) - len(other)) > _MAX_LENGTH_DIFFERENCE or len({*one} ^ {*other}) > _MAX_LENGTH_DIFFERENCE:
        return 0.0  # early: registering every component compares some ten thousand pairs
    differences = [index for index, (mine, its) in enumerate(zip(one, other, strict=False)) if mine != its]
    if (
        len(one) == len(other)
        and len(differences) == 2
        and differences[1] == differences[0] + 1
        and sorted(one) == sorted(other)
    ):
        return 1 - 1 / len(one) / 2
    return difflib.SequenceMatcher(None, one, other, autojunk=False).ratio()


def _is_derived(name: str, member: str) -> bool:
    """Return True if a name is a member's with a further word or another ending; a doubled last letter is neither."""
    if name.startswith(f"{member}_") and name != f"{member}_":
        return True
    stems = {member} if member.endswith("ss") else {member, member.removesuffix("s"), member.removesuffix("es")}
    forms = {stem + ending + plural for stem in stems for ending in _ENDINGS for plural in ("", "s")}
    return name in forms - {member + member[-1]}


def find_misspelt_members(base: type, builder: type) -> Iterator[tuple[str, str]]:
    """Find misspelt members of a class and of its bases in the same package or plugin, each with the known name.

    Members are what a class body defines and what methods set, as by `self.strata = ...`. Known are those of `base`,
    and for a plugin those of all classes of this package that it derives from.
    """
    package = builder.__module__.partition(".")[0]
    classes = [part for part in builder.__mro__ if part.__module__.partition(".")[0] == package]
    known = list_members(base) | (frozenset() if package == _PACKAGE else list_members(builder))
    codes = [code for part in classes for value in vars(part).values() for code in _list_codes(value)]
    defined = {name for part in classes for name in (*vars(part), *inspect.get_annotations(part))}
    for name in sorted(defined.union(*(code.co_names for code in codes))):
        suggestion = suggest_member(known, name)
        if suggestion is not None and (
            name in defined or any(name in code.co_names and name in _list_assigned_attributes(code) for code in codes)
        ):
            yield name, suggestion


def _list_codes(value: Any) -> Iterator[CodeType]:
    """Iterate over the code of a function, a class method, a static method, or a property."""
    functions = (value, getattr(value, "__func__", None), *(getattr(value, name, None) for name in ("fget", "fset")))
    yield from (function.__code__ for function in functions if isinstance(function, types.FunctionType))


def _list_assigned_attributes(code: CodeType) -> set[str]:
    """Return the attributes that code assigns to."""
    return {str(instruction.argval) for instruction in dis.get_instructions(code) if instruction.opname == "STORE_ATTR"}
