"""Networks on disk: one pair of functions for weights, and the folders of a base and a ControlNet."""

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tinyldm.controlnet import ControlNet, ControlNetConfig
from tinyldm.data.conditions import Condition, Name
from tinyldm.data.dataset import Dataset
from tinyldm.diffusion import Schedule
from tinyldm.ldm import LatentDiffusion
from tinyldm.support import files
from tinyldm.support.errors import UserError
from tinyldm.support.sealed import Sealed, seal
from tinyldm.text import TextConfig, TextEncoder, Tokenizer, words
from tinyldm.training.settings import BaseSettings, downsampling, within
from tinyldm.unet import UNet, UNetConfig
from tinyldm.vae import VAE, VAEConfig

NO_BASE = "give the run folder of a finished train_base.py"
NO_CONTROL = "give the run folder of a finished train_control.py"
FORMAT = 1  # of config.json
CONFIG, VOCABULARY, SETTINGS = "config.json", "vocabulary.json", "settings.json"
LATENTS = "latents.safetensors"


@dataclass(frozen=True)
class BaseConfig:
    """config.json of a base."""

    format: Literal[1]
    vae: VAEConfig
    text: TextConfig
    unet: UNetConfig
    schedule: Schedule
    resolution: int  # H = W of the images

    def __post_init__(self) -> None:
        within(self, 1, 4096, "resolution")
        factor = downsampling(self.vae, self.unet)
        latent, context = self.vae.latent_channels, self.text.width
        sizes = self.unet.channels, self.unet.context_width
        if self.resolution % factor or sizes != (latent, context):
            raise ValueError(
                "sizes of autoencoder, text encoder and U-Net that do not fit together"
            )


@dataclass(frozen=True)
class Vocabulary:
    """vocabulary.json of a base."""

    length: int  # of a caption, in tokens
    vocabulary: list[str]


@dataclass(frozen=True)
class ControlConfig:
    """config.json of a ControlNet."""

    format: Literal[1]
    controlnet: ControlNetConfig
    condition: Name
    base_sha256: str  # identity of the base that it was trained on
    canny_low: float = Condition.low
    canny_high: float = Condition.high


def save_weights(path: Path, network: nn.Module) -> str:
    """Write a network's weights as safetensors; return their checksum. UserError if one is not finite."""
    return files.write_tensors(path, network.state_dict())


def load_weights(path: Path, network: nn.Module, checksum: str, remedy: str) -> Any:
    """A network that was built on the device "meta", with its weights, frozen, on the CPU.

    Raises UserError, before anything is allocated, if the file does not fit, and if it is damaged.
    """
    shapes = {name: x.shape for name, x in network.state_dict().items()}
    tensors = files.read_tensors(path, remedy, checksum, shapes)
    if wrong := [name for name, x in tensors.items() if not x.isfinite().all()]:
        raise UserError(f"{path}: {wrong[0]} is not finite; {remedy}")
    network.to_empty(device="cpu").load_state_dict(tensors)
    return network.requires_grad_(False)


def build_base(settings: BaseSettings, data: Dataset) -> LatentDiffusion:
    """An untrained model, a function of the seed; what must agree with the data comes from the data."""
    torch.manual_seed(settings.run.seed)
    captions = data.captions.all()
    longest = max(len(words(caption)) for caption in set(captions))
    length = settings.text.length or min(64, max(1, longest))
    tokenizer = Tokenizer.from_captions(captions, length, least=settings.min_count)
    vae = VAE(replace(settings.vae, image_channels=data.images.shape[1]))
    size = settings.data.resolution
    return LatentDiffusion.build(vae, tokenizer, settings.text, settings.unet, size)


def seal_run(folder: Path, sums: dict[str, str]) -> None:
    """Write the manifest of a run, its settings among the files: from here on it is finished."""
    settings = folder / SETTINGS
    seal(folder, sums | ({SETTINGS: files.sha256(settings)} if settings.exists() else {}))


def save_base(folder: Path, ldm: LatentDiffusion, latents: Tensor | None = None) -> None:
    """Write config, vocabulary, weights, perhaps the latents of the training images, and the manifest."""
    tokenizer = Vocabulary(ldm.tokenizer.length, ldm.tokenizer.vocabulary)
    networks: dict[str, Any] = {"vae": ldm.vae, "text": ldm.text, "unet": ldm.unet}
    config = {name: asdict(network.config) for name, network in networks.items()}
    schedule = asdict(ldm.schedule)
    content = {"format": FORMAT, **config, "schedule": schedule, "resolution": ldm.resolution}
    sums = {
        CONFIG: files.write_json(folder / CONFIG, content),
        VOCABULARY: files.write_json(folder / VOCABULARY, asdict(tokenizer)),
    }
    for name, network in networks.items():
        file = f"{name}.safetensors"
        sums[file] = save_weights(folder / file, network)
    if latents is not None:
        sums[LATENTS] = files.write_tensors(folder / LATENTS, {"z": latents})
    seal_run(folder, sums)


