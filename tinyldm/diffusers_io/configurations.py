"""The entries of diffusers' config.json from our configs, and back, if our networks can represent them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyldm.controlnet import ControlNetConfig
from tinyldm.diffusion import Schedule
from tinyldm.support import files
from tinyldm.support.decode import decode
from tinyldm.unet import UNetConfig
from tinyldm.vae import VAEConfig

Entries = dict[str, Any]

WEIGHTS = "diffusion_pytorch_model.safetensors"
REMEDY = f"give a folder in diffusers' layout, with config.json and {WEIGHTS}"

# our field -> diffusers' key
UNET = {
    "channels": "in_channels",
    "widths": "block_out_channels",
    "res_blocks": "layers_per_block",
    "context_width": "cross_attention_dim",
    "heads": "attention_head_dim",  # so named in diffusers, but the number of heads
}
CONTROLNET = {
    "hint_channels": "conditioning_channels",
    "hint_widths": "conditioning_embedding_out_channels",
}
VAE = {
    "image_channels": "in_channels",
    "latent_channels": "latent_channels",
    "widths": "block_out_channels",
    "res_blocks": "layers_per_block",
}


def renamed(config: Any, keys: dict[str, str]) -> Entries:
    """The fields of a config under diffusers' keys, tuples as the lists of JSON."""
    values = {theirs: getattr(config, ours) for ours, theirs in keys.items()}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def block_types(attention: tuple[bool, ...], direction: str) -> list[str]:
    return [f"{'CrossAttn' if a else ''}{direction}Block2D" for a in attention]


def encoder_entries(config: UNetConfig) -> Entries:
    """What a U-Net and its ControlNet share: the sizes, then what is the same in all of SD-1.5's kind."""
    return {
        **renamed(config, UNET),
        "down_block_types": block_types(config.attention, "Down"),
        "norm_num_groups": config.groups,
        "norm_eps": 1e-5,
        "act_fn": "silu",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "use_linear_projection": False,
        "transformer_layers_per_block": 1,
        "only_cross_attention": False,
    }


def unet_entries(config: UNetConfig) -> Entries:
    """Of a UNet2DConditionModel."""
    return {
        "_class_name": "UNet2DConditionModel",
        **encoder_entries(config),
        "up_block_types": block_types(config.attention[::-1], "Up"),
        "out_channels": config.channels,
    }


def controlnet_entries(unet: UNetConfig, config: ControlNetConfig) -> Entries:
    """Of a ControlNetModel, for this U-Net."""
    hint = renamed(config, CONTROLNET)
    return {"_class_name": "ControlNetModel", **encoder_entries(unet), **hint}


def vae_entries(config: VAEConfig) -> Entries:
    """Of an AutoencoderKL."""
    levels = len(config.widths)
    return {
        "_class_name": "AutoencoderKL",
        **renamed(config, VAE),
        "out_channels": config.image_channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "norm_num_groups": config.groups,
    }


def scheduler_entries(schedule: Schedule) -> Entries:
    """Our timesteps and the clean image at their end: "trailing" spacing, alphas_cumprod[0] = 1."""
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": schedule.T,
        "beta_start": schedule.beta_1,
        "beta_end": schedule.beta_T,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": True,
        "prediction_type": "epsilon",
        "timestep_spacing": "trailing",
    }


@contextmanager
def reading(folder: Path) -> Iterator[Entries]:
    """Yield the entries of a folder's config.json; inside, what is wrong with them becomes a UserError."""
    path = folder / "config.json"
    entries = files.read_json(path, REMEDY)
    with files.expecting("in the layout of SD-1.5", path, REMEDY):
        yield entries


def build(kind: type, entries: Entries, keys: dict[str, str], **more: Any) -> Any:
    """Our config of this kind from diffusers' entries. Raises KeyError for one that is absent."""
    read = {ours: entries[theirs] for ours, theirs in keys.items()}
    return decode(kind, {**asdict(kind()), **read, **more})


def check(entries: Entries, expected: Entries) -> None:
    """Raise ValueError naming the first entry that our networks cannot represent."""
    for key, value in expected.items():
        if (given := entries.get(key, value)) != value:
            raise ValueError(f"{key} is {given}, not {value}")


def unet_config(folder: Path) -> UNetConfig:
    """The sizes of a U-Net, or of a ControlNet's U-Net. Raises UserError for another layout than SD-1.5's."""
    with reading(folder) as entries:
        heads = entries.get("num_attention_heads") or entries["attention_head_dim"]
        entries["attention_head_dim"] = heads
        attention = [kind.startswith("CrossAttn") for kind in entries["down_block_types"]]
        config = build(UNetConfig, entries, UNET, attention=attention)
        check(entries, encoder_entries(config))
    return config


def controlnet_config(folder: Path) -> ControlNetConfig:
    """The sizes of a ControlNet's hint encoder. Raises UserError."""
    with reading(folder) as entries:
        entries = {"conditioning_channels": 3, **entries}  # absent in those of SD-1.5
        entries.setdefault("conditioning_embedding_out_channels", [16, 32, 96, 256])
        return build(ControlNetConfig, entries, CONTROLNET)


def vae_config(folder: Path) -> VAEConfig:
    """The sizes of an autoencoder. Raises UserError for another layout than SD-1.5's."""
    with reading(folder) as entries:
        config = build(VAEConfig, entries, VAE)
        check(entries, vae_entries(config))
    return config
