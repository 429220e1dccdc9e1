"""Tokenizer, text encoder, autoencoder: shapes, identities, and what they must not do."""

import pytest
import torch
from conftest import SD15_VAE, randomise
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyldm.sample import unknown_words
from tinyldm.text import TextConfig, TextEncoder, Tokenizer, words
from tinyldm.vae import VAE, Down, SelfAttention, VAEConfig, vae_loss

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


def test_a_tokenizer_keeps_the_most_frequent_words():
    captions = ["z z z b", "b a", "c b a"]
    assert Tokenizer.from_captions(captions, 4, most=2).vocabulary == ["<pad>", "<unk>", "b", "z"]
    many = [f"w{i}" for i in range(10_002)]
    assert len(Tokenizer.from_captions(many, 4).vocabulary) == 2 + 10_000


@pytest.mark.parametrize("start", [[], ["<pad>"], ["<unk>", "<pad>"], ["<pad>", "a", "<unk>"]])
def test_a_vocabulary_starts_with_padding_and_the_unknown_word(start):
    with pytest.raises(ValueError, match="a vocabulary starts with '<pad>', '<unk>', got"):
        Tokenizer(start, 4)
    assert Tokenizer(["<pad>", "<unk>"], 4).encode(["a"]).tolist() == [[1, 0, 0, 0]]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("x-ray--vision -a- b-", ["x-ray", "vision", "a", "b"]),
        ("under_score 3d", ["under", "score", "3d"]),
        ("Éclair ÜBER", ["éclair", "über"]),
        (" \n,.! ", []),
    ],
)
def test_words_keep_inner_hyphens_only(caption, expected):
    assert words(caption) == expected


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


def test_a_text_encoder_is_words_and_positions_then_pre_norm_blocks_then_a_norm():
    torch.manual_seed(0)
    config = TextConfig(vocabulary=7, length=4, width=16, layers=3, heads=2)
    encoder, tokens = TextEncoder(config), TOKENIZER.encode(["a dark boot", "light"])
    for start in (encoder.words.weight, encoder.positions):
        assert 0.01 < start.std() < 0.03 and abs(start.mean()) < 0.01
    randomise(encoder)
    x = encoder.words.weight[tokens] + encoder.positions
    assert len(encoder.blocks) == 3
    for block in encoder.blocks:
        assert block.attention.heads == 2
        x = x + block.attention(block.norm1(x))
        x = x + block.feed_forward(block.norm2(x))
    torch.testing.assert_close(encoder(tokens), encoder.norm(x))


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


def test_the_likelihood_of_a_latent_is_kept_between_exp_minus_30_and_exp_20():
    vae = small_vae().requires_grad_(False)
    x = torch.rand(2, 1, 32, 32) * 2 - 1
    mean, logvar = vae.quant(vae.encoder(x)).chunk(2, dim=1)
    assert torch.equal(vae.posterior(x)[0], mean) and torch.equal(vae.posterior(x)[1], logvar)
    for bias, expected in ((1000.0, 20.0), (-1000.0, -30.0)):
        vae.quant.bias[4:] = bias
        assert (vae.posterior(x)[1] == expected).all()
        assert torch.equal(vae.posterior(x)[0], mean)


@torch.no_grad()
def test_latents_are_the_posteriors_mean_times_the_scale_and_are_divided_by_it_again():
    vae, x = small_vae(), torch.rand(2, 1, 32, 32) * 2 - 1
    assert vae.scale == 1 and vae.scale.shape == ()
    mean, _ = vae.posterior(x)
    vae.scale.fill_(4.0)
    assert torch.equal(vae.encode(x), 4 * mean)
    assert torch.equal(vae.decode(4 * mean), vae.decoder(vae.post_quant(mean)))
    z = 3 * torch.randn(50, 4, 8, 8)
    scaled = vae.set_scale(z)
    torch.testing.assert_close(scaled, z / z.std())
    torch.testing.assert_close(vae.scale, 4 / z.std())  # of what is encoded from now on
    assert "scale" in vae.state_dict()


@torch.no_grad()
def test_vae_loss_by_hand_draws_its_latents_and_is_free_of_the_scale():
    vae, x = small_vae(), torch.rand(4, 1, 32, 32) * 2 - 1
    losses = []
    for scale in (1.0, 5.0):
        vae.scale.fill_(scale)
        torch.manual_seed(1)
        losses.append(vae_loss(vae, x, 0.0))
    torch.manual_seed(1)
    mean, logvar = vae.posterior(x)
    z = mean + logvar.exp().sqrt() * torch.randn(mean.shape)
    error = vae.decoder(vae.post_quant(z)) - x
    expected = error.abs().mean() + 10 * error.pow(2).mean()
    torch.testing.assert_close(torch.stack(losses), torch.stack([expected] * 2))


def test_an_autoencoders_down_pads_on_the_right_and_below():
    module, x = Down(3), torch.randn(2, 3, 6, 8)
    padded = torch.zeros(2, 3, 7, 9)
    padded[:, :, :6, :8] = x
    expected = torch.nn.functional.conv2d(padded, module.conv.weight, module.conv.bias, stride=2)
    assert expected.shape == (2, 3, 3, 4)
    torch.testing.assert_close(module(x), expected)


def test_an_autoencoders_attention_is_between_positions_row_by_row():
    torch.manual_seed(0)
    module, x = randomise(SelfAttention(4, 2), std=0.3), 0.01 * torch.randn(2, 4, 3, 5)
    norm = module.norm
    y = torch.nn.functional.group_norm(x, 2, norm.weight, norm.bias, 1e-6)
    y = module.attention(y.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(module(x), x + y)
    assert module.attention.heads == 1 and module.attention.q.bias is not None


def test_the_text_encoder_has_its_sizes_by_default_and_their_lower_bounds():
    assert TextConfig() == TextConfig(vocabulary=0, length=16, width=64, layers=2, heads=4)
    smallest = {"length": 1, "width": 2, "layers": 1, "heads": 1}
    TextConfig(**smallest)
    for name, least in smallest.items():
        with pytest.raises(ValueError, match=f"^{name} {least - 1}: must be {least} to "):
            TextConfig(**{**smallest, name: least - 1})


def test_the_autoencoder_has_32_groups_or_what_divides_its_widths_of_at_least_one():
    for widths, groups in (((64, 128), 32), ((32, 48), 16), ((8, 24), 8), ((7, 14), 1)):
        assert VAEConfig(widths=widths).groups == groups
    VAEConfig(widths=(1, 1))
    for name, sizes in (("widths", (1, 0)), ("image_channels", 0), ("latent_channels", 0)):
        with pytest.raises(ValueError, match=f"^{name} "):
            VAEConfig(**{name: sizes})


def test_the_first_convolution_of_each_half_keeps_the_size():
    vae = VAE(VAEConfig(3, 4, (8, 8, 16)))
    assert vae.encoder[0](torch.zeros(1, 3, 32, 32)).shape == (1, 8, 32, 32)
    assert vae.decoder[0](torch.zeros(1, 4, 8, 8)).shape == (1, 16, 8, 8)
