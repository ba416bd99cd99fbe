"""From a name to a base model of any family."""

import diffusers
import torch
import transformers

from utils.base_model.names import family_of, resolve
from utils.base_model.parts import Family
from utils.errors import InputError


def open_base(
    name: str,
    revision: str | None = None,
    side: int | None = None,
    dtype: torch.dtype = torch.float32,
    precision: str | None = None,
) -> Family:
    """The base model of a local folder, the hub or, of Stable Diffusion 1.x and 2.x, one file; on the CPU.

    Its model_index.json states the family; a folder without one is read as Stable Diffusion 1.x or 2.x. side: of the
    square training images in pixels. dtype: of the network, so that one of 4 billion parameters is never in memory in
    fp32; precision: see `load_component`. Raises InputError for a family that is unknown here or to the installed
    diffusers, a side that it cannot read, and where a part is missing or unreadable.
    """
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()  # one bar: the training's
    name = resolve(name)
    family, log = family_of(name, revision), transformers.utils.logging
    level = log.get_verbosity()
    log.set_verbosity_error()  # importing SD 3's pipeline warns of image processors that nothing here uses
    try:
        kind = _kind(family)
    except (ImportError, RuntimeError) as error:  # the latter is diffusers' own, where transformers is too old
        raise InputError(
            f"{name}: diffusers {diffusers.__version__} with transformers {transformers.__version__} cannot load the "
            f"family {family} ({str(error).splitlines()[0][:200]}); pip install --upgrade diffusers transformers"
        ) from None
    finally:
        log.set_verbosity(level)
    if kind is None:
        from utils.base_model.stable_diffusion import load_base

        return load_base(name, revision, dtype, precision)
    base = kind.load(name, revision, dtype, precision)
    base.check_side(side or 0)
    return base


def _kind(family: str) -> type[Family] | None:
    """The class of a family, imported only where it is used; None: Stable Diffusion 1.x and 2.x."""
    match family:
        case "sdxl":
            from utils.base_model.sdxl import StableDiffusionXL

            return StableDiffusionXL
        case "sd3":
            from utils.base_model.sd3 import StableDiffusion3

            return StableDiffusion3
        case "flux2":
            from utils.base_model.flux2 import Flux2

            return Flux2
        case "z_image":
            from utils.base_model.z_image import ZImage

            return ZImage
        case "qwen_image":
            from utils.base_model.qwen_image import QwenImage

            return QwenImage
    return None
