"""Train a latent diffusion model: the autoencoder, then text encoder and U-Net on its latents [LDM, arXiv 2112.10752]."""

from tinyldm.cli import parse_with_preset, run_command
from tinyldm.config import BASE_PRESETS, BaseConfig, check

if __name__ == "__main__":  # before torch is imported: --help and mistakes answer at once
    config = run_command(lambda: parse_with_preset(BASE_PRESETS))

from dataclasses import replace
from functools import partial

import torch

from tinyldm import files
from tinyldm.data import load
from tinyldm.dataset import Columns, Dataset, to_float
from tinyldm.diffusion import Schedule
from tinyldm.ldm import LatentDiffusion, generate, last
from tinyldm.pictures import save_grid
from tinyldm.runs import encode_all, finish_run, latents_file, open_run
from tinyldm.stages import BaseStage, VAEStage
from tinyldm.text import TextEncoder, Tokenizer
from tinyldm.training import compile_networks, fit, pick_device, plot_losses
from tinyldm.unet import UNet
from tinyldm.vae import VAE

PANEL = 8  # validation images and captions in every preview


def build(config: BaseConfig, train: Dataset) -> LatentDiffusion:
    """The untrained model: sizes that must agree are taken from the data, the VAE and the text encoder."""
    tokenizer = Tokenizer.from_captions((c for choices in train.captions.choices for c in choices), config.text.length)
    vae = VAE(replace(config.vae, image_channels=train.images.shape[1]))
    text = TextEncoder(replace(config.text, vocabulary=len(tokenizer.vocabulary)))
    unet = UNet(replace(config.unet, channels=config.vae.latent_channels, context_width=config.text.width))
    return LatentDiffusion(vae, tokenizer, text, unet, Schedule(), config.data.resolution)


def preview_vae(ldm: LatentDiffusion, config: BaseConfig, validation: Dataset, step: int) -> None:
    x = to_float(validation.images[:PANEL]).to(ldm.device)
    with torch.no_grad():
        x_hat = ldm.vae.decode(ldm.vae.encode(x))
    save_grid(config.out / "previews" / f"vae-{step:06}.png", [("validation images", x), ("decoded latents", x_hat)])


def preview_base(ldm: LatentDiffusion, config: BaseConfig, validation: Dataset, step: int) -> None:
    prompts = validation.captions.full()[:PANEL]
    x = ldm.vae.decode(last(generate(ldm, [p for p in prompts for _ in range(4)])))
    rows = [(prompt, x[4 * i : 4 * i + 4]) for i, prompt in enumerate(prompts)]
    save_grid(config.out / "previews" / f"base-{step:06}.png", rows)


def main(config: BaseConfig) -> None:
    """Data, autoencoder, latents, text encoder and U-Net, run folder."""
    check(config)
    device = pick_device(config.run.device)
    train, validation = (
        load(config.data.dataset, split, config.data.resolution, config.data.data_dir, config.data.limit)
        for split in ("train", "validation")
    )
    open_run(config.out, config)
    torch.manual_seed(config.run.seed)
    ldm = build(config, train).to(device)
    compile_networks(config.run, ldm.vae.encoder, ldm.vae.decoder, ldm.unet)

    stage = VAEStage(ldm.vae, config.kl_weight)
    preview = partial(preview_vae, ldm, config, validation)
    panel = (validation.images[:256],)
    fit(stage, Columns(train.images), config.vae_fit, config.run, config.out, "vae", panel, preview)

    ldm.vae.requires_grad_(False)
    z = encode_all(ldm.vae, train.images, device)
    ldm.vae.set_scale(z)
    z *= ldm.vae.scale.cpu()

    stage = BaseStage(ldm, config.caption_drop, config.timesteps)
    preview = partial(preview_base, ldm, config, validation)
    panel = (encode_all(ldm.vae, validation.images[:256], device), validation.captions.full()[:256])
    fit(stage, Columns(z, train.captions), config.fit, config.run, config.out, "base", panel, preview)

    plot_losses(config.out)
    ldm.save(config.out)
    files.write_tensors(latents_file(config.out), {"z": z})
    finish_run(config.out)


if __name__ == "__main__":
    run_command(lambda: main(config))
