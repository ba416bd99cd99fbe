"""One server and one browser for all tests of a module."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import sync_playwright
from serving import Served, start

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that need the running server or a browser as slow: those take ten seconds to start."""
    for item in items:
        if {"served", "page"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    """The page as `python -m app` serves it from a folder that is not the project's; diffusion in few steps."""
    app = start(tmp_path_factory.mktemp("elsewhere"), "--steps", 2)
    yield app
    app.stop()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, served):
    """A fresh page; its `seen` holds the addresses of all requests, `broken` what JavaScript has thrown."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(240_000)  # milliseconds, on a busy machine
    opened.seen, opened.broken = [], []
    opened.on("request", lambda request: opened.seen.append(request.url))
    opened.on("pageerror", lambda error: opened.broken.append(str(error)))
    opened.on("dialog", lambda dialog: (opened.broken.append(dialog.message), dialog.dismiss()))
    with opened.expect_response("**/*_3d.glb") as surface:  # the example is predicted
        opened.goto(served.address)
    surface.value.finished()
    opened.wait_for_selector("#light canvas")
    # Gradio's 3D view throws where its model is cleared while it loads: two frames later it has been drawn
    opened.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    yield opened
    opened.close()
