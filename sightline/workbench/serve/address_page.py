"""Page of a server's addresses: what its OpenAPI document states, as one page that needs no network."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sightline.draw.page import PageBlock, PageTable, PageText, render_page

_TYPES = {"array": "lists of numbers", "string": "text"}
_NUMBERS = {
    "points": "[[0.1, 0.2, 0.3], ...]",
    "depth": "[[812, 815, ...], ...]",
    "image": "[[[255, 0, 9], ...], ...]",
}
"""Example of what each key of JSON holds."""


def describe_bodies(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the bodies of predictions as OpenAPI does, by `inputs` of a run: endings, key of JSON, its columns."""
    key, categories = inputs["json"], list(inputs["categories"])
    category = {"category": {"type": "string", "enum": categories}} if categories else {}
    numbers: dict[str, Any] = {"type": "number"}
    rows = {"description": f"each row is {', '.join(inputs['columns'])}"} if inputs["columns"] else {}
    for _ in range(3 if key == "image" else 2):
        numbers = {"type": "array", "items": numbers}
    file = {"type": "string", "format": "binary", "description": f"its name ends in {' '.join(inputs['endings'])}"}
    fields = {"multipart/form-data": {"file": file}, "application/json": {key: {**numbers, **rows}}}
    return {
        kind: {"schema": {"type": "object", "required": [*field, *category], "properties": {**field, **category}}}
        for kind, field in fields.items()
    }


def render_addresses(document: Mapping[str, Any], info: Mapping[str, Any], base_url: str) -> str:
    """Render the page of an OpenAPI document; `info` is what the server states of its run, as at /info."""
    blocks: list[PageBlock] = [
        PageText("plain", [f"Predictions of the run {info['run']}: task {info['task']}, model {info['model']}."]),
        PageText("heading", ["Addresses"]),
        PageTable(["address", "gives"], [*_list_addresses(document)], is_numeric=False),
    ]
    for kind, body in document["paths"]["/predict"]["post"]["requestBody"]["content"].items():
        rows = _list_fields(body["schema"])
        blocks += [PageText("heading", [f"POST /predict with {kind}"]), PageTable(["field", "holds"], rows, (), False)]
    limits = [[name, f"{value:,}"] for name, value in info["limits"].items()]
    blocks += [PageText("heading", ["Limits of a request"]), PageTable(["limit", "value"], limits)]
    commands = [[line] for line in _list_commands(info["input"], base_url.rstrip("/"))]
    blocks += [PageText("heading", ["Try it"]), PageTable(["command"], commands, is_numeric=False)]
    return render_page("sightline serve", blocks)


def _list_addresses(document: Mapping[str, Any]) -> Iterator[list[str]]:
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            yield [f"{method.upper()} {path}", described["description"]]
    yield ["GET /openapi.json", "This page for programs, by OpenAPI."]


def _list_fields(schema: Mapping[str, Any]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    for name, field in schema["properties"].items():
        what = "a file" if field.get("format") == "binary" else _TYPES[field["type"]]
        allowed = f": one of {', '.join(field['enum'])}" if "enum" in field else ""
        rows.append([name, f"{what}{allowed}" + (f": {field['description']}" if "description" in field else "")])
    return rows


def _list_commands(inputs: Mapping[str, Any], url: str) -> list[str]:
    """List commands of curl that this run answers, with the name of a file to replace."""
    form = ["curl", "-F", f"file=@FILE{inputs['endings'][0]}"]
    text = f'{{"{inputs["json"]}": {_NUMBERS[inputs["json"]]}}}'
    if inputs["categories"]:
        form += ["-F", f"category={inputs['categories'][0]}"]
        text = f'{text[:-1]}, "category": "{inputs["categories"][0]}"}}'
    send = ["curl", "-H", "Content-Type: application/json", "-d", text]
    return [shlex.join([*words, f"{url}/predict"]) for words in (form, send)]
