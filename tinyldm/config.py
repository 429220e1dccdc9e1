"""Every setting of the two trainings, and the presets by name."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from tinyldm.errors import UserError
from tinyldm.sizes import TextConfig, UNetConfig, VAEConfig

Flat = arg(name="")  # its flags carry no prefix: --lr, not --fit.lr


@dataclass(frozen=True)
class DataConfig:
    """What to train on."""

    dataset: Literal["fashion-mnist", "shapes"] = "fashion-mnist"
    """The dataset: Fashion-MNIST (fetched if it is not here) or drawn shapes (needs no files)."""
    data_dir: Path | None = None
    """Folder with Fashion-MNIST's four idx files; by default $TINYLDM_DATA, then the usual places."""
    resolution: int = 32
    """Height and width of the images in pixels; a multiple of the VAE's and U-Net's downsampling."""
    limit: int = 0
    """Use only the first so many images of each split; 0 means all."""


@dataclass(frozen=True)
class FitConfig:
    """How one network is trained: linear warm-up then cosine to 0, clipped gradients, EMA of the weights."""

    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 128
    """Images per step."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon orthogonalises the steps of matrices and convolutions: as far as adamw in about half the steps."""
    lr: float = 1e-3
    """Highest learning rate."""
    warmup: int = 50
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    clip: float = 1.0
    """Largest norm of the gradient."""
    ema: float = 0.995
    """Decay of the average of the weights that is kept in the end; it warms up as (1 + n) / (10 + n)."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl."""
    preview_every: int = 250
    """Steps between checkpoints, sample pictures and validation losses."""


@dataclass(frozen=True)
class RunConfig:
    """What both trainings need to know about the machine and the folder."""

    device: str = "auto"
    """auto (cuda if there is one, else cpu), cpu, cuda, cuda:1, ..."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 computes in bfloat16 by autocast, weights stay fp32; auto is bf16 where the processor multiplies it natively.
    On CUDA fp32 has TF32 matrix products."""
    compile: bool = False
    """torch.compile the networks: minutes at the start, faster steps afterwards; needs a C++ compiler."""
    resume: bool = False
    """Go on with the interrupted run that the output folder holds, bit for bit."""
    overwrite: bool = False
    """Replace the run that the output folder holds."""
    seed: int = 0
    """Data order, noise and initial weights are functions of it."""


@dataclass(frozen=True)
class BaseConfig:
    """Train a latent diffusion model: autoencoder first, then text encoder and U-Net on its latents."""

    preset: Literal["auto", "tiny", "cpu", "long", "gpu"] = "auto"
    """Where the defaults of all other settings come from; auto is gpu if there is one, else cpu.
    long is cpu with three times the steps; tiny is for tests."""
    out: Path = Path("runs/base")
    """Run folder: weights, config, pictures, metrics."""
    data: Annotated[DataConfig, Flat] = DataConfig()
    run: Annotated[RunConfig, Flat] = RunConfig()
    vae: VAEConfig = VAEConfig()
    text: TextConfig = TextConfig()
    unet: UNetConfig = UNetConfig()
    vae_fit: FitConfig = FitConfig()
    fit: Annotated[FitConfig, Flat] = FitConfig()
    kl_weight: float = 1e-4
    """Weight of the KL term beside the reconstruction, both as means over elements."""
    caption_drop: float = 0.1
    """Share of captions replaced by the empty one, for classifier-free guidance."""
    timesteps: Literal["uniform", "logit-normal"] = "logit-normal"
    """How the loss draws t: evenly as in DDPM, or mostly from the middle, where shapes are decided."""


@dataclass(frozen=True)
class ControlConfig:
    """Attach a ControlNet to a trained base, which stays frozen, and train it."""

    base: Path = Path("runs/base")
    """Run folder of the base; its dataset is used here too."""
    preset: Literal["auto", "tiny", "cpu", "long", "gpu"] = "auto"
    """Where the defaults of all other settings come from; auto is gpu if there is one, else cpu.
    long is cpu with three times the steps; tiny is for tests."""
    out: Path = Path("runs/control")
    """Run folder: weights, config, pictures, metrics."""
    run: Annotated[RunConfig, Flat] = RunConfig()
    condition: Literal["canny"] = "canny"
    """How hints are made from images."""
    hint_widths: tuple[int, ...] = (16, 32, 96)
    """Channels of the hint encoder, one per resolution; as many as the VAE has."""
    fit: Annotated[FitConfig, Flat] = FitConfig()
    caption_drop: float = 0.5
    """Share of captions replaced by the empty one, so that the ControlNet learns to read hints alone [CN, 3.3]."""
    timesteps: Literal["uniform", "logit-normal"] = "logit-normal"
    """How the loss draws t: evenly as in DDPM, or mostly from the middle, where shapes are decided."""


