"""Networks on disk: one pair of functions for weights, and the folders of a base and a ControlNet."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tinyldm.controlnet import ControlNet, ControlNetConfig
from tinyldm.data.dataset import Dataset
from tinyldm.diffusion import Schedule
from tinyldm.ldm import LatentDiffusion
from tinyldm.support import files
from tinyldm.support.errors import UserError
from tinyldm.text import TextConfig, TextEncoder, Tokenizer
from tinyldm.training.settings import BaseSettings, from_json
from tinyldm.unet import UNet, UNetConfig
from tinyldm.vae import VAE, VAEConfig

NO_BASE = "give the run folder of a finished train_base.py"
NO_CONTROL = "give the run folder of a finished train_control.py"


def save_weights(path: Path, network: nn.Module) -> str:
    """Write a network's weights as safetensors; return the checksum of the file."""
    files.write_tensors(path, network.state_dict())
    return files.sha256(path)


def load_weights(path: Path, network: nn.Module, checksum: str, remedy: str) -> None:
    """Load a network's weights in place. Raises UserError if the file is damaged or does not fit."""
    tensors = files.read_tensors(path, remedy)
    if files.sha256(path) != checksum:
        raise UserError(f"{path}: checksum differs from the one stored beside it; {remedy}")
    with files.expecting("weights that fit the config", path, remedy, RuntimeError):
        network.load_state_dict(tensors)


def build_base(settings: BaseSettings, data: Dataset) -> LatentDiffusion:
    """An untrained model, a function of the seed; what must agree with the data comes from the data."""
    torch.manual_seed(settings.run.seed)
    tokenizer = Tokenizer.from_captions(data.captions.all(), settings.text.length)
    vae = VAE(replace(settings.vae, image_channels=data.images.shape[1]))
    size = settings.data.resolution
    return LatentDiffusion.build(vae, tokenizer, settings.text, settings.unet, size)


def save_base(folder: Path, ldm: LatentDiffusion) -> None:
    """Write the vocabulary, a safetensors file per network, and last config.json with their checksums."""
    tokenizer = {"length": ldm.tokenizer.length, "vocabulary": ldm.tokenizer.vocabulary}
    files.write_json(folder / "vocabulary.json", tokenizer)
    networks: dict[str, Any] = {"vae": ldm.vae, "text": ldm.text, "unet": ldm.unet}
    sums = {
        name: save_weights(folder / f"{name}.safetensors", net) for name, net in networks.items()
    }
    config = {name: asdict(network.config) for name, network in networks.items()}
    schedule = asdict(ldm.schedule)
    content = {**config, "schedule": schedule, "resolution": ldm.resolution, "sha256": sums}
    files.write_json(folder / "config.json", content)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a vocabulary.json. Raises UserError naming the file."""
    content = files.read_json(path, NO_BASE)
    with files.expecting("a vocabulary", path, NO_BASE):
        return Tokenizer(content["vocabulary"], content["length"])


def load_base(folder: Path) -> LatentDiffusion:
    """Load what `save_base` wrote, frozen, on the CPU. Raises UserError naming the file that is wrong."""
    path = folder / "config.json"
    config = files.read_json(path, NO_BASE)
    tokenizer = load_tokenizer(folder / "vocabulary.json")
    with files.expecting("the config of a base", path, NO_BASE):
        vae = VAE(from_json(VAEConfig, config["vae"]))
        text = TextEncoder(from_json(TextConfig, config["text"]))
        unet = UNet(from_json(UNetConfig, config["unet"]))
        schedule = from_json(Schedule, config["schedule"])
        ldm = LatentDiffusion(vae, tokenizer, text, unet, schedule, config["resolution"])
        sums = {name: config["sha256"][name] for name in ("vae", "text", "unet")}
    for name, checksum in sums.items():
        load_weights(folder / f"{name}.safetensors", getattr(ldm, name), checksum, NO_BASE)
    return ldm.requires_grad_(False)


def base_checksum(folder: Path) -> str:
    """What identifies a base: the checksum of its U-Net. Raises UserError."""
    path = folder / "config.json"
    with files.expecting("the config of a base", path, NO_BASE):
        return files.read_json(path, NO_BASE)["sha256"]["unet"]


def save_control(folder: Path, controlnet: ControlNet, condition: str, base: Path) -> None:
    """Write a ControlNet, the name of its condition, and the base that it belongs to."""
    checksum = save_weights(folder / "controlnet.safetensors", controlnet)
    config = {**asdict(controlnet.config), "condition": condition}
    content = {"controlnet": config, "sha256": checksum, "base_sha256": base_checksum(base)}
    files.write_json(folder / "config.json", content)


def load_control(folder: Path, base: Path, ldm: LatentDiffusion) -> tuple[ControlNet, str]:
    """Load what `save_control` wrote: the ControlNet, frozen, and the name of its condition.

    Raises UserError naming the file that is wrong, or if it was trained on another base than this.
    """
    path = folder / "config.json"
    content = files.read_json(path, NO_CONTROL)
    with files.expecting("the config of a ControlNet", path, NO_CONTROL):
        config, checksum, trained_on = (content[k] for k in ("controlnet", "sha256", "base_sha256"))
        condition = config.pop("condition")
        controlnet = ControlNet(ldm.unet, from_json(ControlNetConfig, config))
    if trained_on != base_checksum(base):
        raise UserError(f"{folder}: trained on another base than {base}; give its own --base")
    load_weights(folder / "controlnet.safetensors", controlnet, checksum, NO_CONTROL)
    return controlnet.requires_grad_(False), condition
