"""What this project settles about wandb: the run's id, online or offline, what is not uploaded, and no token."""

import netrc
import os
import re
import secrets
import string
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from utils.system.network import connection_error


def wandb_id(output_dir: Path) -> str:
    """The folder's run id, made on the first call."""
    file = output_dir / "wandb_id.txt"
    if not file.is_file() or not file.read_text().strip():
        alphabet = string.ascii_lowercase + string.digits
        file.write_text("".join(secrets.choice(alphabet) for _ in range(8)))
    return file.read_text().split()[0]


def wandb_mode(environment: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """("online" | "offline" | WANDB_MODE, why it is offline). Never asks, never waits for more than 3 seconds."""
    if environment.get("WANDB_MODE"):
        return environment["WANDB_MODE"], ""
    url = urlsplit(environment.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    if not environment.get("WANDB_API_KEY") and not _netrc_knows(url.hostname or ""):
        return "offline", "not logged in: run `wandb login` or set WANDB_API_KEY"
    if failed := connection_error(url.geturl()):
        host, error = failed
        return "offline", f"{host} cannot be reached: {error}"
    return "online", ""


def _netrc_knows(host: str) -> bool:
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def not_uploaded(output_dir: Path) -> list[Path]:
    """Folders of the run's offline parts that `wandb sync` has not uploaded."""
    return sorted(
        file.parent
        for file in output_dir.glob("wandb/offline-run-*/run-*.wandb")
        if not file.with_name(f"{file.name}.synced").is_file()
    )


@contextmanager
def token_hidden() -> Iterator[None]:
    """wandb writes the command line into its files; --hub_token must not be in it."""
    kept = sys.argv
    sys.argv = [re.sub(r"^(--hub_token=).*", r"\1***", word) for word in kept]
    for i, word in enumerate(kept[:-1]):
        if word == "--hub_token":
            sys.argv[i + 1] = "***"
    try:
        yield
    finally:
        sys.argv = kept
