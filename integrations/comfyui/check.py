"""Runs the shipped workflows and nodes in the real ComfyUI, headless, and compares them with this project.

    make comfyui COMFYUI_DIR=path/to/ComfyUI                  # its Python: COMFYUI_PYTHON=path/to/python, if another

ComfyUI starts on the CPU in fp32, in a folder of its own (.comfyui/), with a Stable Diffusion 1.5 of full size and
random weights, and random LoRAs strong enough that a loading error would show. Each workflow is posted to its
HTTP API.
"""

import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file

from integrations.comfyui import workflows
from integrations.comfyui.workflows import pack_graph
from interop import full_size
from utils.base_model.single_file_parts import CONFIGS
from utils.cli import Parser, path_flag
from utils.errors import InputError, run
from utils.image_io.panels import to_uint8
from utils.inference import Predictor
from utils.intrinsics import INTRINSICS
from utils.lora.keys import make_key
from utils.lora.layers import layers_of
from utils.lora.targets import ALL, ATTENTION
from utils.paths import ROOT

WORK, PORT, PACK = ROOT / ".comfyui", 8199, Path(__file__).with_name("intrinsic_lora")
WHERE = "get it with: git clone https://github.com/comfyanonymous/ComfyUI, and install its requirements.txt"
CHECKPOINT, AT_400 = "sd15_random.safetensors", "normal_t400"
STRENGTH = 0.5


def random_lora(path: Path, task: str, seed: int, timestep: int, size: int, kind: str = "diffusers") -> None:
    """A LoRA of rank 4 for SD 1.5, all of it random: on attention, or with kind="peft" on all layers."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(CONFIGS["sd1"] / "unet"))
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, layer in layers_of(unet, ATTENTION if kind == "diffusers" else ALL).items():
        out, into, *kernel = layer.weight.shape
        state[make_key(name, "down", kind)] = torch.randn(4, into, *kernel, generator=generator) / into**0.5
        state[make_key(name, "up", kind)] = STRENGTH * torch.randn(out, 4, *(1 for _ in kernel), generator=generator)
    said = {"task": task, "method": "single-step", "prompt": INTRINSICS[task].prompt, "timestep": str(timestep)}
    save_file(state, path, {**said, "resolution": str(size)})


def lay_out(size: int) -> None:
    """Models, LoRAs, the image and the pack of nodes, where ComfyUI looks for them."""
    for folder in ("models/checkpoints", "models/loras", "input", "output", "custom_nodes"):
        (WORK / folder).mkdir(parents=True, exist_ok=True)
    file = WORK / "models" / "checkpoints" / CHECKPOINT
    if not file.exists():
        full_size.main(["--keep", str(file)])
    for seed, task in enumerate(INTRINSICS):
        random_lora(WORK / "models" / "loras" / f"intrinsic_{task}.safetensors", task, seed, workflows.LAST, size)
    random_lora(WORK / "models" / "loras" / f"{AT_400}.safetensors", "normal", 7, 400, size)
    random_lora(WORK / "models" / "loras" / "all_peft.safetensors", "normal", 8, 400, size, "peft")
    shutil.rmtree(WORK / "output")
    shutil.rmtree(WORK / "custom_nodes" / PACK.name, ignore_errors=True)
    shutil.copytree(PACK, WORK / "custom_nodes" / PACK.name, ignore=shutil.ignore_patterns("__pycache__"))
    y, x = np.mgrid[:size, :size] / size
    pixels = np.stack([x, y, (np.sin(20 * x * y) + 1) / 2], -1)
    Image.fromarray((255 * pixels).astype(np.uint8)).save(WORK / "input" / "photo.png")
    Image.fromarray((255 * pixels[: 5 * size // 8]).astype(np.uint8)).save(WORK / "input" / "wide.png")


def start(comfyui: Path, python: str) -> subprocess.Popen:
    words = ["--cpu", "--port", PORT, "--base-directory", WORK, "--disable-auto-launch", "--fp32-unet", "--fp32-vae"]
    words += ["--fp32-text-enc", "--database-url", f"sqlite:///{WORK}/comfyui.db"]
    with (WORK / "comfyui.log").open("w") as log:
        server = subprocess.Popen([python, "main.py", *map(str, words)], cwd=comfyui, stdout=log, stderr=log)
    for _ in range(180):
        try:
            call("system_stats")
            return server
        except (urllib.error.URLError, ConnectionError):
            if server.poll() is not None:
                break
            time.sleep(1)
    server.kill()
    raise InputError(f"{comfyui}: ComfyUI did not start; its output: {WORK / 'comfyui.log'}")


def call(path: str, body: Mapping | None = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/{path}", data, timeout=60) as answer:
        return json.loads(answer.read())


def post(graph: workflows.Graph) -> dict:
    """Run a workflow; return the history's entry, also after an error."""
    try:
        number = call("prompt", {"prompt": graph})["prompt_id"]
    except urllib.error.HTTPError as error:
        raise SystemExit(f"ComfyUI refuses the workflow: {error.read().decode()[:2000]}") from None
    while True:
        if (found := call(f"history/{number}")) and number in found:
            return found[number]
        time.sleep(0.5)