def check(config: BaseConfig | ControlConfig) -> None:
    """Raise UserError, naming the flag, for numbers that no training can use."""
    fits = {"": config.fit} | ({"vae-fit.": config.vae_fit} if isinstance(config, BaseConfig) else {})
    for prefix, fit in fits.items():
        for name in ("steps", "batch_size", "lr", "clip", "log_every", "preview_every"):
            if not getattr(fit, name) > 0:
                raise UserError(f"--{prefix}{name.replace('_', '-')} {getattr(fit, name)}: must be more than 0")
        if not (0 <= fit.ema < 1 and fit.weight_decay >= 0 and fit.warmup >= 0):
            raise UserError(f"--{prefix}ema {fit.ema}: must be in [0, 1); weight decay and warm-up at least 0")
    if config.run.seed < 0:
        raise UserError(f"--seed {config.run.seed}: must be at least 0")
    if not 0 <= config.caption_drop <= 1:
        raise UserError(f"--caption-drop {config.caption_drop}: must be between 0 and 1")
    if isinstance(config, BaseConfig):
        check_sizes(config)


def check_sizes(config: BaseConfig) -> None:
    """Raise UserError, naming the flag, for sizes that do not fit together."""
    counts = {
        "limit": config.data.limit + 1,
        "vae.res-blocks": config.vae.res_blocks,
        "text.length": config.text.length,
    }
    counts |= {
        "unet.res-blocks": config.unet.res_blocks,
        "unet.heads": config.unet.heads,
        "text.heads": config.text.heads,
    }
    counts |= {"vae.widths": min(config.vae.widths, default=0), "unet.widths": min(config.unet.widths, default=0)}
    for flag, count in counts.items():
        if count < 1:
            raise UserError(f"--{flag}: must be at least {0 if flag == 'limit' else 1}")
    widths, attention, heads = config.unet.widths, config.unet.attention, config.unet.heads
    if len(attention) != len(widths):
        raise UserError(f"--unet.attention: {len(attention)} values for {len(widths)} --unet.widths; give as many")
    for flag, width, n in [*(("--unet", w, heads) for w in widths), ("--text", config.text.width, config.text.heads)]:
        if width % n or width < 2:
            raise UserError(f"{flag}.heads {n}: must divide the width {width}")
    factor = 2 ** (len(config.vae.widths) + len(widths) - 2)
    if config.data.resolution % factor or config.data.resolution < max(32, factor):
        raise UserError(f"--resolution {config.data.resolution}: must be a multiple of {factor}, and at least 32")


def tiny_fit(steps: int) -> FitConfig:
    return FitConfig(steps=steps, batch_size=8, warmup=2, log_every=2, preview_every=steps)


muon_fit = partial(FitConfig, optimizer="muon", warmup=100)


BASE_PRESETS = {
    "cpu": BaseConfig(
        preset="cpu",
        vae_fit=muon_fit(steps=1300, batch_size=16, lr=1.2e-2, ema=0.997, preview_every=650),
        fit=muon_fit(steps=750, batch_size=64, lr=4e-3, ema=0.995, preview_every=250),
        kl_weight=3e-5,
    ),
    "tiny": BaseConfig(
        preset="tiny",
        data=DataConfig(dataset="shapes", limit=64),
        vae=VAEConfig(image_channels=3, widths=(8, 16)),
        text=TextConfig(width=16, layers=1, heads=2),
        unet=UNetConfig(widths=(16, 32), attention=(False, True), heads=2, context_width=16),
        vae_fit=tiny_fit(6),
        fit=tiny_fit(6),
    ),
    "gpu": BaseConfig(
        preset="gpu",
        data=DataConfig(resolution=64),
        run=RunConfig(precision="bf16", compile=True),
        vae=VAEConfig(widths=(64, 128, 256)),
        text=TextConfig(width=256, layers=4, heads=8),
        unet=UNetConfig(widths=(128, 256, 384), res_blocks=2, attention=(True, True, True), heads=8, context_width=256),
        vae_fit=muon_fit(steps=5000, batch_size=128, lr=4e-3, ema=0.999, preview_every=500),
        fit=muon_fit(steps=10_000, batch_size=256, lr=2e-3, ema=0.999, preview_every=1000),
        kl_weight=1e-5,
    ),
}
BASE_PRESETS["long"] = replace(
    BASE_PRESETS["cpu"],
    preset="long",
    vae_fit=muon_fit(steps=3900, batch_size=16, lr=1.2e-2, ema=0.999, preview_every=1300),
    fit=muon_fit(steps=2250, batch_size=64, lr=4e-3, ema=0.998, preview_every=750),
)
CONTROL_PRESETS = {
    "cpu": ControlConfig(
        preset="cpu", fit=muon_fit(steps=500, batch_size=64, lr=8e-3, ema=0.99, preview_every=125, warmup=50)
    ),
    "tiny": ControlConfig(preset="tiny", hint_widths=(8, 16), fit=tiny_fit(6)),
    "gpu": ControlConfig(
        preset="gpu",
        run=RunConfig(precision="bf16", compile=True),
        fit=muon_fit(steps=4000, batch_size=128, lr=4e-3, ema=0.998, preview_every=500),
    ),
}
CONTROL_PRESETS["long"] = replace(
    CONTROL_PRESETS["cpu"],
    preset="long",
    fit=muon_fit(steps=1500, batch_size=64, lr=8e-3, ema=0.997, preview_every=375),
)
