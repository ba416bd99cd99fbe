"""The app's page in a headless Chromium: upload, predict, compare, light, download, and uploads that are refused."""

import io
import struct
import zlib
from urllib.request import urlopen

import numpy as np
import OpenEXR
import pytest
import trimesh
from helpers import ROOT
from PIL import Image
from serving import start

from app.results import relit
from utils.inference.job import SHIPPED
from utils.intrinsics import INTRINSICS

SIZE = (96, 72)
PREDICTING = 240_000  # milliseconds
TITLES = ["image", "normal", "depth", "depth, grey", "albedo", "shading"]


@pytest.fixture(scope="module")
def photograph() -> bytes:
    """A PNG of coarse colours."""
    coarse = Image.fromarray(np.random.default_rng(3).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return png(coarse.resize(SIZE, Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def maps(photograph) -> dict:
    """The LoRAs' predictions of it, without the app."""
    from utils.inference import Predictor

    predict = Predictor([SHIPPED / name for name in INTRINSICS], device="cpu")
    return predict(Image.open(io.BytesIO(photograph)).convert("RGB"))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def upload(page, data: bytes, name: str = "photo.png") -> None:
    if page.locator("#file input[type=file]").count() == 0:
        page.click("#file button[aria-label=Clear]")
    page.set_input_files("#file input[type=file]", {"name": name, "mimeType": "image/png", "buffer": data})


def predict(page, data: bytes | None = None) -> None:
    """Upload, unless the example is to be taken, predict, and wait for the light, which comes with the maps."""
    if data is not None:
        upload(page, data)
        page.wait_for_function(f"document.querySelector('#compare img.left')?.naturalWidth === {SIZE[0]}")
    page.click("#predict")
    page.wait_for_selector("#light canvas", timeout=PREDICTING)


def options(page) -> list[str]:
    return page.locator("select.side-left option").all_inner_texts()


def picture(page, side: str) -> np.ndarray:
    """The pixels of the slider's left or right image, (H,W,3)."""
    script = f"""() => {{
      const image = document.querySelector("#compare img.{side}");
      const [width, height] = [image.naturalWidth, image.naturalHeight];
      const sheet = Object.assign(document.createElement("canvas"), {{width, height}}).getContext("2d");
      sheet.drawImage(image, 0, 0);
      return [height, width, Array.from(sheet.getImageData(0, 0, width, height).data)];
    }}"""
    return as_array(page.evaluate(script))


def lit(page) -> np.ndarray:
    """The scene under the light, once it is painted, (H,W,3)."""
    script = """() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
      const canvas = document.querySelector("#light canvas");
      const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      done([canvas.height, canvas.width, Array.from(pixels)]);
    })))"""
    return as_array(page.evaluate(script))


def as_array(found: list) -> np.ndarray:
    height, width, values = found
    return np.array(values, dtype=float).reshape(height, width, 4)[..., :3]


def screen(page) -> np.ndarray:
    """The slider as it is on the screen, scaled to the image's size, (H,W,3)."""
    shot = Image.open(io.BytesIO(page.locator("#compare .frame").screenshot())).convert("RGB")
    return np.asarray(shot.resize(SIZE, Image.Resampling.BOX)).astype(float)


def refusals(page) -> list[str]:
    """The messages on the page, once there is one."""
    page.wait_for_selector(".toast-body")
    return [text.removeprefix("Error\n×\n") for text in page.locator(".toast-body").all_inner_texts()]


def test_an_upload_is_predicted_and_both_sides_show_every_map(page, photograph, maps):
    predict(page, photograph)
    assert options(page) == TITLES
    pictures = {"image": np.asarray(Image.open(io.BytesIO(photograph)).convert("RGB"))}
    for one in maps.values():
        pictures |= one.intrinsic.map_kind.shown(one.values)
    for side in ("left", "right"):
        for title in TITLES:
            page.select_option(f"select.side-{side}", title)
            found = picture(page, side)
            assert found.shape == (*SIZE[::-1], 3)
            assert np.abs(found - pictures[title]).mean() < 4, title  # JPEG
    assert page.broken == []


def test_the_slider_uncovers_one_side_and_the_other_by_keyboard(page, photograph):
    predict(page, photograph)
    page.select_option("select.side-left", "depth, grey")
    page.select_option("select.side-right", "image")
    slider = page.locator("#compare input[type=range]")
    slider.focus()
    page.keyboard.press("End")
    left = screen(page)
    page.keyboard.press("Home")
    right = screen(page)
    assert np.abs(left - picture(page, "left")).mean() < 8
    assert np.abs(right - picture(page, "right")).mean() < 8
    assert np.abs(left - right).mean() > 32
    page.keyboard.press("ArrowRight")
    assert page.locator("#compare .frame").evaluate("node => node.style.getPropertyValue('--at')") == "0.5%"


def test_the_light_is_lamberts_and_moving_it_changes_the_pixels(page, photograph, maps):
    predict(page, photograph)
    before = lit(page)
    assert np.abs(before - lambert(maps, 0.3, 0.25)).mean() < 2
    page.locator("#light canvas").hover()
    box = page.locator("#light canvas").bounding_box()
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.7 * box["height"])
    page.mouse.up()
    after = lit(page)
    assert np.abs(after - before).mean() > 3
    assert np.abs(after - lambert(maps, 0.8, 0.7)).mean() < 2
    page.locator("#light canvas").focus()
    page.keyboard.press("ArrowLeft")
    assert np.abs(lit(page) - after).max() > 0


def lambert(maps, x: float, y: float, height: float = 0.5, ambient: float = 0.15) -> np.ndarray:
    """The scene by numpy, [0,255]: albedo times the cosine, in linear light; the lamp in shares of the map's sides."""
    normals, albedo = maps["normal"].values, np.clip(maps["albedo"].values, 0, 1)
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5
    to_lamp = [x * SIZE[0] - columns, y * SIZE[1] - rows, np.full(rows.shape, -height * SIZE[0])]  # opencv, as the map
    direction = np.stack(to_lamp, -1) / np.linalg.norm(to_lamp, axis=0)[..., None]
    cosine = np.maximum(0, (normals * direction).sum(-1))[..., None]
    linear = np.where(albedo <= 0.04045, albedo / 12.92, ((albedo + 0.055) / 1.055) ** 2.4)
    light = linear * (ambient + (1 - ambient) * cosine)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def test_without_an_albedo_the_scene_is_white(maps):
    value = relit({"normal": maps["normal"]})
    assert value["normals"].startswith("data:image/png") and value["albedo"] is None
    assert relit({"depth": maps["depth"]}) is None


def test_downloads_open_and_hold_what_the_predictor_says(page, photograph, maps, tmp_path):
    predict(page, photograph)
    page.click("#make")
    page.wait_for_selector("#made a[download]")
    files = {}
    for link in page.locator("#made a[download]").all():
        with page.expect_download() as started:
            link.click()
        path = tmp_path / started.value.suggested_filename
        started.value.save_as(path)
        files[path.name] = path
    assert sorted(files) == sorted(
        [f"photo_{name}{ending}" for name in maps for ending in ("_16bit.png", ".exr")] + ["photo_depth.glb"]
    )
    channels = OpenEXR.File(str(files["photo_normal.exr"]), separate_channels=True).channels()
    normals = np.stack([channels[axis].pixels for axis in "XYZ"], -1)
    assert np.abs(normals - maps["normal"].values).max() < 1e-3
    depth = np.asarray(Image.open(files["photo_depth_16bit.png"])).astype(float) / 65535
    values = maps["depth"].values
    assert np.abs(depth - (values - values.min()) / np.ptp(values)).max() < 1e-3
    assert len(next(iter(trimesh.load(files["photo_depth.glb"]).geometry.values())).vertices) == SIZE[0] * SIZE[1]


def test_the_depth_is_shown_as_a_surface(page, photograph):
    with page.expect_response(lambda answer: answer.url.endswith(".glb"), timeout=PREDICTING) as answer:
        predict(page, photograph)
    assert answer.value.body()[:4] == b"glTF"
    page.wait_for_selector("#surface canvas")


def test_diffusion_in_an_ensemble_shows_its_uncertainty(page, photograph):
    page.click("#loras label:has-text('mini-loras/normal')")
    page.click("#loras label:has-text('diffusion')")
    page.locator("#ensemble input[type=number]").fill("2")
    page.keyboard.press("Tab")
    predict(page, photograph)
    assert sorted(options(page)) == sorted([*TITLES, "normal, uncertainty"])
    page.select_option("select.side-left", "normal, uncertainty")
    assert np.ptp(picture(page, "left")) > 0


def test_two_loras_of_one_intrinsic_are_refused(page):
    page.click("#loras label:has-text('diffusion')")
    page.click("#predict")
    assert refusals(page) == ["two of the ticked LoRAs predict normal; tick one of them"]


def test_an_example_is_there_from_the_start_and_another_can_be_taken(page):
    page.wait_for_function("document.querySelector('#compare img.left')?.naturalWidth === 640")
    page.locator("#examples button", has_text="coffee").click()
    page.wait_for_function("document.querySelector('#compare img.left')?.naturalWidth === 600")


def test_the_first_example_is_predicted_without_a_click_and_as_the_predictor_does(page):
    from utils.inference import Predictor

    assert options(page) == TITLES
    predict = Predictor([SHIPPED / name for name in INTRINSICS], device="cpu")
    maps = predict(ROOT / "examples" / "room.jpg")
    for title, side in (("albedo", "left"), ("normal", "right")):
        page.select_option(f"select.side-{side}", title)
        expected = maps[title].intrinsic.map_kind.shown(maps[title].values)[title]
        assert np.abs(picture(page, side) - expected).mean() < 4, title
    page.click("#make")
    page.wait_for_selector("#made a[download]")


def test_an_image_chosen_before_the_example_is_predicted_stays(browser, tmp_path, photograph):
    """A server of its own, whose first page is just being predicted."""
    app = start(tmp_path)
    try:
        page = browser.new_page()
        page.set_default_timeout(PREDICTING)
        page.goto(app.address)
        page.wait_for_selector("#compare .frame")
        upload(page, photograph)
        page.wait_for_function(f"document.querySelector('#compare img.left')?.naturalWidth === {SIZE[0]}")
        assert page.locator("#light canvas").count() == 0, "too late to test anything"
        with urlopen(app.address) as answer:  # the server answers while it predicts
            assert answer.status == 200
        other = browser.new_page()
        other.set_default_timeout(PREDICTING)
        other.goto(app.address)
        other.wait_for_selector("#light canvas", timeout=PREDICTING)
        page.wait_for_timeout(1000)
        assert options(page) == ["image"] and page.locator("#light canvas").count() == 0
    finally:
        app.stop()


def test_the_page_says_that_the_base_is_a_toy(page):
    said = "mini-sd is a toy: it demonstrates the pipeline, not the quality you get with Stable Diffusion."
    assert said in page.locator("#intro").inner_text()


def test_a_photograph_of_24_megapixels_is_scaled_and_the_page_says_so(page):
    buffer = io.BytesIO()
    Image.new("RGB", (6000, 4000), (200, 90, 40)).save(buffer, "JPEG")
    upload(page, buffer.getvalue(), "phone.jpg")
    page.wait_for_selector("#notice >> text=phone.jpg has 24 megapixels: scaled to 4898x3265 pixels.")
    upload(page, png(Image.new("RGB", SIZE)), "small.png")
    page.wait_for_selector("#notice", state="hidden")


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header gives these sides."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 999))]
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


HOSTILE = {
    "a decompression bomb": ("photo.png", bomb(30000, 30000), "photo.png: not a readable image (Image size"),
    "one that Pillow would only warn of": ("a.png", bomb(10000, 10000), "a.png: 10000x10000 pixels, more than"),
    "more pixels than we take": ("a.png", bomb(9460, 9460), "a.png: 9460x9460 pixels, more than 89,478,485; scale it"),
    "text": ("text.png", b"hello", "text.png: not a readable image (cannot identify image file"),
    "a way out of the folder": ("../../../evil.png", b"hello", "evil.png: not a readable image"),
    "markup": ("<img src=x onerror=alert(1)>.png", b"hello", "img src=x onerror=alert(1).png: not a readable image"),
}


@pytest.mark.parametrize(("name", "data", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_upload_is_refused_with_one_line(page, served, name, data, reason):
    upload(page, data, name)
    said = refusals(page)
    assert len(said) == 1 and said[0].startswith(reason) and "\n" not in said[0]
    assert str(served.temporary) not in said[0]
    assert page.broken == []
    elsewhere = served.temporary.parent.parent  # of pytest's own
    assert all(path.is_relative_to(served.temporary) for path in elsewhere.rglob("*evil.png*"))


def test_nothing_is_loaded_from_elsewhere(page, served):
    predict(page)
    page.wait_for_selector("#surface canvas")
    assert len(page.seen) > 10
    assert [url for url in page.seen if not url.startswith((served.address, "data:", "blob:"))] == []


def test_a_narrow_screen_shows_everything_without_scrolling_sideways(page):
    page.set_viewport_size({"width": 360, "height": 740})
    predict(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for part in ("#file", "#examples", "#loras", "#predict", "#compare .frame", "#light canvas", "#surface", "#make"):
        box = page.locator(part).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["width"] > 60, part


def test_the_page_can_be_used_by_keyboard_alone(page):
    page.locator("#file button, #file input").first.focus()
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "predict":
            break
    page.keyboard.press("Enter")
    page.wait_for_selector("#light canvas", timeout=PREDICTING)
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.tagName + ' ' + document.activeElement.className"))
    reached = " ".join(reached)
    assert all(word in reached for word in ("SELECT side-left", "SELECT side-right", "CANVAS", "INPUT height"))
