"""The two objectives in closed form, with networks whose answers can be computed by hand."""

import copy
import dataclasses
import hashlib
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from helpers import around

from miniworld.pretraining.random_sd import build_scheduler, build_unet, build_vae
from utils.intrinsics import NORMAL
from utils.latents import cells, channels, mode, moments, reduction, training_latents
from utils.noise import gaussian, generators, noise_of
from utils.objectives import AugUNet, SingleStep, rescale, zero_snr_scheduler

PROMPT, EMPTY = torch.full((1, 77, 64), 0.5), torch.zeros(1, 77, 64)


class Spy(torch.nn.Module):
    """A "UNet" that answers by a function of its input and remembers what it was asked."""

    def __init__(self, answer=lambda z, t, text: z[:, :4]):
        super().__init__()
        self.answer, self.calls = answer, []

    def forward(self, z, t, text):
        self.calls.append((z, t, text))
        return SimpleNamespace(sample=self.answer(z, t, text))


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    made = build_vae().eval().requires_grad_(False)
    made.quant_conv.bias.data[4:] += 6  # a wider posterior, so that a sample is visibly not the mode
    return made


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    rgb, target = torch.rand(2, 2, 3, 32, 32, generator=generator) * 2 - 1
    return {"rgb": rgb, "target": target}


def augunet(vae, **options) -> AugUNet:
    return AugUNet(vae, PROMPT, EMPTY, zero_snr_scheduler(build_scheduler("v_prediction")), **options)


def test_single_step_asks_once_at_the_last_timestep_without_noise(vae, batch):
    spy = Spy()
    loss = SingleStep(around(vae), PROMPT, 999).loss(spy, batch, generators(0, 0, 2))
    (z, t, text), *more = spy.calls
    assert not more and t.tolist() == [999, 999]
    torch.testing.assert_close(z, 4.0 * vae.encode(batch["rgb"]).latent_dist.mode())  # scaled by scaling_factor
    assert torch.equal(text, PROMPT.expand(2, -1, -1))
    posterior = vae.encode(batch["target"]).latent_dist
    eps = torch.stack([torch.randn(4, 8, 8, generator=generator) for generator in generators(0, 0, 2)])
    target = 4.0 * (posterior.mean + posterior.std * eps)
    torch.testing.assert_close(loss, ((z - target) ** 2).mean())
    assert loss.dtype == torch.float32


def test_single_step_decodes_what_the_unet_drew(vae, batch):
    method = SingleStep(around(vae), PROMPT, 999)
    drawn = method.predict(Spy(lambda z, t, text: 2 * z), batch["rgb"])
    torch.testing.assert_close(drawn, vae.decode(2 * vae.encode(batch["rgb"]).latent_dist.mode()).sample)


def test_augunet_trains_on_the_schedulers_velocity(vae, batch):
    method, spy = augunet(vae), Spy()
    loss = method.loss(spy, batch, generators(7, 0, 2))
    ((z, t, text),) = spy.calls
    noise = generators(7, 0, 2)
    z0 = 4.0 * training_latents(vae, batch, noise)[1]
    eps = gaussian(z0.shape, noise, z0)
    drawn = torch.cat([torch.randint(1000, (1,), generator=generator) for generator in noise])
    assert t.tolist() == drawn.tolist() and t[0] != t[1]
    alpha = method.scheduler.alphas_cumprod[t].sqrt().view(-1, 1, 1, 1)
    sigma = (1 - method.scheduler.alphas_cumprod[t]).sqrt().view(-1, 1, 1, 1)
    torch.testing.assert_close(z[:, :4], alpha * z0 + sigma * eps)
    torch.testing.assert_close(z[:, 4:], vae.encode(batch["rgb"]).latent_dist.mode())  # not scaled
    torch.testing.assert_close(loss, ((z[:, :4] - (alpha * eps - sigma * z0)) ** 2).mean())
    assert torch.equal(text, PROMPT.expand(2, -1, -1))


