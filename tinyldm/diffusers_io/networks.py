"""Weights to and from diffusers' UNet2DConditionModel, ControlNetModel and AutoencoderKL, and their folders."""

from pathlib import Path
from typing import Any

from torch import Tensor

from tinyldm.controlnet import ControlNet
from tinyldm.diffusers_io.configurations import (
    REMEDY,
    WEIGHTS,
    Entries,
    controlnet_config,
    reading,
    unet_config,
    vae_config,
)
from tinyldm.diffusers_io.names import Network, table_of
from tinyldm.support import files
from tinyldm.support.decode import decode
from tinyldm.support.errors import UserError
from tinyldm.unet import UNet
from tinyldm.vae import VAE

OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def modern(key: str) -> str:
    """Older VAE files, SD-1.5's own among them, name the projections of the attention otherwise."""
    return ".".join(OLD_NAMES.get(part, part) for part in key.split("."))


def to_diffusers(network: Network) -> dict[str, Tensor]:
    """A network's weights under diffusers' names."""
    state = network.state_dict()
    return {theirs: state[ours] for ours, theirs in table_of(network).items()}


def write_folder(folder: Path, entries: Entries, network: Network) -> None:
    """Write config.json and weights as `from_pretrained` loads them."""
    files.write_tensors(folder / WEIGHTS, to_diffusers(network))
    files.write_json(folder / "config.json", entries)


def loaded(network: Network, folder: Path) -> Any:
    """A network with a folder's weights, frozen. Raises UserError naming one that does not fit."""
    state = {modern(k): v for k, v in files.read_tensors(folder / WEIGHTS, REMEDY).items()}
    table, weights = table_of(network), network.state_dict()
    wrong = sorted(set(table.values()) ^ set(state)) or [
        theirs for ours, theirs in table.items() if state[theirs].numel() != weights[ours].numel()
    ]
    if wrong:
        reason = f"{len(wrong)} weights do not fit the layout of SD-1.5, the first is {wrong[0]}"
        raise UserError(f"{folder}: {reason}")
    weights |= {ours: state[theirs].reshape(weights[ours].shape) for ours, theirs in table.items()}
    network.load_state_dict(weights)
    return network.requires_grad_(False)


def import_unet(folder: Path) -> UNet:
    """The U-Net in a diffusers folder, like SD-1.5's unet/, frozen. Raises UserError."""
    return loaded(UNet(unet_config(folder)), folder)


def import_controlnet(folder: Path, unet: UNet) -> ControlNet:
    """The ControlNet in a diffusers folder, for this U-Net, frozen. Raises UserError."""
    if unet_config(folder) != unet.config:
        raise UserError(f"{folder}: this ControlNet is for a U-Net of other sizes")
    return loaded(ControlNet(unet, controlnet_config(folder)), folder)


def import_vae(folder: Path) -> VAE:
    """The autoencoder in a diffusers folder, frozen; its scaling factor becomes our scale. Raises UserError."""
    vae = loaded(VAE(vae_config(folder)), folder)
    with reading(folder) as entries:
        scale = decode(float, entries.get("scaling_factor", 0.18215), "scaling_factor")
        if not 1e-6 < scale < 1e6:
            raise ValueError(f"scaling_factor is {scale}")
        vae.scale.fill_(scale)
    return vae
