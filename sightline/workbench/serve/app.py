"""Application of FastAPI: health, info and predictions, with limits of size, time and concurrency."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from sightline.contract.errors import summarise_error
from sightline.workbench.serve.batching import MicroBatcher
from sightline.workbench.serve.exchange import Exchange, RequestPlace
from sightline.workbench.serve.inputs import (
    InputStore,
    RequestError,
    StoredInput,
    catch_refusal,
    estimate_memory,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Limits of requests: bytes, seconds for all of one, and requests at a time."""

    max_bytes: int = 32 * 2**20
    max_seconds: float = 30.0
    max_requests: int = 64

    @property
    def max_json_memory(self) -> int:
        """Bytes that a document of JSON may need: lists and numbers of Python take many times their text."""
        return 8 * self.max_bytes


def make_app(
    batcher: MicroBatcher, store: InputStore, info: dict[str, Any], limits: Limits, folder: Path
) -> LimitedApp:
    """Make the application; its life begins and ends with that of the batcher's thread."""
    storing = ThreadPoolExecutor(1, "sightline-store")  # one at a time: a document takes many times its text

    @asynccontextmanager
    async def live(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        storing.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(batcher.stop)

    app = FastAPI(
        title="sightline",
        description="Predictions of a trained run.",
        version="1",
        lifespan=live,
        docs_url=None,  # FastAPI's own pages load scripts from a public address
        redoc_url=None,
    )

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Return that the server is up, and its number of predictions and batches."""
        return {"status": "ok", "predicted": batcher.num_predicted, "batches": batcher.num_batches}

    @app.get("/info")
    async def describe() -> dict[str, Any]:
        """Return task, classes, the kinds of input and the limits."""
        return {**info, "limits": asdict(limits)}

    @app.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        """Predict one file (form field `file`), or the numbers of a JSON document."""
        place: RequestPlace = request.state.place
        stored = await place.wait_for(storing.submit(catch_refusal, await _receive(request, store, limits)))
        if isinstance(stored, RequestError):
            return _make_error(stored.status, str(stored))
        answer = await place.wait_for(batcher.submit(stored.path))
        if answer.document is None:
            return _make_error(422, answer.reason)
        return JSONResponse({"input": stored.name, **answer.document})

    @app.exception_handler(RequestError)
    async def refuse(_: Request, error: RequestError) -> JSONResponse:
        return _make_error(error.status, str(error))

    @app.exception_handler(HTTPException)
    async def refuse_address(request: Request, error: HTTPException) -> JSONResponse:
        found = f"{request.method} {request.url.path[:100]}"
        text = {404: "there is no such address", 405: "is not allowed"}.get(error.status_code, "the body is malformed")
        return _make_error(error.status_code, f"{found}: {text}; /info states what there is")

    return LimitedApp(app, limits, folder)


async def _receive(request: Request, store: InputStore, limits: Limits) -> Callable[[], StoredInput]:
    """Receive the body; return what stores it. Raises RequestError for one that is neither a form nor JSON."""
    folder = request.state.place.folder
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return partial(store.store_json, folder, await _receive_json(request, max_memory=limits.max_json_memory))
    if kind != "multipart/form-data":
        raise RequestError(415, "body: send a form with the field 'file', or JSON, and say so in Content-Type")
    async with request.form(max_files=1, max_fields=2, max_part_size=4096) as form:
        file, category = form.get("file"), form.get("category")
        if not isinstance(file, UploadFile) or not isinstance(category, str | None):
            raise RequestError(422, "form: the field 'file' with a file is needed")
        return partial(store.store_upload, folder, file.filename or "", await file.read(), category)


async def _receive_json(request: Request, *, max_memory: int) -> bytes:
    """Receive a document of JSON. Raises RequestError as soon as it would need more memory than allowed."""
    content, needed = bytearray(), 0
    async for part in request.stream():
        content += part
        needed += estimate_memory(part)
        if needed > max_memory:
            content.clear()  # the error's traceback would keep it
            raise RequestError(413, f"body: this JSON needs more than {max_memory:,} bytes of memory; send a file")
    return bytes(content)


def _make_error(status: int, message: str) -> JSONResponse:
    headers = {"Retry-After": "1"} if status == 503 else None
    return JSONResponse({"error": message}, status_code=status, headers=headers)


class LimitedApp:
    """Application around another that holds its limits, and answers its failures with one sentence.

    `places` are those of requests that threads work for, and `folder` has their inputs. While `is_stopping`, the rest
    of a body is not waited for.
    """

    def __init__(self, app: Any, limits: Limits, folder: Path) -> None:
        self.folder = folder
        self.limits = limits
        self.places: set[RequestPlace] = set()
        self.is_stopping = False
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, max_bytes=self.limits.max_bytes)
        error = await self._answer(scope, exchange)
        if error is not None and not exchange.status:
            await _make_error(*error)(scope, exchange.receive, exchange.send)
        await exchange.finish(seconds=1 if self.is_stopping else 10)

    async def _answer(self, scope: Any, exchange: Exchange) -> tuple[int, str] | None:
        """Answer a request, or return status and sentence of an error."""
        if len(self.places) >= self.limits.max_requests:
            return 503, "the server is busy; try again"
        place = RequestPlace(self.folder / secrets.token_hex(16))
        scope.setdefault("state", {})["place"] = place
        self.places.add(place)
        try:
            async with asyncio.timeout(self.limits.max_seconds):
                await self._app(scope, exchange.receive, exchange.send)
            return None
        except TimeoutError:
            return 504, f"the request took more than {self.limits.max_seconds:g} s"
        except asyncio.CancelledError:
            return 503, "the server stops, and did not finish the request in time"
        except Exception as failure:  # noqa: BLE001 - the last place: every failure becomes one sentence
            logger.error("a request failed: %s", summarise_error(failure))
            return 500, "the server failed; its log has the reason"
        finally:
            place.leave(self.places)