def test_in_bf16_the_schedule_and_the_samplers_state_stay_fp32(vae):
    """At t < 10, 1 - alpha is below bf16's resolution: z_t would be z0 exactly, and v would lose its first term."""
    half = copy.deepcopy(vae).to(torch.bfloat16)
    latents = {name: torch.randn(8, 4, 8, 8).to(torch.bfloat16) for name in ("rgb_mode", "target_mean")}
    latents["target_std"] = torch.zeros_like(latents["rgb_mode"])
    z0 = vae.config.scaling_factor * latents["target_mean"].float()

    def perfect(z, t, text):  # the velocity, from the noise that the test knows: gaussian draws the target's first
        noise = generators(3, 0, len(z))
        gaussian(z0.shape, noise, z0)
        return method.scheduler.get_velocity(z0, gaussian(z0.shape, noise, z0), t)

    method, spy = augunet(half), Spy(perfect)
    method.prompt, method.empty_prompt = PROMPT.bfloat16(), EMPTY.bfloat16()
    assert method.loss(spy, latents, generators(3, 0, 8)) == 0, "v is the schedule's own in fp32"
    assert spy.calls[0][0].dtype == torch.bfloat16
    sampled = method.latents(Spy(), latents["rgb_mode"], torch.randn(8, 4, 8, 8))
    assert sampled.dtype == torch.float32 and not torch.equal(sampled, sampled.bfloat16().float())


def test_noise_offset_shifts_whole_channels(vae, batch):
    plain, shifted = Spy(), Spy()
    augunet(vae).loss(plain, batch, generators(7, 0, 2))
    # the offset is drawn after eps, so eps is the same; the timestep is drawn later and may differ
    method = augunet(vae, noise_offset=0.5)
    method.loss(shifted, batch, generators(7, 0, 2))
    noise = generators(7, 0, 2)
    z0 = 4.0 * training_latents(vae, batch, noise)[1]
    eps = gaussian(z0.shape, noise, z0) + 0.5 * gaussian((2, 4, 1, 1), noise, z0)
    z, t, _ = shifted.calls[0]
    torch.testing.assert_close(z[:, :4], method.scheduler.add_noise(z0, eps, t))
    assert not torch.equal(z[:, :4], plain.calls[0][0][:, :4])


def test_the_schedule_ends_in_pure_noise():
    scheduler = zero_snr_scheduler(build_scheduler())
    assert scheduler.alphas_cumprod[-1] == 0 and scheduler.config.prediction_type == "v_prediction"
    assert (scheduler.alphas_cumprod.diff() < 0).all()


def three_branch(unet, z_t, cond, t, method, image_guidance=1.0):
    """InstructPix2Pix's equation 3 unchanged, with all three evaluations."""
    nothing = torch.zeros_like(cond)
    ask = lambda c, text: unet(torch.cat([z_t, c], 1), t, text.expand(len(z_t), -1, -1)).sample  # noqa: E731
    neither, image, both = ask(nothing, EMPTY), ask(cond, EMPTY), ask(cond, PROMPT)
    guided = neither + image_guidance * (image - neither) + method.guidance_scale * (both - image)
    return rescale(guided, both, method.guidance_rescale)


def test_two_branches_equal_three(vae):
    torch.manual_seed(0)
    unet: UNet2DConditionModel = build_unet(in_channels=8).eval()
    z_t, cond = torch.randn(2, 2, 4, 16, 16)
    method, t = augunet(vae), torch.tensor(500)
    with torch.no_grad():
        two, three = method.guided(unet, z_t, cond, t), three_branch(unet, z_t, cond, t, method)
        other = three_branch(unet, z_t, cond, t, method, image_guidance=1.5)
    torch.testing.assert_close(two, three, atol=1e-5, rtol=1e-5)
    assert (two - other).abs().max() > 1e-3  # the comparison can tell


def test_rescaling_restores_the_spread_of_every_sample():
    torch.manual_seed(0)
    guided, reference = 3 * torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    spread = rescale(guided, reference, 1.0).std(dim=(1, 2, 3))
    torch.testing.assert_close(spread, reference.std(dim=(1, 2, 3)))
    assert torch.equal(rescale(guided, reference, 0.0), guided)
    torch.testing.assert_close(rescale(guided, reference, 0.7)[:1], rescale(guided[:1], reference[:1], 0.7))


def test_sampling_recovers_the_answer_of_a_perfect_network(vae):
    """A network that always knows z0 answers v = (alpha z_t - z0) / sigma; the sampler must then arrive at z0."""
    method = augunet(vae)
    z0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    seen = []

    def perfect(z, t, text):
        seen.append(int(t))
        alpha2 = method.scheduler.alphas_cumprod[int(t)].clamp(min=2**-24)
        return (alpha2.sqrt() * z[:, :4] - z0) / (1 - alpha2).sqrt()

    drawn = method.predict(Spy(perfect), torch.zeros(1, 3, 32, 32), generators(0, 0, 1))
    expected = vae.decode(z0 / 4.0).sample
    assert len(seen) == 25 and seen[0] == 999 and seen == sorted(seen, reverse=True)
    assert (drawn - expected).abs().max() < 0.02 * expected.abs().max()


