"""Weights to and from diffusers' UNet2DConditionModel, ControlNetModel and AutoencoderKL.

`python -m tinyldm.diffusers_io export OUT --base RUN [--control RUN]` writes the folders that `from_pretrained` loads;
`import_unet`, `import_controlnet` and `import_vae` read such folders into our classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from tyro.conf import Positional

from tinyldm import files
from tinyldm.cli import parse, run_command
from tinyldm.controlnet import ControlNet
from tinyldm.diffusers_names import table_of
from tinyldm.diffusion import Schedule
from tinyldm.errors import UserError
from tinyldm.ldm import NO_BASE, LatentDiffusion, load_control, save_control
from tinyldm.unet import UNet, UNetConfig
from tinyldm.vae import VAE, VAEConfig


def to_diffusers(network: nn.Module, config: UNetConfig | VAEConfig) -> dict[str, Tensor]:
    """A network's weights under diffusers' names."""
    state = network.state_dict()
    return {theirs: state[ours] for ours, theirs in table_of(network, config).items()}


def from_diffusers(network: nn.Module, config: UNetConfig | VAEConfig, state: dict[str, Tensor], source: Path) -> None:
    """Load weights under diffusers' names in place. Raises UserError naming the first key that does not fit."""
    table, weights = table_of(network, config), network.state_dict()
    state = {modern(key): tensor for key, tensor in state.items()}
    wrong = sorted(set(table.values()) ^ set(state))
    wrong += [theirs for ours, theirs in table.items() if not wrong and state[theirs].numel() != weights[ours].numel()]
    if wrong:
        raise UserError(f"{source}: {len(wrong)} weights do not fit the layout of SD-1.5, the first is {wrong[0]}")
    weights |= {ours: state[theirs].reshape(weights[ours].shape) for ours, theirs in table.items()}
    network.load_state_dict(weights)


def modern(key: str) -> str:
    """Older VAE files, SD-1.5's own among them, name the projections of the attention otherwise."""
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    *path, projection, leaf = key.split(".") if key.count(".") else ("", key)
    return ".".join([*path, old.get(projection, projection), leaf]) if path else key


# ---------------------------------------------------------------- configurations


def block_types(attention: tuple[bool, ...], direction: str) -> list[str]:
    kinds = [f"{'CrossAttn' if a else ''}{direction}Block2D" for a in attention]
    return kinds if direction == "Down" else kinds[::-1]


def encoder_settings(config: UNetConfig) -> dict[str, Any]:
    """The entries of config.json that a U-Net and its ControlNet share."""
    return {
        "down_block_types": block_types(config.attention, "Down"),
        "block_out_channels": list(config.widths),
        "layers_per_block": config.res_blocks,
        "cross_attention_dim": config.context_width,
        "attention_head_dim": config.heads,  # so named in diffusers, but the number of heads
        "norm_num_groups": config.groups,
        "in_channels": config.channels,
    }


def unet_settings(config: UNetConfig, size: int) -> dict[str, Any]:
    more = {"up_block_types": block_types(config.attention, "Up"), "out_channels": config.channels, "sample_size": size}
    return {"_class_name": "UNet2DConditionModel", **encoder_settings(config), **more}


def controlnet_settings(config: UNetConfig, hint_channels: int, hint_widths: list[int]) -> dict[str, Any]:
    more = {"conditioning_channels": hint_channels, "conditioning_embedding_out_channels": list(hint_widths)}
    return {"_class_name": "ControlNetModel", **encoder_settings(config), **more}


def vae_settings(config: VAEConfig, scale: float, size: int) -> dict[str, Any]:
    """config.json of an AutoencoderKL; `size` in pixels."""
    levels = len(config.widths)
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": config.image_channels,
        "out_channels": config.image_channels,
        "latent_channels": config.latent_channels,
        "block_out_channels": list(config.widths),
        "layers_per_block": config.res_blocks,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "norm_num_groups": config.groups,
        "scaling_factor": scale,
        "sample_size": size,
    }


