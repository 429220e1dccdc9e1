"""The whole model: autoencoder, text encoder, U-Net and schedule; its folder on disk; and `generate`."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from tinyldm import files
from tinyldm.controlnet import ControlNet, scale
from tinyldm.diffusion import SAMPLERS, EpsFn, Schedule, guided
from tinyldm.errors import UserError
from tinyldm.text import TextConfig, TextEncoder, Tokenizer
from tinyldm.unet import UNet, UNetConfig
from tinyldm.vae import VAE, VAEConfig

Control = Callable[[Tensor, Tensor, Tensor], list[Tensor]]  # (z_t, t, context) -> residuals

NO_BASE = "give the run folder of a finished train_base.py"
NO_CONTROL = "give the run folder of a finished train_control.py"


class LatentDiffusion(nn.Module):
    """Image <-> latent, caption -> context, (z_t, t, context) -> eps: everything that `generate` needs."""

    def __init__(
        self, vae: VAE, tokenizer: Tokenizer, text: nn.Module, unet: UNet, schedule: Schedule, resolution: int
    ):
        super().__init__()
        self.vae, self.tokenizer, self.text, self.unet, self.schedule = vae, tokenizer, text, unet, schedule
        self.resolution = resolution  # H = W of the images it was trained on

    @property
    def device(self) -> torch.device:
        return self.schedule.alphas_cumprod.device

    def context(self, captions: Sequence[str]) -> Tensor:
        """Captions -> context (b, l, d); the null context is that of ""."""
        return self.text(self.tokenizer.encode(list(captions)).to(self.device))

    def noise(self, number: int, seed: int) -> Tensor:
        """z_T (number, c, h, w) for images of the training resolution; image i depends on seed + i alone."""
        size = self.resolution // self.vae.f
        shape = (self.unet.config.channels, size, size)
        z_T = [torch.randn(shape, generator=Generator().manual_seed(seed + i)) for i in range(number)]
        return torch.stack(z_T).to(self.device)

    def save(self, folder: Path) -> None:
        """Write config.json, vocabulary.json and one safetensors file per network into the folder; config.json last."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(folder / "vocabulary.json")
        networks = {"vae": self.vae, "text": self.text, "unet": self.unet}
        for name, network in networks.items():
            files.write_tensors(folder / f"{name}.safetensors", network.state_dict())
        config = {name: asdict(network.config) for name, network in networks.items()}
        config |= {"schedule": self.schedule.settings, "resolution": self.resolution}
        config |= {"sha256": {name: files.sha256(folder / f"{name}.safetensors") for name in networks}}
        files.write_json(folder / "config.json", config)

    @classmethod
    def load(cls, folder: Path) -> "LatentDiffusion":
        """Read what `save` wrote, for use only (frozen, on the CPU). Raises UserError naming the file that is wrong."""
        config = files.read_json(folder / "config.json", NO_BASE)
        tokenizer = Tokenizer.load(folder / "vocabulary.json")
        try:
            vae = VAE(VAEConfig(**tuples(config["vae"])))
            text = TextEncoder(TextConfig(**config["text"]))
            unet = UNet(UNetConfig(**tuples(config["unet"])))
            ldm = cls(vae, tokenizer, text, unet, Schedule(**config["schedule"]), config["resolution"])
            checksums = {name: config["sha256"][name] for name in ("vae", "text", "unet")}
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder / 'config.json'}: not the config of a base ({error}); {NO_BASE}") from error
        for name, checksum in checksums.items():
            load_weights(getattr(ldm, name), folder / f"{name}.safetensors", checksum, NO_BASE)
        return ldm.requires_grad_(False)


