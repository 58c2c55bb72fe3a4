"""The application behind `fakedet serve`: the page, `POST /v1/predict`, `GET /v1/detector` and `GET /health`.

Nothing of an upload reaches the disk or outlives its request, and no address that a request names is ever fetched.
Memory is bounded: a request's body by ``max_mb``, requests by the queue, pictures by being judged one at a time.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import math
import secrets
import time
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from http import HTTPStatus
from importlib.resources import files
from typing import Annotated, Any, get_type_hints
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from jinja2 import Environment, StrictUndefined
from pydantic import create_model
from starlette.datastructures import Headers, MutableHeaders, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import fakedet
from fakedet.cli.cards import card_of, name_of, note_of, render, style, summary, suspicion
from fakedet.detector import COLUMNS, HEATMAP_BYTES, Detector, Picture, Prediction, Rules, read_picture

log = logging.getLogger("fakedet")

WINDOW = 60.0  # seconds over which a visitor's images are counted
AROUND = 1 << 16  # bytes that a request may hold beside its files
KINDS = ("html", "js", "css")  # of the files page.*
BEARER = HTTPBearer(auto_error=False)
BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["files"],
                "properties": {"files": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        }
    },
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Limits:
    """What a visitor may send."""

    max_mb: int = 20  # megabytes of a file, and of all files of a request
    files: int = 16  # of a request
    per_minute: int = 300  # files of a visitor
    queue: int = 20  # requests that may be under way; others are asked to come again
    seconds: float = 120.0  # in which a request must have arrived


class RateLimit:
    """Limit how many images each visitor may send a minute; ``clock`` gives the time in seconds."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self.clock = per_minute, clock
        self._times: defaultdict[str, deque[float]] = defaultdict(deque)

    def wait(self, visitor: str, count: int = 1) -> float:
        """Count images of a visitor and return 0, or return the seconds until so many are allowed (inf: never)."""
        now = self.clock()
        for name in [name for name, times in self._times.items() if not times or times[-1] <= now - WINDOW]:
            del self._times[name]
        if count > self.per_minute:
            return math.inf
        times = self._times[visitor]
        while times and times[0] <= now - WINDOW:
            times.popleft()
        over = len(times) + count - self.per_minute
        if over > 0:
            return times[over - 1] + WINDOW - now
        times.extend([now] * count)
        return 0.0


class Guard:
    """Middleware: refuse requests that another site's page had a browser send, and set the headers of all answers.

    A page can make its own name lead to this machine (DNS rebinding), so names other than localhost and ``hosts`` are
    refused; an address cannot be made to lead elsewhere.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self.app, self.hosts = app, {"localhost", *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refused = scope["type"] == "http" and self._refused(Headers(scope=scope))
        app = JSONResponse({"detail": refused}, 403) if refused else self.app
        await app(scope, receive, send_with_headers)

    def _refused(self, headers: Headers) -> str:
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            name = urlsplit(f"//{host}").hostname or ""
            known = name in self.hosts or bool(ipaddress.ip_address(name))
        except ValueError:
            known = False
        if not known:
            return f"this server does not go by the name {host!r}; whoever runs it can add it: hosts=[NAME]"
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return "the request comes from the page of another site"
        return ""


class Judge:
    """Judge uploads, one at a time, in a thread of its own."""

    def __init__(self, detector: Detector, rules: Rules, batch_size: int, heatmap_tiles: int) -> None:
        self.detector, self.rules, self.batch_size, self.heatmap_tiles = detector, rules, batch_size, heatmap_tiles
        self._thread = ThreadPoolExecutor(1, "judge")

    async def __call__(self, name: str, content: bytes, card: bool) -> dict[str, Any]:
        """Give the fields of the prediction, with ``card`` its card too; a file that fails gets its error."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._judge, name, content, card)

    def _judge(self, name: str, content: bytes, card: bool) -> dict[str, Any]:
        picture = Picture()
        try:
            picture = read_picture(content, self.detector.memory_mb * 10**6, HEATMAP_BYTES if card else 0.0)
            examined = self.detector.examine([picture], self.rules, self.batch_size, self.heatmap_tiles if card else 0)
            found, heatmap = next(iter(examined))
        except Exception:  # one picture must not end the server
            log.exception("the detector failed on a file of %d bytes", len(content))
            found, heatmap = Prediction(error="the detector failed on this file"), None
        found = replace(found, path=name)
        answer = {"name": name, "suspicion": suspicion(found), **asdict(found)}
        if card:
            answer["card"] = render([card_of(name, picture, found, heatmap, self.detector, self.rules)])
        return answer


