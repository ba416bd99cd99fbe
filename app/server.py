"""The page's server, for this computer alone, with its own temporary folder that is removed at the end."""

import json
import os
import re
import signal
import socket
import tempfile
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from app.upload import MAX_BYTES
from utils.errors import InputError, note

HOST = "127.0.0.1"
POLICY = (  # the browser may load nothing from elsewhere
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; frame-ancestors 'none'; form-action 'self'"
)
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_SSR_MODE": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
MAX_BODY = 2**20  # bytes of a request that is not an upload
MAX_HELD = 2 * 2**30  # bytes of uploads, and of files made from them, that exist at the same time
HEADERS = {"content-security-policy": POLICY, "referrer-policy": "no-referrer", "x-content-type-options": "nosniff"}


class Guard:
    """ASGI: adds HEADERS to every answer and refuses requests that the page never makes.

    Gradio would fetch a web address that stands where a file's path belongs, in `file=` or in an event's data. Another
    site that is open in the same browser can send uploads without being able to read the answer. folder: of uploads.
    """

    def __init__(self, app: Any, folder: Path, own_origin: bool):
        self.app, self.folder, self.own_origin, self.arriving = app, folder, own_origin, 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def add(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                extra = [(key.encode(), value.encode()) for key, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        headers = {name: value.decode("latin1") for name, value in scope["headers"]}
        refusal, size = self._refusal(scope["path"], headers), 0
        if scope["method"] == "POST" and not refusal:
            if scope["path"].rstrip("/").endswith("/upload"):
                size = int(headers.get(b"content-length", MAX_BYTES))
                if self._held() + self.arriving + size > MAX_HELD:
                    refusal = 507
            else:
                body = await _read(receive)
                refusal = 413 if body is None else 403 if _has_address(body) else 0
                receive = _replay(body or b"", receive)
        if refusal:
            await add({"type": "http.response.start", "status": refusal, "headers": []})
            await add({"type": "http.response.body", "body": b""})
            return
        self.arriving += size
        try:
            await self.app(scope, receive, add)
        finally:
            self.arriving -= size

    def _refusal(self, path: str, headers: dict[bytes, str]) -> int:
        """Status with which a request is refused before its body is read; 0: it is not."""
        origin = headers.get(b"origin")
        if self.own_origin and origin and urlsplit(origin).netloc != headers.get(b"host"):
            return 403
        return 403 if re.search(r"/file[=/]\s*https?:", path, re.IGNORECASE) else 0

    def _held(self) -> int:
        """Bytes of the files in the folder of uploads."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


async def _read(receive: Any) -> bytes | None:
    """The body of a request; None if it has more than MAX_BODY bytes."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
        if len(body) > MAX_BODY:
            return None
    return body


def _replay(body: bytes, receive: Any) -> Any:
    """`receive` of an application that has yet to read `body`."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> MutableMapping[str, Any]:
        return messages.pop() if messages else await receive()

    return again


def _has_address(body: bytes) -> bool:
    """True if a string in the JSON is a web address. Not those named url, which the page sends and Gradio ignores."""

    def check(pairs: list[tuple[str, Any]]) -> list[Any]:  # all pairs, since the last of two of one name would win
        return [value for name, value in pairs if name != "url" or not isinstance(value, str)]

    def addresses(value: Any) -> bool:
        if isinstance(value, list):
            return any(map(addresses, value))
        return isinstance(value, str) and re.match(r"\s*https?:", value, re.IGNORECASE) is not None

    try:
        return addresses(json.loads(body, object_pairs_hook=check))
    except (ValueError, RecursionError):
        return bool(body)  # the page sends nothing but JSON


def serve(loras: Sequence[str], examples: Path, port: int | None, share: bool, **options: Any) -> None:
    """Load the models, serve the page and return when the process is interrupted (Ctrl-C, SIGTERM).

    options: keywords of `Predictor`. Raises InputError if a model is not available or the port is taken.
    """
    os.environ.update(QUIET)
    _check_port(port)
    with _folder() as folder, _interrupted():
        from app.models import Models
        from app.page import build  # only now: Gradio reads its settings when it is imported

        models = Models(loras, **options)
        models.load(models.first_choice())
        if remark := models.toys():
            note(remark)
        page = build(models, examples)
        page.queue(api_open=False, max_size=8)
        _, address, public = page.launch(**_settings(examples, folder, port, share))
        try:
            if public:
                note(f"public: {public}")
            print(f"next: open {address}", flush=True)
            Event().wait()
        finally:
            page.close(verbose=False)


def _check_port(port: int | None) -> None:
    """InputError if the port is not available. Checked first, because loading the models takes seconds."""
    if port is not None:
        try:
            socket.create_server((HOST, port)).close()
        except OSError as error:
            raise InputError(f"--port={port}: {error.strerror}; name another, or leave it out") from None


def _settings(examples: Path, folder: Path, port: int | None, share: bool) -> dict[str, Any]:
    """Keywords of Gradio's launch. Outside the temporary folder it may serve only the examples."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from app.page import look

    guards = [Middleware(Guard, folder=folder, own_origin=not share)]
    if not share:  # a web domain that resolves to this address would pass the browser's same-origin rule
        guards.append(Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]))
    return {
        **dict.fromkeys(("show_error", "enable_monitoring", "mcp_server", "pwa", "run_history", "ssr_mode"), False),
        **{
            "max_file_size": MAX_BYTES,
            "allowed_paths": [str(examples)],
            "state_session_capacity": 8,
            "max_threads": 8,
        },
        **{"server_name": HOST, "server_port": port, "share": share, "app_kwargs": {"middleware": guards}},
        **{"quiet": True, "footer_links": [], "prevent_thread_lock": True},
        **look(),
    }


@contextmanager
def _folder() -> Iterator[Path]:
    """Put all temporary files of this process into one folder, which is removed at the end."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="intrinsic-app-", ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before


@contextmanager
def _interrupted() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that the clean-up runs. Either ends the block silently."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
