"""Every setting of the two trainings: what a user chooses on the command line, with its range."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from PIL import ImageColor
from tyro.conf import Fixed, arg

from tinyldm.controlnet import ControlNetConfig
from tinyldm.data.conditions import Condition
from tinyldm.text import TextConfig
from tinyldm.unet import UNetConfig
from tinyldm.vae import VAEConfig

Flat = arg(name="")  # its flags carry no prefix: --lr, not --fit.lr
Preset = Literal["auto", "tiny", "cpu", "long", "emoji", "folder", "gpu"]
Density = Annotated[Literal["uniform", "logit-normal"], arg(aliases=["--timesteps"])]

DatasetName = Literal["fashion-mnist", "shapes", "emoji"]
MOST = 10**9  # of steps, images, ...


def within(settings: object, low: float, high: float, *names: str) -> None:
    """Raise ValueError, naming the field, for a number that is not finite or not in [low, high]."""
    for name in names:
        value = getattr(settings, name)
        if not low <= value <= high or value == math.inf:
            bound = f"at least {low}" if high == math.inf else f"between {low} and {high}"
            raise ValueError(f"{name} {value}: must be {bound}")


def positive(settings: object, *names: str) -> None:
    """Raise ValueError, naming the field, for a number that is not finite and more than 0."""
    for name in names:
        value = getattr(settings, name)
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} {value}: must be more than 0")


def downsampling(vae: VAEConfig, unet: UNetConfig) -> int:
    """What the height and width of an image must be a multiple of, in pixels."""
    return vae.f * 2 ** (len(unet.widths) - 1)


@dataclass(frozen=True)
class DataSettings:
    """What to train on."""

    dataset: str = "fashion-mnist"
    """fashion-mnist, or emoji in eight colours (both are fetched if they are not here, emoji on Debian and
    Ubuntu only), or drawn shapes (needs no files); or the path of a folder of pictures, with metadata.jsonl or
    metadata.csv (file_name, text), or with a folder for each class."""
    data_dir: Path | None = None
    """Folder with Fashion-MNIST's four idx files, or the font NotoColorEmoji.ttf; by default $TINYLDM_DATA,
    then the usual places."""
    resolution: int = 32
    """Height and width of the images in pixels; a multiple of the VAE's and U-Net's downsampling."""
    limit: int = 0
    """Use only the first N images of each split; 0 means all."""
    views: int = 8
    """Versions of each training drawing, of emoji only: as it is, then flipped, turned, scaled and shifted."""
    channels: Literal["auto", "grey", "rgb"] = "auto"
    """Of a folder's pictures; auto is grey if all training pictures are."""
    background: str = "white"
    """What a folder's transparent pictures are put on: the name of a colour, or #rrggbb."""
    conditioning_image_column: str = "conditioning_image_file_name"
    """The metadata's column of hints for the ControlNet, white on black; without it they are found in the
    pictures."""
    skip_bad_images: bool = False
    """Leave out pictures of a folder that cannot be read, and say how many."""

    @property
    def folder(self) -> Path | None:
        """The folder of pictures, unless it is one of the known datasets."""
        return None if self.dataset in get_args(DatasetName) else Path(self.dataset)

    def __post_init__(self) -> None:
        if self.folder and not self.folder.is_dir():
            known = ", ".join(get_args(DatasetName))
            raise ValueError(f"dataset {self.dataset}: neither a folder nor one of {known}")
        try:
            ImageColor.getrgb(self.background)
        except ValueError as error:
            raise ValueError(f"background {self.background}: no colour; try white") from error
        within(self, 0, MOST, "limit")
        within(self, 1, 64, "views")
        within(self, 32, 4096, "resolution")


@dataclass(frozen=True)
class FitSettings:
    """How one network is trained: its optimizer and learning rate, clipped gradients, EMA of the weights."""

    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 128
    """Images per step."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon orthogonalises the steps of matrices and convolutions and needs about half of adamw's steps."""
    lr: float = 1e-3
    """Highest learning rate."""
    lr_scheduler: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up: half a cosine down to 0, or the highest rate to the end."""
    warmup: int = 50
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    ema: float = 0.995
    """Decay of the average of the weights, which is what is saved; it warms up as (1 + n) / (10 + n)."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl."""
    preview_every: int = 250
    """Steps between sample pictures and validation losses."""

    def __post_init__(self) -> None:
        positive(self, "steps", "batch_size", "lr", "clip", "log_every", "preview_every")
        within(self, 0, MOST, "warmup", "weight_decay", "steps", "preview_every")
        within(self, 0, 2**16, "batch_size", "log_every")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema {self.ema}: must be in [0, 1)")


