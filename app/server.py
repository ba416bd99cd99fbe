"""The page's server, for this computer alone, with its own temporary folder that is removed at the end."""

import os
import signal
import socket
import tempfile
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any

from app.upload import MAX_BYTES
from utils.errors import InputError, note

HOST = "127.0.0.1"
POLICY = (  # the browser may load nothing from elsewhere
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; frame-ancestors 'none'; form-action 'self'"
)
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_SSR_MODE": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
HEADERS = {"content-security-policy": POLICY, "referrer-policy": "no-referrer", "x-content-type-options": "nosniff"}


class SafeHeaders:
    """ASGI: adds HEADERS to every answer."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        async def add(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                extra = [(key.encode(), value.encode()) for key, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        await self.app(scope, receive, add)


def serve(loras: Sequence[str], examples: Path, port: int | None, share: bool, **options: Any) -> None:
    """Load the models, serve the page and return when the process is interrupted (Ctrl-C, SIGTERM).

    options: keywords of `Predictor`. Raises InputError if a model is not available or the port is taken.
    """
    os.environ.update(QUIET)
    _check_port(port)
    with _folder(), _interrupted():
        from app.models import Models
        from app.page import build  # only now: Gradio reads its settings when it is imported

        models = Models(loras, **options)
        models.load(models.first_choice())
        if remark := models.toys():
            note(remark)
        page = build(models, examples)
        page.queue(api_open=False, max_size=8)
        _, address, public = page.launch(**_settings(examples, port, share))
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


def _settings(examples: Path, port: int | None, share: bool) -> dict[str, Any]:
    """Keywords of Gradio's launch. Outside the temporary folder it may serve only the examples."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from app.page import look

    guards = [Middleware(SafeHeaders)]
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
