"""The transformer over images' tokens: what it reads, in which order, and how a label is completed."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from generators.transformer import ImageTransformer, order

CODES, COUNT = 32, 16


@pytest.fixture(scope="module")
def network() -> ImageTransformer:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    whole = LlamaForCausalLM(LlamaConfig(vocab_size=CODES + 1, max_position_embeddings=64, **sizes)).eval()
    for parameter in whole.parameters():
        parameter.data *= 3  # so that answers differ clearly
    start = whole.model.embed_tokens.weight[-1]
    return ImageTransformer(whole.model, whole.model.embed_tokens, whole.lm_head, start, CODES).requires_grad_(False)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return torch.randint(CODES, (2, COUNT), generator=rng), torch.randint(CODES, (2, COUNT), generator=rng)


@pytest.mark.parametrize("positions", ["again", "on"])
def test_every_label_token_reads_the_picture(network, pair, positions):
    picture, label = pair
    other = picture.clone()
    other[:, 3] = (other[:, 3] + 1) % CODES
    change = (network(picture, label, positions) - network(other, label, positions)).abs().amax((0, 2))
    assert (change > 1e-6).all(), "positions that begin again must not hide the image"


@pytest.mark.parametrize("positions", ["again", "on"])
def test_a_label_token_reads_only_those_before_it(network, pair, positions):
    picture, label = pair
    other = label.clone()
    other[:, 7] = (other[:, 7] + 1) % CODES
    change = (network(picture, label, positions) - network(picture, other, positions)).abs().amax((0, 2))
    assert (change[:8] == 0).all() and (change[8:] > 0).all()


@pytest.mark.parametrize("positions", ["again", "on"])
def test_completing_with_a_cache_is_what_the_whole_sequence_says(network, pair, positions):
    picture, _ = pair
    found = network.complete(picture, positions)
    assert found.shape == (2, COUNT) and torch.equal(network(picture, found, positions).argmax(-1), found)


@pytest.mark.parametrize("positions", ["again", "on"])
def test_at_once_every_token_reads_the_whole_picture(network, pair, positions):
    picture, _ = pair
    plain = network.at_once(picture, positions)
    assert plain.shape == (2, COUNT, CODES)
    for place in (0, COUNT - 1):
        other = picture.clone()
        other[:, place] = (other[:, place] + 1) % CODES
        assert ((network.at_once(other, positions) - plain).abs().amax((0, 2)) > 1e-6).all()
    assert torch.equal(network.at_once(picture[:1], positions)[0].argmax(-1), plain[0].argmax(-1))


def test_the_two_ways_to_count_differ(network, pair):
    assert order(2, "again", torch.device("cpu")).tolist() == [0, 1, 2, 0, 1, 2]
    assert order(2, "on", torch.device("cpu")).tolist() == [0, 1, 2, 3, 4, 5]
    assert not torch.allclose(network(*pair, "again"), network(*pair, "on"))


def test_sampling_is_a_function_of_the_noise(network, pair):
    def sampled(seed: int) -> torch.Tensor:
        noise = [torch.Generator().manual_seed(seed + number) for number in range(2)]
        return network.complete(pair[0], "again", 1.0, noise)

    assert torch.equal(sampled(0), sampled(0)) and not torch.equal(sampled(0), sampled(9))
    assert sampled(0).max() < CODES


def test_a_picture_is_sampled_from_nothing(network):
    noise = [torch.Generator().manual_seed(number) for number in range(3)]
    found = network.sample(COUNT, noise)
    assert found.shape == (3, COUNT) and len({tuple(row) for row in found.tolist()}) == 3