def saved(entry: dict) -> list[Path]:
    """The files of a run that went well."""
    if entry["status"]["status_str"] != "success":
        raise SystemExit(f"ComfyUI failed: {json.dumps(entry['status'])[-1500:]}")
    found = [file for node in entry["outputs"].values() for file in node.get("files", node.get("images", []))]
    return [WORK / "output" / file["subfolder"] / file["filename"] for file in found]


def in_comfyui(comfyui: Path, python: str, size: int) -> tuple[dict[str, np.ndarray], str]:
    """Name -> ComfyUI's result, and the message with which the pack refuses a LoRA that does not fit."""
    settings, found = {"checkpoint": CHECKPOINT, "size": size}, {}
    server = start(comfyui, python)
    try:
        for task in INTRINSICS:
            graph = workflows.graph(task, INTRINSICS[task].prompt, **settings)
            found[f"stock {task}"] = np.asarray(Image.open(saved(post(graph))[0]))
        at_400 = workflows.graph("normal", "surface normal", 400, lora=f"{AT_400}.safetensors", **settings)
        found[f"stock {AT_400}"] = np.asarray(Image.open(saved(post(at_400))[0]))
        for name, lora, image in (
            ("nodes normal", "intrinsic_normal", "photo"), ("nodes depth", "intrinsic_depth", "photo"),
            (f"nodes {AT_400}", AT_400, "photo"), ("nodes wide", "intrinsic_normal", "wide"),
            ("nodes all layers, peft keys", "all_peft", "photo"),
        ):  # fmt: skip
            files = saved(post(pack_graph(CHECKPOINT, f"{lora}.safetensors", f"{image}.png")))
            found[name] = np.asarray(Image.open(next(file for file in files if "picture" in file.name)))
        cut = WORK / "models" / "loras" / "cut.safetensors"
        nowhere = "unet.elsewhere.attn1.processor.to_q_lora"
        state = {f"{nowhere}.down.weight": torch.zeros(4, 8), f"{nowhere}.up.weight": torch.zeros(8, 4)}
        save_file(state, cut, {"task": "normal"})
        refused = json.dumps(post(pack_graph(CHECKPOINT, cut.name, "photo.png"))["status"])
    finally:
        server.terminate()
        server.wait(60)
    return found, refused


def by_this_project(size: int) -> dict[str, np.ndarray]:
    """The same names, from `Predictor`, which inference_sd_single.py runs."""
    base, loras = str(WORK / "models" / "checkpoints" / CHECKPOINT), WORK / "models" / "loras"
    square, whole = {"center_crop": True, "output_size": "network", "resolution": size}, {"resolution": size}
    photo, wide, expected = WORK / "input" / "photo.png", WORK / "input" / "wide.png", {}
    shipped = Predictor([loras / f"intrinsic_{task}.safetensors" for task in INTRINSICS], base, "cpu", **square)
    for task, prediction in shipped(photo).items():
        expected[f"stock {task}"] = to_uint8(prediction.map)
        expected[f"nodes {task}"] = prediction.image
    del shipped
    for lora, name in ((AT_400, AT_400), ("all_peft", "all layers, peft keys")):
        predicted = Predictor(loras / f"{lora}.safetensors", base, "cpu", **square)(photo)["normal"].image
        expected |= {f"stock {name}": predicted, f"nodes {name}": predicted}
    whole_picture = Predictor(loras / "intrinsic_normal.safetensors", base, "cpu", **whole)
    return expected | {"nodes wide": whole_picture(wide)["normal"].image}


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--comfyui_dir", type=path_flag, help="the folder that holds ComfyUI's main.py")
    parser.add_argument("--python", default=sys.executable, help="a Python that has ComfyUI's requirements")
    parser.add_argument("--size", type=int, default=128, help="side of the square images in pixels, a multiple of 64")
    args = parser.parse_args(argv)
    if args.comfyui_dir is None or not (args.comfyui_dir / "main.py").is_file():
        raise InputError(f"--comfyui_dir={args.comfyui_dir}: no main.py there; {WHERE}")
    lay_out(args.size)
    found, refused = in_comfyui(args.comfyui_dir.resolve(), args.python, args.size)
    expected, failed = by_this_project(args.size), 0
    for name, pixels in found.items():
        want = expected[name]
        want = np.stack([want] * 3, -1) if want.ndim == 2 else want
        difference = np.abs(pixels[..., :3].astype(int) - want)
        failed += difference.max() > 1
        print(f"{name:32} largest difference {difference.max()}/255, mean {difference.mean():.4f}; contrast "
            f"{want.std():.0f}/255")  # fmt: skip
    says_why = "would be left out" in refused
    print("a LoRA that fits nowhere: " + ("refused" if says_why else f"NOT refused: {refused[-500:]}"))
    return int(failed > 0 or not says_why)


if __name__ == "__main__":
    run(main)