def make_app(
    detector: Detector, rules: Rules, limits: Limits | None = None, batch_size: int = 64, token: str = "",
    hosts: Sequence[str] = (), root_path: str = "", heatmap_tiles: int = 25, prior: float = 0.05,
) -> FastAPI:  # fmt: skip
    """Make the application.

    Args:
        detector: judges the uploads.
        rules: the errors that are accepted, and what must agree.
        limits: of what a visitor may send.
        batch_size: number of crops that are scored at a time.
        token: what /v1 asks for as `Authorization: Bearer TOKEN`; "": nothing.
        hosts: names, besides localhost and addresses, by which visitors may call the server.
        root_path: the path under which a proxy shows the server.
        heatmap_tiles: number of squares of a card's heatmap at most; 0: no heatmap.
        prior: share of fakes that visitors expect.
    """
    limits = limits or Limits()
    limits = replace(limits, files=min(limits.files, limits.per_minute))
    about = _about(detector, rules, limits, prior)
    judge, rate = Judge(detector, rules, batch_size, heatmap_tiles), RateLimit(limits.per_minute)
    places = asyncio.Semaphore(limits.queue)
    # The usual pages of the API's documentation load their scripts from another server.
    app = FastAPI(title="fakedet", version=fakedet.__version__, docs_url=None, redoc_url=None, root_path=root_path)
    app.add_middleware(Guard, hosts=hosts)

    async def authorised(given: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]) -> None:
        sent = given.credentials.encode() if given else b""
        if token and not secrets.compare_digest(sent, token.encode()):
            raise HTTPException(401, "this server asks for its token, as the header `Authorization: Bearer TOKEN`",
                                {"WWW-Authenticate": "Bearer"})  # fmt: skip

    @app.post("/v1/predict", dependencies=[Depends(authorised)], openapi_extra={"requestBody": BODY},
              responses={200: {"model": _answer_model()}, **_refusals(400, 401, 403, 408, 413, 415, 429, 503)},
              summary="Judge one or several files")  # fmt: skip
    async def predict(request: Request, card: bool = False) -> Response:
        """Judge the files of a multipart upload; each gets its prediction, or the error why it was not looked at.

        `card=true` adds the HTML of each file's card, with the picture and its heatmap.
        """
        visitor = request.client.host if request.client else ""
        if places.locked():
            raise HTTPException(503, "the server is busy; try again in 5 seconds", {"Retry-After": "5"})
        async with places:
            _count(rate, visitor, 1)  # before the upload is read
            uploads = await _receive(request, limits)
            _count(rate, visitor, len(uploads) - 1)
            found = []
            for name, content in uploads:
                if await request.is_disconnected():
                    break
                found.append(await judge(name, content, card))
        verdicts = [one["verdict"] for one in found]
        return _json({"detector": about["name"], "note": about["note"], "summary": summary(verdicts), "files": found})

    @app.get("/v1/detector", dependencies=[Depends(authorised)], responses=_refusals(401, 403),
             summary="What the detector knows and promises")  # fmt: skip
    async def describe() -> Response:
        return _json(about)

    @app.get("/health", summary="Whether the server answers")
    async def health() -> dict[str, str | bool]:
        return {"ready": True, "detector": str(about["name"]), "version": fakedet.__version__}

    for path, (kind, content) in _page(about).items():
        app.get(path, include_in_schema=False)(lambda kind=kind, content=content: Response(content, media_type=kind))
    return app


def _count(rate: RateLimit, visitor: str, count: int) -> None:
    if wait := math.ceil(rate.wait(visitor, count)):
        raise HTTPException(429, f"at most {rate.per_minute} files a minute: try again in {wait} seconds",
                            {"Retry-After": str(wait)})  # fmt: skip


class TooLarge(Exception):
    """A request is larger than it may be."""


