"""How large the claims' experiments are, and what describes a trained model: its arm."""

from dataclasses import dataclass, replace

from tinyldm.text import TextConfig
from tinyldm.training.presets import BASE_PRESETS
from tinyldm.training.settings import FitSettings
from tinyldm.unet import UNetConfig
from tinyldm.vae import VAEConfig

BASE = BASE_PRESETS["emoji"]


@dataclass(frozen=True)
class Settings:
    """How large everything is. The defaults are the report's: emoji at 64 px, on the base of `make emoji`.

    What a base is made of counts only where the claims train their own.
    """

    dataset: str = "emoji"
    resolution: int = 64
    limit: int = 0  # images of each split; 0 is all
    vae: VAEConfig = VAEConfig(widths=(16, 32, 64))
    vae_fit: FitSettings = BASE.vae_fit
    text: TextConfig = TextConfig(length=16, width=64, layers=2)
    unet: UNetConfig = UNetConfig(
        widths=(48, 64, 96), attention=(False, True, True), context_width=64
    )
    base_fit: FitSettings = BASE.fit
    # AdamW at a rate that leaves the copy a copy: see E3
    control_fit: FitSettings = FitSettings(1200, 16, "adamw", 1e-3, ema=0.99, preview_every=300)
    hint_widths: tuple[int, ...] = (16, 32, 96)
    n: int = 226  # test images of a measurement: two of each drawing on average
    wide: int = 2000  # of one that FD decides
    panel: int = 64  # drawings that are watched during a training
    noises: int = 4  # z_T for each of them
    guidance: float = 2.0
    steps: int = 10  # of dpm++
    most_steps: int = 1000  # of any sampler


def few(fit: FitSettings) -> FitSettings:
    return replace(fit, steps=4, batch_size=4, warmup=1, log_every=1, preview_every=1)


SMALL = replace(  # what claims about bases train three of
    Settings(),
    resolution=32,
    vae_fit=replace(Settings.vae_fit, steps=2000),
    unet=replace(Settings.unet, widths=(32, 64, 64)),
    base_fit=replace(Settings.base_fit, steps=3000, ema=0.997),
)
FASHION = replace(  # the default base of Fashion-MNIST, for E2
    Settings(),
    dataset="fashion-mnist",
    resolution=32,
    vae=BASE_PRESETS["cpu"].vae,
    vae_fit=BASE_PRESETS["cpu"].vae_fit,
    unet=BASE_PRESETS["cpu"].unet,
    base_fit=BASE_PRESETS["cpu"].fit,
)
TINY = Settings(
    dataset="shapes",
    resolution=32,
    limit=40,
    vae=VAEConfig(widths=(8, 8, 16)),
    vae_fit=few(Settings.vae_fit),
    text=TextConfig(width=16, layers=1, heads=2),
    unet=UNetConfig(widths=(16, 16), attention=(False, True), heads=2, context_width=16),
    base_fit=few(Settings.base_fit),
    control_fit=few(Settings.control_fit),
    hint_widths=(8, 8, 16),
    n=12,
    wide=16,
    panel=4,
    noises=2,
    steps=2,
    most_steps=3,
)


@dataclass(frozen=True)
class BaseArm:
    """How a base is trained. With a seed it determines the weights."""

    fit: FitSettings | None = None  # None: the settings' base_fit
    caption_drop: float = 0.1
    density: str = "logit-normal"  # of t
    style: str = ""  # of STYLES: what is done to the training images
    start: "BaseArm | None" = None  # fine-tuned from this one
    unscaled: bool = False  # on latents as the autoencoder gives them, not of unit variance
    scaled_input: bool = False  # the U-Net sees z_t divided by its standard deviation
    left_out: tuple[tuple[int, int], ...] = ()  # pairs of class and attribute


@dataclass(frozen=True)
class ControlArm:
    """How a ControlNet is trained on a base of the same seed."""

    base: BaseArm = BaseArm()
    fit: FitSettings | None = None  # None: the settings' control_fit
    caption_drop: float = 0.5
    density: str = "logit-normal"
    images: int = 0  # that many training images; 0 is all
    half: int = 0  # 1 or 2: only classes of odd or of even number; 0 is all
    condition: str = "canny"  # of HINTS
    edit: str = "zero"  # of EDITS, or "fine-tuned": what is changed before training
    watched: bool = (
        False  # with what is seen during training, see watch.py, kept beside the weights
    )
