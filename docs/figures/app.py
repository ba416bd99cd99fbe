"""Takes the screenshots of the app's page: docs/app.jpg and docs/app_narrow.jpg.

    python -m app --port 7993 &
    python docs/figures/app.py http://127.0.0.1:7993

Needs Chromium and `pip install playwright`.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

HERE = Path(__file__).resolve().parent.parent
SCREENS = {"app": (1200, 1000), "app_narrow": (380, 800)}
SETTLING = 8000  # milliseconds, for the surface
LAMP = (0.62, 0.3)


def predict(page: Page, ensemble: bool) -> None:
    """The cup, by the shipped LoRAs; normals by diffusion, in an ensemble, where wanted."""
    page.locator("#examples button", has_text="coffee").click()
    page.wait_for_function("document.querySelector('#compare img.left')?.naturalWidth === 600")
    if ensemble:
        for name in ("mini-loras/normal", "diffusion"):
            page.click(f"#loras label:has-text('{name}')")
        page.locator("#ensemble input[type=number]").fill("4")
        page.keyboard.press("Tab")
    page.click("#predict")
    page.wait_for_selector("#light canvas", timeout=300_000)
    page.wait_for_selector("#surface canvas", timeout=60_000)


def take(browser: Browser, address: str, name: str) -> None:
    width, height = SCREENS[name]
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(address)
    page.wait_for_selector("#compare .frame", timeout=60_000)
    predict(page, ensemble=name == "app")
    page.locator("#light canvas").hover()
    box = page.locator("#light canvas").bounding_box()
    page.mouse.down()
    page.mouse.move(box["x"] + LAMP[0] * box["width"], box["y"] + LAMP[1] * box["height"])
    page.mouse.up()
    page.wait_for_timeout(SETTLING)
    page.evaluate("scrollTo(0, 0)")
    shot = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    shot.save(HERE / f"{name}.jpg", quality=82, optimize=True)
    page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    args = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name in SCREENS:
            take(browser, args.address, name)
        browser.close()


if __name__ == "__main__":
    main()
