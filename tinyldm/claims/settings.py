"""How large the claims' experiments are, and what names a trained model: its arm."""

from dataclasses import dataclass, replace

from tinyldm.config import FitConfig
from tinyldm.sizes import TextConfig, UNetConfig, VAEConfig


@dataclass(frozen=True)
class Settings:
    """How large everything is. The defaults are those of the report; `QUICK` only shows that the machinery runs."""

    dataset: str = "fashion-mnist"
    limit: int = 0  # images of each split; 0 is all
    vae: VAEConfig = VAEConfig()
    vae_fit: FitConfig = FitConfig(steps=1000, batch_size=16, lr=1.2e-2, warmup=100, ema=0.997, optimizer="muon")
    text: TextConfig = TextConfig(width=64, layers=1)
    unet: UNetConfig = UNetConfig(widths=(32, 64, 64), context_width=64)
    base_fit: FitConfig = FitConfig(steps=800, batch_size=64, lr=4e-3, warmup=100, ema=0.995, optimizer="muon")
    control_fit: FitConfig = FitConfig(steps=400, batch_size=64, lr=8e-3, warmup=50, ema=0.99, optimizer="muon")
    hint_widths: tuple[int, ...] = (16, 32, 64)
    n: int = 300  # test images of a measurement
    guidance: float = 2.0
    steps: int = 10  # of dpm++
    most_steps: int = 1000  # of any sampler


def few(fit: FitConfig) -> FitConfig:
    return replace(fit, steps=3, batch_size=4, warmup=1, log_every=1)


QUICK = Settings(
    limit=40,
    vae=VAEConfig(widths=(8, 8, 16)),
    vae_fit=few(Settings.vae_fit),
    text=TextConfig(width=16, layers=1, heads=2),
    unet=UNetConfig(widths=(16, 16, 16), heads=2, context_width=16),
    base_fit=few(Settings.base_fit),
    control_fit=few(Settings.control_fit),
    hint_widths=(8, 8, 16),
    n=12,
    steps=2,
    most_steps=3,
)


@dataclass(frozen=True)
class BaseArm:
    """A trained base."""

    seed: int = 0
    fit: FitConfig | None = None  # None: the settings' base_fit
    caption_drop: float = 0.1
    timesteps: str = "logit-normal"
    inverted: bool = False  # trained on images with black and white swapped
    start: "BaseArm | None" = None  # fine-tuned from this one
    unscaled: bool = False  # on latents as the autoencoder gives them, not of unit variance


@dataclass(frozen=True)
class ControlArm:
    """A ControlNet trained on a base. `edit` names what a claim changed in it before training."""

    base: BaseArm = BaseArm()
    seed: int = 0
    fit: FitConfig | None = None
    caption_drop: float = 0.5
    timesteps: str = "logit-normal"
    images: int = 0  # the first so many training images; 0 is all
    condition: str = "canny"  # or "silhouette"
    edit: str = ""
    watch: str = ""  # names what is measured during training