def load_tokenizer(sealed: Sealed, config: TextConfig) -> Tokenizer:
    """The tokenizer of a base, for a text encoder of these sizes. Raises UserError."""
    content: Vocabulary = sealed.decoded(VOCABULARY, Vocabulary)
    with files.expecting("the vocabulary of this base", sealed.folder / VOCABULARY, NO_BASE):
        tokenizer = Tokenizer(content.vocabulary, content.length)
        if (len(content.vocabulary), content.length) != (config.vocabulary, config.length):
            raise ValueError("its numbers of words and tokens are not those of the text encoder")
    return tokenizer


def load_base(folder: Path) -> LatentDiffusion:
    """Load what `save_base` wrote, frozen, on the CPU. Raises UserError naming the file that is wrong."""
    sealed = Sealed(folder, NO_BASE)
    config: BaseConfig = sealed.decoded(CONFIG, BaseConfig)
    tokenizer = load_tokenizer(sealed, config.text)
    with torch.device("meta"):
        vae, text, unet = VAE(config.vae), TextEncoder(config.text), UNet(config.unet)
    for name, network in (("vae", vae), ("text", text), ("unet", unet)):
        file = f"{name}.safetensors"
        load_weights(folder / file, network, sealed.checksum(file), NO_BASE)
    return LatentDiffusion(vae, tokenizer, text, unet, config.schedule, config.resolution)


def base_checksum(folder: Path) -> str:
    """What identifies a base: a checksum of config, vocabulary and all weights. Raises UserError."""
    return Sealed(folder, NO_BASE).identity(SETTINGS, LATENTS)


def save_control(
    folder: Path, controlnet: ControlNet, condition: Condition, base_sha256: str
) -> None:
    """Write a ControlNet, its condition, the identity of its base, and the manifest."""
    config = {"controlnet": asdict(controlnet.config), "condition": condition.name}
    limits = {"canny_low": condition.low, "canny_high": condition.high}
    content = {"format": FORMAT, **config, "base_sha256": base_sha256, **limits}
    sums = {CONFIG: files.write_json(folder / CONFIG, content)}
    file = "controlnet.safetensors"
    seal_run(folder, sums | {file: save_weights(folder / file, controlnet)})


def check_steps(steps: int, ldm: LatentDiffusion) -> None:
    """Raise UserError for more steps of a sampler than the base has timesteps."""
    if steps > (most := ldm.schedule.T):
        raise UserError(f"--steps {steps}: the base has only {most} timesteps")


def load_control(
    folder: Path, base: Path, ldm: LatentDiffusion, transfer: bool = False
) -> tuple[ControlNet, Condition]:
    """Load what `save_control` wrote: the ControlNet, frozen, and its condition.

    Raises UserError naming the file that is wrong, or if it was trained on another base than this;
    with `transfer` that is a note on stderr.
    """
    sealed = Sealed(folder, NO_CONTROL)
    limits = {"canny_low": Condition.low, "canny_high": Condition.high}
    config: ControlConfig = sealed.decoded(CONFIG, ControlConfig, **limits)
    if config.base_sha256 != base_checksum(base):
        other = f"{folder}: trained on another base than {base}"
        if not transfer:
            raise UserError(f"{other}; give its own --base, or --transfer to use it with this one")
        print(f"note: {other}, and transferred to it", file=sys.stderr)
    check_levels(folder / CONFIG, config.controlnet, ldm)
    with torch.device("meta"):
        empty = ControlNet(UNet(ldm.unet.config), config.controlnet)
    path = folder / "controlnet.safetensors"
    controlnet = load_weights(path, empty, sealed.checksum(path.name), NO_CONTROL)
    return controlnet, Condition(config.condition, config.canny_low, config.canny_high)


def check_levels(what: Path | str, config: ControlNetConfig, ldm: LatentDiffusion) -> None:
    """Raise UserError unless a hint encoder of these sizes suits the base's autoencoder."""
    levels, given = len(ldm.vae.config.widths), config.hint_widths
    if len(given) != levels:
        raise UserError(f"{what} {given}: give {levels}, as many as the autoencoder has")