def test_a_samples_drawing_does_not_depend_on_its_batch(vae):
    torch.manual_seed(0)
    unet, rgb = build_unet(in_channels=8).eval(), torch.rand(3, 3, 32, 32) * 2 - 1
    method = augunet(vae, steps=3)
    with torch.no_grad():
        together = method.predict(unet, rgb, generators(5, 0, 3))
        alone = torch.cat([method.predict(unet, rgb[i : i + 1], generators(5, i, 1)) for i in range(3)])
        again = method.predict(unet, rgb, generators(5, 0, 3))
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    assert torch.equal(
        together, again
    )  # rescaling works the same on every call (the released sampler's second differs)


def test_latents_have_the_size_that_the_vae_gives_them(vae, batch):
    assert (channels(vae), 32 // reduction(vae), 32 // reduction(vae)) == mode(vae, batch["rgb"]).shape[1:]


def test_posterior_sample_and_mode(vae, batch):
    draws = torch.stack([training_latents(vae, batch, generators(1, 2 * i, 2))[1] for i in range(200)])
    posterior = vae.encode(batch["target"]).latent_dist
    torch.testing.assert_close(draws.std(0).mean(), posterior.std.mean(), rtol=0.05, atol=0)
    torch.testing.assert_close(mode(vae, batch["target"]), posterior.mean)


@pytest.mark.parametrize("method", ["single-step", "augunet"])
def test_latents_that_are_brought_along_give_the_same_loss(vae, batch, method):
    objective = augunet(vae) if method == "augunet" else SingleStep(around(vae), PROMPT, 999)
    known = moments(vae, batch)
    assert torch.equal(
        objective.loss(Spy(), known, generators(3, 0, 2)), objective.loss(Spy(), batch, generators(3, 0, 2))
    )
    known["target_std"] = 2 * known["target_std"]  # and the target is drawn, not taken at its mean
    assert objective.loss(Spy(), known, generators(3, 0, 2)) != objective.loss(Spy(), batch, generators(3, 0, 2))


def test_a_cell_counts_where_all_of_its_pixels_do():
    mask = torch.ones(1, 1, 16, 24, dtype=torch.bool)
    mask[0, 0, 9, 23] = False
    assert cells(mask, (2, 3)).tolist() == [[[[True, True, True], [True, True, False]]]]
    assert torch.equal(cells(mask, (16, 24)), mask)
    with pytest.raises(ValueError, match=r"a mask of \(16, 24\) does not fit latents of \(2, 4\)"):
        cells(mask, (2, 4))


def test_an_intrinsic_cannot_be_changed_in_place():
    """All runs of a process share the four records."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        NORMAL.prompt = "other"


def test_generators_are_a_function_of_seed_and_number():
    first = [torch.randn(3, generator=g) for g in generators(1, 10, 3)]
    assert torch.equal(first[1], torch.randn(3, generator=generators(1, 11, 1)[0]))
    assert not torch.equal(first[0], torch.randn(3, generator=generators(2, 10, 1)[0]))
    draws = torch.stack([torch.randn((), generator=g) for g in generators(0, 0, 4000)])
    assert abs(draws.mean()) < 0.05 and abs(draws.std() - 1) < 0.05  # neighbours are unrelated
    assert abs((draws[1:] * draws[:-1]).mean()) < 0.05
    with pytest.raises(ValueError, match="generators"):
        gaussian((3, 4), generators(0, 0, 2), torch.zeros(1))


def test_seeds_are_those_of_splitmix64():
    """Steele, Lea and Flood 2014. Of this number, seeds 0, 1 and 2 give the states that splitmix64 passes through from
    0; its published outputs from there are 64 bits, a generator's seed the upper 63.
    """
    number = (0x9E3779B97F4A7C15 - 0x94D049BB133111EB) * pow(0xBF58476D1CE4E5B9, -1, 2**64) % 2**64
    seeds = [generators(seed, number, 1)[0].initial_seed() for seed in range(3)]
    assert seeds == [published >> 1 for published in (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)]


def test_a_predictions_noise_is_that_of_its_seed_name_and_member():
    digest = hashlib.sha256(b"1234/2/room/a.png").hexdigest()
    assert noise_of(1234, "room/a.png", 2).initial_seed() == int(digest[:16], 16) // 2


def test_the_sampler_defaults_are_the_released_codes():
    """25 steps, guidance 3.0, guidance rescale 0.7: the validation of the released AugUNet scripts."""
    defaults = {field.name: field.default for field in dataclasses.fields(AugUNet)}
    assert (defaults["steps"], defaults["guidance_scale"], defaults["guidance_rescale"]) == (25, 3.0, 0.7)
