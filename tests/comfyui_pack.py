"""The ComfyUI pack without ComfyUI: its modules, imported with stand-ins for those of ComfyUI that it calls."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from helpers import ROOT
from safetensors.torch import load_file

PACK = ROOT / "integrations" / "comfyui" / "intrinsic_lora"


class Decoder:
    """A VAE whose decoder gives the maps (B,H,W,3) that it was made with."""

    def __init__(self, maps: torch.Tensor):
        self.maps = maps

    def encode(self, pixels):
        return pixels

    def decode(self, latent):
        return self.maps


class Guider:
    """Gives the latents back."""

    def __init__(self, model):
        pass

    def set_conds(self, conditioning):
        pass

    def sample(self, noise, latent, *rest, **options):
        return latent


class Model:
    """ComfyUI's model patcher, of which only the patches' names are looked at. layers: names with dots."""

    def __init__(self, layers):
        self.model, self.patches = list(layers), {}

    def clone(self):
        return Model(self.model)

    def add_patches(self, patches, strength):
        self.patches |= patches
        return list(patches)


def load_lora(state: dict, names: dict) -> dict:
    """ComfyUI's rule for kohya's keys: what it does not know, it leaves out; alpha / rank is the scale."""
    found = {}
    for name, layer in names.items():
        if f"{name}.lora_up.weight" in state:
            down, up = state[f"{name}.lora_down.weight"], state[f"{name}.lora_up.weight"]
            alpha = state.get(f"{name}.alpha")
            factor = 1.0 if alpha is None else alpha.item() / down.shape[0]
            found[layer] = factor * up.flatten(1).double() @ down.flatten(1).double()
    return found


def pack(patch, output: Path) -> SimpleNamespace:
    """The pack's modules `nodes`, `lora` and `maps`. patch: pytest's, which removes the stand-ins; output: ComfyUI's
    folder for what is saved.
    """

    def stand_in(name: str, **members: object) -> ModuleType:
        made = ModuleType(name)
        made.__dict__.update(members)
        patch.setitem(sys.modules, name, made)
        return made

    parts = {
        "lora": stand_in("comfy.lora", load_lora=load_lora, model_lora_keys_unet=lambda model, _: {
            f"lora_unet_{name.replace('.', '_')}": name for name in model}),
        "lora_convert": stand_in("comfy.lora_convert", convert_lora=lambda state: state),
        "utils": stand_in("comfy.utils", load_torch_file=lambda path, safe_load: load_file(path)),
        "samplers": stand_in("comfy.samplers", sampler_object=lambda name: name),
    }  # fmt: skip
    stand_in("comfy", **parts)
    stand_in("comfy_extras")
    stand_in("comfy_extras.nodes_custom_sampler", Guider_Basic=Guider)
    stand_in("comfy_extras.nodes_model_advanced", ModelSamplingDiscrete=object)
    stand_in(
        "folder_paths",
        get_save_image_path=lambda prefix, folder: (folder, prefix, 1, "", prefix),
        get_output_directory=lambda: str(output),
    )
    name = "intrinsic_lora_pack"
    spec = importlib.util.spec_from_file_location(name, PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    module = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, name, module)
    for part in ("nodes", "lora", "maps"):
        patch.delitem(sys.modules, f"{name}.{part}", raising=False)
    spec.loader.exec_module(module)
    return SimpleNamespace(**{part: sys.modules[f"{name}.{part}"] for part in ("nodes", "lora", "maps")})
