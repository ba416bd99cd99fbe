"""docs/comfyui.png: the shipped ComfyUI workflow, from its JSON. python docs/figures/comfyui_graph.py"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from integrations.comfyui.workflows import graph  # noqa: E402

WIDTH, HEIGHT = 2.25, 0.8
PLACES = {  # column, row
    "CheckpointLoaderSimple": (0, 1), "LoraLoaderModelOnly": (1, 0), "ModelSamplingDiscrete": (2, 0),
    "CLIPTextEncode": (1, 1), "LoadImage": (0, 3), "ImageScale": (1, 3), "VAEEncode": (2, 3), "DisableNoise": (3, 4),
    "BasicGuider": (3, 1), "KSamplerSelect": (3, 2), "BasicScheduler": (3, 0), "SetFirstSigma": (4, 0),
    "SamplerCustomAdvanced": (4, 2), "VAEDecode": (5, 2), "SaveImage": (5, 3),
}  # fmt: skip
SHOWN = ("ckpt_name", "lora_name", "sampling", "text", "image", "width", "sampler_name", "scheduler", "steps", "sigma")


def main() -> None:
    nodes = graph("normal", "surface normal", 400)
    figure = plt.figure(figsize=(14, 5.2), dpi=80)
    axis = figure.add_axes((0, 0, 1, 1))
    places = {number: PLACES[node["class_type"]] for number, node in nodes.items()}
    for number, node in nodes.items():
        x, y = places[number][0] * 2.6, -places[number][1] * 1.25
        optional = node["class_type"] == "SetFirstSigma"
        style = {"facecolor": "#fff4d6" if optional else "#e8eef7", "edgecolor": "#555"}
        axis.add_patch(plt.Rectangle((x, y), WIDTH, HEIGHT, linestyle="--" if optional else "-", **style, zorder=2))
        axis.text(x + WIDTH / 2, y + 0.55, node["class_type"], ha="center", va="center", fontsize=8.5, weight="bold")
        words = ["vae: the checkpoint's"] if node["class_type"] == "VAEDecode" else []
        words += [
            str(value) if key.endswith("_name") else f"{key}: {value}"
            for key, value in node["inputs"].items()
            if key in SHOWN and not isinstance(value, list)
        ]
        axis.text(x + WIDTH / 2, y + 0.24, "\n".join(words), ha="center", va="center", fontsize=7)
        for key, value in node["inputs"].items():
            if isinstance(value, list) and not (key == "vae" and node["class_type"] == "VAEDecode"):
                column, row = places[value[0]]
                same = column == places[number][0]
                begin = (column * 2.6 + (WIDTH / 2 if same else WIDTH), -row * 1.25 + (0 if same else HEIGHT / 2))
                end = (x + (WIDTH / 2 if same else 0), y + (HEIGHT if same else HEIGHT / 2))
                axis.annotate("", end, begin, arrowprops={"arrowstyle": "-|>", "color": "#777", "lw": 0.9}, zorder=1)
    axis.text(4 * 2.6, 1.0, "only for a LoRA of another timestep than 999", fontsize=7.5, style="italic")
    axis.set(xlim=(-0.2, 5 * 2.6 + WIDTH + 0.2), ylim=(-5.2, 1.3))
    axis.axis("off")
    figure.savefig(ROOT / "docs" / "comfyui.png")


if __name__ == "__main__":
    main()