def scheduler_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Our timesteps and the clean image at its end: "trailing" spacing, alphas_cumprod[0] = 1."""
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": settings["T"],
        "beta_start": settings["beta_1"],
        "beta_end": settings["beta_T"],
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": True,
        "prediction_type": "epsilon",
        "timestep_spacing": "trailing",
    }


def unet_config(settings: dict[str, Any], source: Path) -> UNetConfig:
    """The sizes in diffusers' config.json of a U-Net or ControlNet. Raises UserError for another layout than SD-1.5's."""
    try:
        config = UNetConfig(
            channels=int(settings["in_channels"]),
            widths=tuple(settings["block_out_channels"]),
            res_blocks=int(settings["layers_per_block"]),
            attention=tuple(kind.startswith("CrossAttn") for kind in settings["down_block_types"]),
            heads=int(settings.get("num_attention_heads") or settings["attention_head_dim"]),
            context_width=int(settings["cross_attention_dim"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{source}/config.json: not the config of a U-Net in the layout of SD-1.5 ({error})") from error
    check_layout(settings, {**encoder_settings(config), **LAYOUT}, source)
    return config


LAYOUT = {  # of every U-Net and ControlNet of SD-1.5's kind, where diffusers' classes allow others
    "act_fn": "silu",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_eps": 1e-5,
    "use_linear_projection": False,
    "transformer_layers_per_block": 1,
    "only_cross_attention": False,
}


def check_layout(settings: dict[str, Any], expected: dict[str, Any], source: Path) -> None:
    """Raise UserError naming the first entry of a config.json that these classes cannot represent."""
    for key, value in expected.items():
        given = settings.get(key, value)
        if (list(given) if isinstance(given, tuple) else given) != value:
            raise UserError(f"{source}/config.json: {key} is {given}, but the layout of SD-1.5 has {value}")


# ---------------------------------------------------------------- folders


def write_folder(folder: Path, settings: dict[str, Any], weights: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files.write_tensors(folder / "diffusion_pytorch_model.safetensors", weights)
    files.write_json(folder / "config.json", settings)


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and weights of a diffusers folder. Raises UserError."""
    remedy = "give a folder in diffusers' layout, with config.json and diffusion_pytorch_model.safetensors"
    settings = files.read_json(folder / "config.json", remedy)
    return settings, files.read_tensors(folder / "diffusion_pytorch_model.safetensors", remedy)


def import_unet(folder: Path) -> UNet:
    """The U-Net in a diffusers folder, like SD-1.5's unet/, frozen. Raises UserError."""
    settings, state = read_folder(folder)
    config = unet_config(settings, folder)
    unet = UNet(config)
    from_diffusers(unet, config, state, folder)
    return unet.requires_grad_(False)


def import_controlnet(folder: Path, unet: UNet) -> ControlNet:
    """The ControlNet in a diffusers folder, for this U-Net, frozen. Raises UserError."""
    settings, state = read_folder(folder)
    widths = settings.get("conditioning_embedding_out_channels", [16, 32, 96, 256])
    if unet_config(settings, folder) != unet.config:
        raise UserError(f"{folder}: this ControlNet is for a U-Net of other sizes")
    controlnet = ControlNet(unet, settings.get("conditioning_channels", 3), widths)
    from_diffusers(controlnet, unet.config, state, folder)
    return controlnet.requires_grad_(False)


def import_vae(folder: Path) -> VAE:
    """The autoencoder in a diffusers folder, frozen; its scaling factor becomes our scale. Raises UserError."""
    settings, state = read_folder(folder)
    try:
        config = VAEConfig(
            image_channels=settings["in_channels"],
            latent_channels=settings["latent_channels"],
            widths=tuple(settings["block_out_channels"]),
            res_blocks=settings["layers_per_block"],
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder}/config.json: not the config of an autoencoder like SD-1.5's ({error})") from error
    scale = settings.get("scaling_factor", 0.18215)
    expected = vae_settings(config, scale, 0)
    check_layout(settings, {key: expected[key] for key in ("down_block_types", "norm_num_groups")}, folder)
    vae = VAE(config)
    from_diffusers(vae, config, state, folder)
    vae.scale.fill_(scale)
    return vae.requires_grad_(False)


class ClipTokenizer:
    """transformers' CLIP tokenizer as a tokenizer of ours."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def encode(self, captions: list[str]) -> Tensor:
        """Captions -> tokens (b, 77)."""
        length = self.tokenizer.model_max_length
        return self.tokenizer(
            captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids


class ClipText(nn.Module):
    """transformers' CLIP text encoder as a text module of ours: tokens (b, 77) -> context (b, 77, 768)."""

    def __init__(self, clip: nn.Module):
        super().__init__()
        self.clip = clip

    def forward(self, tokens: Tensor) -> Tensor:
        return self.clip(tokens).last_hidden_state