@dataclass(frozen=True)
class MachineSettings:
    """What a training needs to know about the machine, and its seed."""

    device: str = "auto"
    """auto (cuda if there is one, else mps, else cpu), cpu, cuda, cuda:1, mps, ..."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """bf16 computes in bfloat16 by autocast, weights stay fp32; auto is bf16 on a CPU that multiplies it
    natively, else fp32, which on CUDA has TF32 matrix products. fp16 is for GPUs without bf16, which take it
    for bf16 too."""
    threads: int = 0
    """Threads on a CPU; 0 is $OMP_NUM_THREADS, or as many as there are cores that nothing else keeps busy."""
    seed: int = 0
    """Data order, noise and initial weights are functions of it."""

    def __post_init__(self) -> None:
        within(self, 0, 2**64 - 1, "seed")
        within(self, 0, 1024, "threads")


@dataclass(frozen=True)
class RunSettings(MachineSettings):
    """The same, and what becomes of the run folder."""

    resume: Path | None = None
    """Resume the interrupted run that the output folder holds, on a CPU bit for bit: latest, or the path of
    one of its checkpoints."""
    overwrite: bool = False
    """Replace the run that the output folder holds. It stays beside it, as OUT.old, until the new one
    is complete."""
    checkpointing_steps: int = 250
    """Steps between checkpoints, the folders checkpoint-N."""
    checkpoints_total_limit: int = 2
    """Checkpoints of a training that are kept, the newest."""
    gradient_accumulation_steps: int = 1
    """Parts that a process computes its share of a batch in, one after the other: less memory, the same steps
    up to rounding."""
    gradient_checkpointing: bool = False
    """Compute the activations of each block again for its gradient instead of keeping them: less memory, a
    third more time, the same steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = "checkpointing_steps", "checkpoints_total_limit", "gradient_accumulation_steps"
        positive(self, *names)
        within(self, 0, MOST, *names)


@dataclass(frozen=True)
class VAESizes(VAEConfig):
    """Sizes of the autoencoder."""

    image_channels: Annotated[int, Fixed] = 1  # those of the images


@dataclass(frozen=True)
class TextSizes(TextConfig):
    """Sizes of the text encoder."""

    vocabulary: Annotated[int, Fixed] = 0  # that of the captions
    length: int = 0
    """Tokens a caption, longer ones are cut; 0 is as many as the longest training caption has."""

    def __post_init__(self) -> None:
        TextConfig(**{**vars(self), "length": self.length or TextConfig.length})


@dataclass(frozen=True)
class UNetSizes(UNetConfig):
    """Sizes of the U-Net."""

    channels: Annotated[int, Fixed] = 4  # those of the latent
    context_width: Annotated[int, Fixed] = 64  # the text encoder's


@dataclass(frozen=True)
class BaseSettings:
    """Train a latent diffusion model: the autoencoder, then text encoder and U-Net on its latents."""

    preset: Preset = "auto"
    """Where the defaults of all other settings come from. auto is emoji with --dataset emoji, else cpu, on
    whatever device is there; long is three times the steps of cpu; gpu is emoji with larger networks; tiny is
    for tests."""
    out: Path = Path("runs/base")
    """Run folder: weights, config, pictures, metrics."""
    data: Annotated[DataSettings, Flat] = DataSettings()
    run: Annotated[RunSettings, Flat] = RunSettings()
    vae: VAESizes = VAESizes()
    text: TextSizes = TextSizes()
    unet: UNetSizes = UNetSizes()
    vae_fit: FitSettings = FitSettings()
    fit: Annotated[FitSettings, Flat] = FitSettings()
    min_count: int = 1
    """How often a word must be in the training captions to be known; rarer ones are all one unknown word."""
    kl_weight: float = 1e-4
    """Weight of the KL term beside the reconstruction, both as means over elements."""
    caption_drop: float = 0.1
    """Share of captions replaced by the empty one, for classifier-free guidance."""
    t_density: Density = "logit-normal"
    """Density of t in the loss: uniform, as in DDPM, or mostly the middle, where shapes are decided."""

    def __post_init__(self) -> None:
        within(self, 0, 1, "caption_drop")
        within(self, 0, math.inf, "kl_weight")
        within(self, 1, MOST, "min_count")
        factor = downsampling(self.vae, self.unet)
        if self.data.resolution % factor:
            raise ValueError(f"resolution {self.data.resolution}: must be a multiple of {factor}")


@dataclass(frozen=True)
class ControlSettings:
    """Attach a ControlNet to a trained base, which stays frozen, and train it."""

    base: Path = Path("runs/base")
    """Run folder of the base; its dataset is used here too."""
    preset: Preset = "auto"
    """Where the defaults of all other settings come from; auto is the preset of the base."""
    out: Path = Path("runs/control")
    """Run folder: weights, config, pictures, metrics."""
    run: Annotated[RunSettings, Flat] = RunSettings()
    condition: Literal["canny", "silhouette"] = "canny"
    """How hints are made from images, unless they come with them."""
    canny_low: float = Condition.low
    canny_high: float = Condition.high
    """Thresholds of Canny: an edge starts where the gradient is above the second, and goes on above the
    first."""
    hint_widths: tuple[int, ...] = (16, 32, 96)
    """Channels of the hint encoder, one per resolution; as many as the VAE has."""
    fit: Annotated[FitSettings, Flat] = FitSettings()
    caption_drop: float = 0.5
    """Share of captions replaced by the empty one, so that hints alone are understood [CN, 3.3]."""
    t_density: Density = "logit-normal"
    """Density of t in the loss: uniform, as in DDPM, or mostly the middle, where shapes are decided."""

    def __post_init__(self) -> None:
        within(self, 0, 1, "caption_drop")
        within(self, 0, self.canny_high, "canny_low")
        within(self, 0, 10_000, "canny_high")
        ControlNetConfig(hint_widths=self.hint_widths)
