"""Every family against its own diffusers pipeline: what reaches the network, and the ways to latents and back.

The pipeline is called with the latents of an image in the place of noise. Whatever its network is then given, the
project's single step must give it too, under the same names.
"""

import inspect

import pytest
import torch
from tiny_families import FAMILIES, pipeline
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from utils.base_model.families import open_base

PROMPT, HEIGHT, WIDTH = "surface normal", 32, 48  # rows and columns differ, so that neither can stand for the other
FLOWS = {"sigmas": [0.6], "num_inference_steps": 1}
UNGUIDED = {"qwen_image": {"true_cfg_scale": 1.0}, "z_image": {"guidance_scale": 0.0}}  # others: guidance_scale 1
FLOW = [family for family in FAMILIES if family != "sdxl"]


@pytest.fixture
def image():
    generator = torch.Generator().manual_seed(5)
    return torch.rand(2, 3, HEIGHT, WIDTH, generator=generator) * 2 - 1


@pytest.fixture
def base(family, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return open_base(str(tiny(family)))


@pytest.fixture
def pipe(family, tiny):
    return pipeline(tiny(family))


def network_of(pipe) -> torch.nn.Module:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def reaching(network, call) -> dict:
    """The arguments, by name, of the network's one call in `call`, without the empty ones."""
    calls = []

    def spy(module, args, kwargs):
        calls.append(inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments)

    with network.register_forward_pre_hook(spy, with_kwargs=True), torch.no_grad():
        call()
    (arguments,) = calls
    arguments = {name: value for name, value in arguments.items() if name not in ("self", "return_dict")}
    return {name: value for name, value in arguments.items() if torch.is_tensor(value) or value not in (None, {})}


def generate(pipe, family, z, output="pt"):
    """The pipeline's one step from z (B,C,h,w), unguided, at step 400 or what the scheduler makes of a time of 0.6:
    images (B,3,H,W) in [0,1], or its own latents.
    """
    family = family.removesuffix("_without_t5")
    options = UNGUIDED.get(family, {"guidance_scale": 1.0}) | ({"timesteps": [400]} if family == "sdxl" else FLOWS)
    latents = pipe._pack_latents(z[:, :, None], *z.shape) if family == "qwen_image" else z
    texts = [PROMPT] * len(z)  # by name: the first argument of klein's pipeline is an image
    done = pipe(prompt=texts, height=HEIGHT, width=WIDTH, latents=latents, output_type=output, **options)
    return done.images


def assert_same(ours: object, theirs: object, name: str) -> None:
    if torch.is_tensor(theirs):
        theirs = theirs.expand(ours.shape) if theirs.ndim == 0 else theirs  # one time for all images
        assert ours.shape == theirs.shape, name
        ours, theirs = ours.double(), theirs.double()  # a batch of prompts is rounded otherwise than one of them
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5), name
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), name
        for key in theirs:
            assert_same(ours[key], theirs[key], key)
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs), name
        for one, other in zip(ours, theirs):
            assert_same(one, other, name)
    else:
        assert ours == theirs, name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_is_given_what_its_own_pipeline_gives_it(family, base, pipe, image):
    z = base.scaled(base.latent_mode(image))
    theirs = reaching(network_of(pipe), lambda: generate(pipe, family, z))
    time = pipe.scheduler.timesteps[0].item() / (1 if base.steps else 1000)
    assert time != base.timestep() and abs(1 - 2 * time) > 0.1, "a time that no other one could stand for"
    states = base.encode_prompt(PROMPT)
    ours = reaching(base.network, lambda: base.predict(base.network, z, time, states))
    assert_same(ours, theirs, family)


