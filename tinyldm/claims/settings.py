"""How large the claims' experiments are, and what describes a trained model: its arm."""

from dataclasses import dataclass, replace

from tinyldm.text import TextConfig
from tinyldm.training.settings import FitSettings
from tinyldm.unet import UNetConfig
from tinyldm.vae import VAEConfig


@dataclass(frozen=True)
class Settings:
    """How large everything is. The defaults are the report's; `QUICK` only shows that the machinery runs."""

    dataset: str = "fashion-mnist"
    limit: int = 0  # images of each split; 0 is all
    vae: VAEConfig = VAEConfig(widths=(16, 32, 64))
    vae_fit: FitSettings = FitSettings(1000, 16, "muon", lr=1.2e-2, warmup=100, ema=0.997)
    text: TextConfig = TextConfig(length=16, width=64, layers=1)
    unet: UNetConfig = UNetConfig(
        widths=(32, 64, 64), attention=(False, True, True), context_width=64
    )
    base_fit: FitSettings = FitSettings(800, 64, "muon", lr=4e-3, warmup=100, ema=0.995)
    control_fit: FitSettings = FitSettings(400, 64, "muon", lr=8e-3, warmup=50, ema=0.99)
    hint_widths: tuple[int, ...] = (16, 32, 64)
    n: int = 300  # test images of a measurement
    guidance: float = 2.0
    steps: int = 10  # of dpm++
    most_steps: int = 1000  # of any sampler


def few(fit: FitSettings) -> FitSettings:
    return replace(fit, steps=3, batch_size=4, warmup=1, log_every=1)


QUICK = Settings(
    limit=40,
    vae=VAEConfig(widths=(8, 8, 16)),
    vae_fit=few(Settings.vae_fit),
    text=TextConfig(width=16, layers=1, heads=2),
    unet=replace(Settings.unet, widths=(16, 16, 16), heads=2, context_width=16),
    base_fit=few(Settings.base_fit),
    control_fit=few(Settings.control_fit),
    hint_widths=(8, 8, 16),
    n=12,
    steps=2,
    most_steps=3,
)


@dataclass(frozen=True)
class BaseArm:
    """How a base is trained. With a seed it determines the weights."""

    fit: FitSettings | None = None  # None: the settings' base_fit
    caption_drop: float = 0.1
    density: str = "logit-normal"  # of t
    inverted: bool = False  # trained on images with black and white swapped
    start: "BaseArm | None" = None  # fine-tuned from this one
    unscaled: bool = False  # on latents as the autoencoder gives them, not of unit variance


@dataclass(frozen=True)
class ControlArm:
    """How a ControlNet is trained on a base of the same seed."""

    base: BaseArm = BaseArm()
    fit: FitSettings | None = None  # None: the settings' control_fit
    caption_drop: float = 0.5
    density: str = "logit-normal"
    images: int = 0  # the first so many training images; 0 is all
    condition: str = "canny"  # of CONDITIONS
    edit: str = "zero"  # of EDITS, or "concat": what is changed before training
    watched: bool = False  # with what claims/watch.py sees during training kept beside the weights