def load_stable_diffusion(folder: Path, resolution: int = 512) -> LatentDiffusion:
    """SD-1.5, or a fine-tune of it, in diffusers' layout on disk, ready for `generate`; needs transformers."""
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = ClipTokenizer(CLIPTokenizer.from_pretrained(folder / "tokenizer"))
    text = ClipText(CLIPTextModel.from_pretrained(folder / "text_encoder"))
    vae, unet = import_vae(folder / "vae"), import_unet(folder / "unet")
    return LatentDiffusion(vae, tokenizer, text, unet, Schedule(), resolution).requires_grad_(False)


# ---------------------------------------------------------------- the command


@dataclass(frozen=True)
class Export:
    """Write a base, and a ControlNet, as the folders that diffusers' from_pretrained loads."""

    out: Positional[Path]
    """Folder to write unet/, vae/, scheduler/ and controlnet/ into."""
    base: Path = Path("runs/base")
    """Run folder of train_base.py."""
    control: Path | None = None
    """Run folder of train_control.py."""


@dataclass(frozen=True)
class Import:
    """Read unet/, vae/ and, if it is there, controlnet/ in diffusers' layout into new run folders OUT/base, OUT/control."""

    folder: Positional[Path]
    """Folder with unet/ and vae/, perhaps controlnet/."""
    out: Positional[Path]
    """Folder for the runs `base` and `control`; must not hold them yet."""
    base: Path = Path("runs/base")
    """Run folder of train_base.py whose tokenizer, text encoder and schedule belong to that U-Net."""


def hint_settings(controlnet: ControlNet) -> dict[str, Any]:
    """hint_channels and hint_widths of a ControlNet, from its hint encoder."""
    convs = [layer for layer in controlnet.hint_encoder if isinstance(layer, nn.Conv2d)]
    widths = [convs[0].out_channels, *(conv.out_channels for conv in convs[2:-1:2])]
    return {"hint_channels": convs[0].in_channels, "hint_widths": widths}


def export_run(config: Export) -> None:
    """Write unet/, vae/, scheduler/ and, with a control, controlnet/."""
    ldm = LatentDiffusion.load(config.base)
    size = ldm.resolution // ldm.vae.f
    unet, vae = ldm.unet.config, ldm.vae.config
    write_folder(config.out / "unet", unet_settings(unet, size), to_diffusers(ldm.unet, unet))
    scale = ldm.vae.scale.item()
    write_folder(config.out / "vae", vae_settings(vae, scale, ldm.resolution), to_diffusers(ldm.vae, vae))
    (config.out / "scheduler").mkdir(exist_ok=True)
    files.write_json(config.out / "scheduler" / "scheduler_config.json", scheduler_settings(ldm.schedule.settings))
    if config.control:
        controlnet, _ = load_control(config.control, config.base, ldm)
        settings = controlnet_settings(unet, **hint_settings(controlnet))
        write_folder(config.out / "controlnet", settings, to_diffusers(controlnet, unet))
    print(config.out)


def import_run(config: Import) -> None:
    """Write OUT/base and, with a controlnet/, OUT/control. Raises UserError if they exist or the parts do not fit."""
    ldm, base, control = LatentDiffusion.load(config.base), config.out / "base", config.out / "control"
    if base.exists() or control.exists():
        raise UserError(f"{config.out}: holds runs already; name another folder")
    unet, vae = import_unet(config.folder / "unet"), import_vae(config.folder / "vae")
    for what in ("channels", "context_width"):
        ours, theirs = getattr(ldm.unet.config, what), getattr(unet.config, what)
        if ours != theirs:
            raise UserError(f"{config.folder}/unet: its {what} is {theirs}, that of {config.base} is {ours}")
    if (vae.config.image_channels, vae.f) != (ldm.vae.config.image_channels, ldm.vae.f):
        raise UserError(f"{config.folder}/vae: image channels or downsampling differ from those of {config.base}")
    ldm.unet, ldm.vae = unet, vae
    ldm.save(base)
    files.write_json(base / "settings.json", files.read_json(config.base / "settings.json", NO_BASE))
    if (config.folder / "controlnet").exists():
        controlnet = import_controlnet(config.folder / "controlnet", unet)
        save_control(controlnet, base, control, {**hint_settings(controlnet), "condition": "canny"})
    print(config.out)


def main(config: Export | Import) -> None:
    export_run(config) if isinstance(config, Export) else import_run(config)


if __name__ == "__main__":
    run_command(lambda: main(parse(Export | Import)))