@pytest.mark.parametrize("family", FLOW)
def test_the_prediction_is_laid_out_as_the_latents_that_the_pipeline_steps_with(family, base, pipe, image):
    """The pipeline ends at z - t v. The prediction is v itself, but for Z-Image, whose network predicts -v."""
    z = base.scaled(base.latent_mode(image))
    latents = generate(pipe, family, z, output="latent")
    if family == "qwen_image":
        latents = pipe._unpack_latents(latents, HEIGHT, WIDTH, pipe.vae_scale_factor)[:, :, 0]
    end = base.scaled(latents) if family == "flux2" else latents  # klein's pipeline gives the VAE's own
    time = pipe.scheduler.sigmas[0].item()
    with torch.no_grad():
        prediction = base.predict(base.network, z, time, base.encode_prompt(PROMPT))
    assert prediction.shape == z.shape and prediction.std() > 0.05
    velocity = -prediction if family == "z_image" else prediction
    assert torch.allclose(end, z - time * velocity, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_latents_become_the_image_that_the_pipeline_makes_of_them(family, base, pipe, image):
    """With a scheduler that changes nothing, the pipeline ends where it begins."""
    z = base.scaled(base.latent_mode(image))
    pipe.scheduler.step = lambda output, t, latents, **options: (latents,)
    pipe.scheduler.set_timesteps(timesteps=[400]) if family == "sdxl" else None
    theirs = generate(pipe, family, z / getattr(pipe.scheduler, "init_noise_sigma", 1))
    with torch.no_grad():
        ours = base.decode(z)
    assert ours.std() > 0.05 and torch.allclose((ours / 2 + 0.5).clamp(0, 1), theirs, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_begins_with_the_latents_that_were_scaled(family, base, image):
    latents, given = base.latent_mode(image), []
    decoder = base.vae.decoder
    with decoder.register_forward_pre_hook(lambda module, args: given.append(args[0])), torch.no_grad():
        base.decode(base.scaled(latents))
        base.vae.decode(latents[:, :, None] if family == "qwen_image" else latents)
    assert torch.allclose(*given, atol=1e-5) and not torch.allclose(
        base.scaled(latents).std(), latents.std(), rtol=0.01
    )


def test_kleins_statistics_are_those_before_the_vae_was_rounded(tiny, image, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    base = open_base(str(tiny("flux2")))
    latents = base.latent_mode(image)
    exact = base.scaled(latents)
    base.to("cpu", torch.bfloat16)
    assert not torch.equal(base.vae.bn.running_var.float(), base.std.flatten() ** 2 - base.vae.config.batch_norm_eps)
    assert torch.equal(base.scaled(latents), exact)


def test_klein_in_bf16_normalises_in_fp32_and_rounds_once(tiny, image, monkeypatch, tmp_path):
    """Cached latents of a run in bf16 are bf16, and so is what its network reads and gives."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    base = open_base(str(tiny("flux2")))
    with torch.no_grad():
        exact = base.scaled(base.latent_mode(image))
        expected = base.predict(base.network, exact, 0.4, base.encode_prompt(PROMPT))
        base.to("cpu", torch.bfloat16)
        latents, given = base.latent_mode(image), []
        z = base.scaled(latents)
        decode = base.vae.decode
        monkeypatch.setattr(base.vae, "decode", lambda x, **more: given.append(x) or decode(x, **more))
        back = base.decode(z)
        found = base.predict(base.network, z, 0.4, base.encode_prompt(PROMPT))
    assert base.mean.dtype == base.std.dtype == torch.float32
    assert {each.dtype for each in (latents, z, back, found, *given)} == {torch.bfloat16}
    normalised = (pixel_unshuffle(latents.float(), 2) - base.mean) / base.std
    assert torch.equal(z, normalised.bfloat16())
    in_bf16 = (pixel_unshuffle(latents, 2) - base.mean.bfloat16()) / base.std.bfloat16()
    assert not torch.equal(z, in_bf16), "what rounding the statistics would give"
    assert torch.equal(given[0], pixel_shuffle(z.float() * base.std + base.mean, 2).bfloat16())
    for one, other in ((z, exact), (found, expected)):
        assert (one.float() - other).norm() < 0.03 * other.norm()
