"""Whether a server answers: asked once and briefly, because the libraries would retry for minutes."""

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

PATIENCE = 3.0  # seconds


def connection_error(url: str) -> tuple[str, OSError] | None:
    """The host that `url` is reached through, a proxy where one is set, and why it does not answer; None: it does."""
    scheme = urlsplit(url).scheme
    target = urlsplit(getproxies().get(scheme, url))
    try:
        port = target.port or (443 if target.scheme == "https" else 80)
        socket.create_connection((target.hostname, port), timeout=PATIENCE).close()
    except OSError as error:
        return str(target.hostname), error
    return None
