"""The presets by name: the defaults of every setting."""

from dataclasses import replace
from functools import partial

from tinyldm.training.settings import (
    BaseSettings,
    ControlSettings,
    DataSettings,
    FitSettings,
    RunSettings,
    TextSizes,
    UNetSizes,
    VAESizes,
)

muon = partial(FitSettings, optimizer="muon", warmup=50)
emoji = DataSettings(dataset="emoji", resolution=64)
tiny = FitSettings(steps=6, batch_size=8, warmup=2, log_every=2, preview_every=6)


BASE_PRESETS = {
    "cpu": BaseSettings(
        preset="cpu",
        vae_fit=muon(steps=1900, batch_size=16, lr=1.2e-2, ema=0.997, preview_every=950),
        fit=muon(steps=1100, batch_size=64, lr=4e-3, ema=0.995, preview_every=550),
        kl_weight=3e-5,
    ),
    "tiny": BaseSettings(
        preset="tiny",
        data=DataSettings(dataset="shapes", limit=64),
        vae=VAESizes(image_channels=3, widths=(8, 16)),
        text=TextSizes(width=16, layers=1, heads=2),
        unet=UNetSizes(widths=(16, 32), attention=(False, True), heads=2, context_width=16),
        vae_fit=tiny,
        fit=tiny,
    ),
    "emoji": BaseSettings(
        preset="emoji",
        data=emoji,
        vae=VAESizes(image_channels=3, widths=(16, 32, 64)),
        unet=UNetSizes(widths=(48, 64, 96), attention=(False, True, True)),
        vae_fit=muon(steps=3000, batch_size=16, lr=1.2e-2, ema=0.998, preview_every=1000),
        fit=muon(steps=2800, batch_size=64, lr=4e-3, ema=0.998, preview_every=1400),
        kl_weight=3e-5,
    ),
    "gpu": BaseSettings(
        preset="gpu",
        data=emoji,
        run=RunSettings(precision="bf16"),
        vae=VAESizes(image_channels=3, widths=(64, 128, 256)),
        text=TextSizes(width=256, layers=4, heads=8),
        unet=UNetSizes(
            widths=(128, 256, 384),
            res_blocks=2,
            attention=(True, True, True),
            heads=8,
            context_width=256,
        ),
        vae_fit=muon(steps=5000, batch_size=128, lr=4e-3, ema=0.999, preview_every=500, warmup=100),
        fit=muon(steps=10_000, batch_size=256, lr=2e-3, ema=0.999, preview_every=1000, warmup=100),
        kl_weight=1e-5,
    ),
}
BASE_PRESETS["long"] = replace(
    BASE_PRESETS["cpu"],
    preset="long",
    vae_fit=muon(steps=5700, batch_size=16, lr=1.2e-2, ema=0.999, preview_every=1900),
    fit=muon(steps=3300, batch_size=64, lr=4e-3, ema=0.998, preview_every=1100),
)
BASE_PRESETS["folder"] = replace(  # thousands of pictures, which longer trainings learn by heart
    BASE_PRESETS["emoji"],
    preset="folder",
    data=DataSettings(resolution=64),
    fit=muon(steps=1100, batch_size=64, lr=4e-3, ema=0.995, preview_every=550),
)
CONTROL_PRESETS = {
    "cpu": ControlSettings(
        preset="cpu", fit=muon(steps=900, batch_size=32, lr=8e-3, ema=0.995, preview_every=450)
    ),
    "emoji": ControlSettings(
        preset="emoji", fit=muon(steps=3200, batch_size=32, lr=8e-3, ema=0.998, preview_every=1600)
    ),
    "folder": ControlSettings(
        preset="folder", fit=muon(steps=1200, batch_size=32, lr=8e-3, ema=0.995, preview_every=600)
    ),
    "tiny": ControlSettings(preset="tiny", hint_widths=(8, 16), fit=tiny),
    "gpu": ControlSettings(
        preset="gpu",
        run=RunSettings(precision="bf16"),
        fit=muon(steps=4000, batch_size=128, lr=4e-3, ema=0.998, preview_every=500, warmup=100),
    ),
}
CONTROL_PRESETS["long"] = replace(
    CONTROL_PRESETS["cpu"],
    preset="long",
    fit=muon(steps=2700, batch_size=32, lr=8e-3, ema=0.998, preview_every=900),
)