def tuples(settings: dict) -> dict:
    """JSON has lists where the configurations have tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def load_weights(network: nn.Module, path: Path, checksum: str, remedy: str) -> None:
    """Load a network's weights in place. Raises UserError if the file is damaged or its keys and shapes do not fit."""
    tensors = files.read_tensors(path, remedy)
    if files.sha256(path) != checksum:
        raise UserError(f"{path}: checksum differs from the one in config.json; {remedy}")
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{path}: weights do not fit the config ({' '.join(str(error).split())[:200]})") from error


def save_control(controlnet: ControlNet, ldm_folder: Path, folder: Path, settings: dict) -> None:
    """Write a ControlNet, with its `settings` (hint_channels, hint_widths, condition) and the base it belongs to."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_tensors(folder / "controlnet.safetensors", controlnet.state_dict())
    base = files.read_json(ldm_folder / "config.json", NO_BASE)["sha256"]["unet"]
    checksum = files.sha256(folder / "controlnet.safetensors")
    files.write_json(folder / "config.json", {"controlnet": settings, "sha256": checksum, "base_sha256": base})


def load_control(folder: Path, ldm_folder: Path, ldm: LatentDiffusion) -> tuple[ControlNet, str]:
    """Read what `save_control` wrote: the ControlNet, frozen, and the name of its condition.

    Raises UserError naming the file that is wrong, or if it was trained on another base than this.
    """
    config = files.read_json(folder / "config.json", NO_CONTROL)
    try:
        settings, checksum, base = config["controlnet"], config["sha256"], config["base_sha256"]
        controlnet = ControlNet(ldm.unet, settings["hint_channels"], settings["hint_widths"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / 'config.json'}: not the config of a ControlNet ({error}); {NO_CONTROL}") from error
    if base != files.read_json(ldm_folder / "config.json", NO_BASE)["sha256"]["unet"]:
        raise UserError(f"{folder}: this ControlNet was trained on another base than {ldm_folder}; give its own --base")
    load_weights(controlnet, folder / "controlnet.safetensors", checksum, NO_CONTROL)
    return controlnet.requires_grad_(False), settings["condition"]


def bind_hint(controlnet: ControlNet, hint: Tensor, weight: float = 1.0) -> Control:
    """A control for `generate`: this ControlNet with this hint (b, k, H, W), at a strength of 0 (none) to 1."""
    return lambda z_t, t, context: scale(controlnet(z_t, t, context, hint), weight)


def bind_context(unet: UNet, context: Tensor, controls: Sequence[Control] = ()) -> EpsFn:
    """The eps_fn of diffusion.py: this U-Net with this context (b, l, d) and these controls."""
    return lambda z_t, t: unet(z_t, t, context, *(control(z_t, t, context) for control in controls))


@torch.no_grad()
def generate(
    ldm: LatentDiffusion,
    prompts: Sequence[str],
    *,
    guidance: float = 2.0,
    sampler: str = "dpm++",
    steps: int = 20,
    seed: int = 0,
    eta: float = 0.0,
    controls: Sequence[Control] = (),
) -> Iterator[Tensor]:
    """Yield z (b, c, h, w) after each of `steps` steps, one image per prompt; `ldm.vae.decode` the last to see it.

    Image i starts from noise of seed + i. Guidance 1 is off; controls act on both of its passes, so that without any
    prompt both are equal and one is enough. `eta` is for ddim.
    """
    guidance = guidance if any(prompts) else 1.0
    eps_fn = bind_context(ldm.unet, ldm.context(prompts), controls)
    null_fn = bind_context(ldm.unet, ldm.context([""] * len(prompts)), controls)
    sample = SAMPLERS[sampler]
    if sampler != "dpm++":
        sample = partial(sample, generator=Generator().manual_seed(seed))
    if sampler == "ddim":
        sample = partial(sample, eta=eta)
    yield from sample(ldm.schedule, guided(eps_fn, null_fn, guidance), ldm.noise(len(prompts), seed), steps)


def last(z: Iterator[Tensor]) -> Tensor:
    """The last tensor of a sampler: z_0."""
    return deque(z, maxlen=1).pop()
