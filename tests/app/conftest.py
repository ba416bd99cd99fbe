"""One server and one browser for all tests of a module."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
STARTING = 120  # seconds


@dataclass
class Served:
    """The page's address, the process that serves it, and the folder that its temporary files go to."""

    address: str
    process: subprocess.Popen
    temporary: Path

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def start(folder: Path, *words: object) -> Served:
    """app.py, run in `folder` with nothing but these flags and a CPU; its temporary files go to a folder below."""
    temporary = folder / "temporary"
    temporary.mkdir()
    env = {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, ROOT / "app.py", "--device", "cpu", *words]
    process = subprocess.Popen(
        [*map(str, command)], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    timer = threading.Timer(STARTING, process.kill)
    timer.start()
    said = ""
    for line in process.stdout:
        said += line
        if found := re.match(r"next: open (http://127\.0\.0\.1:\d+)/", line):
            timer.cancel()
            threading.Thread(target=process.stdout.read, daemon=True).start()  # so that the pipe is never full
            return Served(found[1], process, temporary)
    raise AssertionError(f"app.py did not start:\n{said}")


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    """The page as `python app.py` serves it from a folder that is not the project's; diffusion in few steps."""
    app = start(tmp_path_factory.mktemp("elsewhere"), "--steps", 2)
    yield app
    app.stop()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, served):
    """A fresh page; its `seen` holds the addresses of all requests, `broken` what JavaScript has thrown."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.seen, opened.broken = [], []
    opened.on("request", lambda request: opened.seen.append(request.url))
    opened.on("pageerror", lambda error: opened.broken.append(str(error)))
    opened.on("dialog", lambda dialog: (opened.broken.append(dialog.message), dialog.dismiss()))
    opened.goto(served.address)
    opened.wait_for_selector("#compare .frame")
    yield opened
    opened.close()