class Form(MultiPartParser):
    """An upload that must come to its end; by itself Starlette leaves the last file of a shorter one out."""

    def __init__(self, request: Request, most: int, most_files: int) -> None:
        super().__init__(request.headers, self._body(request, most), max_files=most_files, max_fields=0)
        self.spool_max_size = most  # kept in memory, never in a temporary file
        self.whole = False

    async def _body(self, request: Request, most: int) -> AsyncGenerator[bytes, None]:
        """Yield the body; TooLarge where it has more than ``most`` bytes, or says that it will."""
        declared, size = request.headers.get("content-length", ""), 0
        if declared.isdecimal() and int(declared) > most:
            raise TooLarge
        async for chunk in request.stream():
            if (size := size + len(chunk)) > most:
                raise TooLarge
            yield chunk
        if not self.whole:
            raise MultiPartException("it ends too early")

    def on_end(self) -> None:
        """Note the end."""
        self.whole = True


async def _receive(request: Request, limits: Limits) -> list[tuple[str, bytes]]:
    """Read the files of an upload, name and content of each; HTTPException at the first that passes a limit."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(415, "send files as multipart/form-data, as `curl -F files=@photo.jpg` does")
    most = limits.max_mb * 2**20 + AROUND
    try:
        async with asyncio.timeout(limits.seconds):
            form = await Form(request, most, limits.files).parse()
    except TooLarge as error:
        raise HTTPException(413, f"a file, and all files of a request together, may have {limits.max_mb} MB") from error
    except MultiPartException as error:
        raise HTTPException(400, f"this is no upload of at most {limits.files} files: {error.message}") from error
    except TimeoutError as error:
        raise HTTPException(408, f"the upload took longer than {limits.seconds:g} seconds") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the upload was cut off") from error  # told to nobody
    given = [one for _, one in form.multi_items() if isinstance(one, UploadFile)]
    uploads = [(_printable(one.filename or ""), await one.read()) for one in given]
    await form.close()
    if not uploads:
        raise HTTPException(400, "there are no files in the upload")
    return uploads


def _printable(name: str) -> str:
    """Replace the signs of a file's name that cannot be shown, or that change how its neighbours are shown."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in name)


def _json(content: Any) -> JSONResponse:
    """Answer with JSON, which has no NaN and no infinity: null stands for them."""
    return JSONResponse(json.loads(json.dumps(content), parse_constant=lambda _: None))


def _about(detector: Detector, rules: Rules, limits: Limits, prior: float) -> dict[str, Any]:
    """Say what the detector knows, what it promises, and what may be sent."""
    point = detector.require_operating_point()
    alarms = point.reference and point.reference.false_alarms(rules.false_alarm)
    return {
        "name": name_of(detector),
        "version": fakedet.__version__,
        "note": note_of(detector),
        "generators": detector.generators,
        "n_real": point.n_real,
        "n_fake": point.n_fake,
        "promise": point.promise(rules.false_alarm, rules.miss),
        "cost": point.cost(rules.false_alarm, rules.miss, prior),
        # Share of photographs called fake, of collections left out of training, with its 95 % interval.
        "false_alarms": alarms and alarms.to_dict(),
        "rules": asdict(rules),
        "limits": asdict(limits),
        "columns": list(COLUMNS),
    }


def _page(about: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Give the kind and the content of each file of the page, by path."""
    page, script, look = (files("fakedet.cli").joinpath(f"page.{kind}").read_text("utf-8") for kind in KINDS)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    html = environment.from_string(page).render(about)
    return {
        "/": ("text/html", html),
        "/page.js": ("text/javascript", script),
        "/page.css": ("text/css", look + style()),
    }


def _answer_model() -> Any:
    """Describe the answer for the OpenAPI document, from the fields of a prediction."""
    types = {name: kind | None if kind is float else kind for name, kind in get_type_hints(Prediction).items()}
    fields: dict[str, Any] = {"name": str, "suspicion": tuple[float, float, float], **types, "card": (str, "")}
    file: Any = create_model("File", **fields)
    return create_model("Answer", detector=str, note=str, summary=str, files=list[file])


def _refusals(*codes: int) -> dict[int | str, dict[str, Any]]:
    model = create_model("Refusal", detail=str)
    return {code: {"model": model, "description": HTTPStatus(code).phrase} for code in codes}
