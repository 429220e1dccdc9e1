"""Tokenizer, text encoder, autoencoder: shapes, identities, and what they must not do."""

import pytest
import torch
from conftest import SD15_VAE, randomise
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyldm.sample import unknown_words
from tinyldm.text import TextConfig, TextEncoder, Tokenizer, words
from tinyldm.vae import VAE, VAEConfig, vae_loss

TOKENIZER = Tokenizer.from_captions(["A dark T-shirt!", "a light boot"], length=4)


def test_words_are_lower_case_without_punctuation():
    assert words("A dark T-shirt, (new)!") == ["a", "dark", "t-shirt", "new"]


def test_tokenizer_pads_cuts_and_marks_unknown_words():
    assert TOKENIZER.vocabulary == ["<pad>", "<unk>", "a", "boot", "dark", "light", "t-shirt"]
    assert TOKENIZER.encode(["a dark boot", "", "A purple boot a dark a"]).tolist() == [
        [2, 4, 3, 0],
        [0] * 4,
        [2, 1, 3, 2],
    ]
    assert TOKENIZER.encode([]).shape == (0, 4)


def test_tokenizer_tells_the_words_that_it_does_not_know():
    assert unknown_words(TOKENIZER, ["a purple boot", "Purple shoe"]) == ["purple", "shoe"]


@given(st.text())
@settings(deadline=None)
def test_tokenizer_takes_any_string(caption):
    tokens = TOKENIZER.encode([caption])
    assert tokens.shape == (1, 4) and tokens.dtype == torch.long and tokens.max() < 7


def test_a_vocabulary_has_its_two_special_words_first_and_each_word_once():
    for wrong in (["a", "b"], [], ["<unk>", "<pad>"], ["<pad>", "<unk>", "a", "a"]):
        with pytest.raises(ValueError, match="vocabulary"):
            Tokenizer(wrong, 4)


def test_text_encoder_shapes_order_and_padding_matter():
    torch.manual_seed(0)
    encoder = randomise(
        TextEncoder(TextConfig(vocabulary=7, length=4, width=16, layers=2, heads=2))
    )
    context = encoder(TOKENIZER.encode(["a dark boot", "boot dark a", "a dark"]))
    assert context.shape == (3, 4, 16)
    assert not torch.allclose(
        context[0, 2], context[1, 0]
    )  # the same word in the same company, elsewhere
    assert not torch.allclose(
        context[0, 0], context[2, 0]
    )  # nothing is masked, so a later token changes the first


def small_vae(k: int = 1) -> VAE:
    torch.manual_seed(0)
    return randomise(VAE(VAEConfig(image_channels=k, widths=(8, 16, 32))))


@pytest.mark.parametrize(("k", "height", "width"), [(1, 32, 32), (3, 16, 48)])
def test_vae_shapes(k, height, width):
    vae, x = small_vae(k), torch.rand(3, k, height, width) * 2 - 1
    mean, logvar = vae.posterior(x)
    assert vae.config.f == 4
    assert mean.shape == logvar.shape == vae.encode(x).shape == (3, 4, height // 4, width // 4)
    assert vae.decode(mean).shape == x.shape


def test_vae_has_the_parameter_count_of_sd15():
    with torch.device("meta"):
        vae = VAE(SD15_VAE)
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
    assert vae.config.f == 8


@torch.no_grad()
def test_the_latent_scale_makes_unit_variance_and_leaves_the_round_trip_alone():
    vae, x = small_vae(), torch.rand(64, 1, 32, 32) * 2 - 1
    before, z = vae.decode(vae.encode(x)), vae.encode(x)
    assert abs(z.std().item() - 1) > 0.1
    torch.testing.assert_close(vae.set_scale(z), vae.encode(x))
    torch.testing.assert_close(vae.encode(x).std(), torch.tensor(1.0))
    torch.testing.assert_close(vae.decode(vae.encode(x)), before, rtol=1e-4, atol=1e-5)


def test_vae_loss_is_reconstruction_plus_kl():
    vae, x = small_vae(), torch.rand(4, 1, 32, 32) * 2 - 1
    torch.manual_seed(1)
    without = vae_loss(vae, x, 0.0)
    torch.manual_seed(1)
    with_kl = vae_loss(vae, x, 2.0)
    mean, logvar = vae.posterior(x)
    normal = torch.distributions.Normal(mean, (logvar / 2).exp())
    kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(with_kl - without, 2 * kl, rtol=1e-4, atol=1e-5)
