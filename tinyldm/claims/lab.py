"""What the claims share: a dataset, models that are trained once and kept, and how their samples are measured.

A model is told by a frozen dataclass, an arm; the folder that keeps it is named by the hash of everything in it, of the
settings, and of LAB_VERSION. So an interrupted report goes on where it stopped, and claims share arms.
"""

import copy
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from tinyldm import files
from tinyldm.claims.record import circumstances
from tinyldm.claims.settings import BaseArm, ControlArm, Settings
from tinyldm.classifier import Judge, load_judge
from tinyldm.conditions import canny
from tinyldm.config import RunConfig
from tinyldm.controlnet import ControlNet
from tinyldm.data import load
from tinyldm.dataset import Captions, Columns, Dataset, to_float
from tinyldm.diffusion import Schedule
from tinyldm.ldm import Control, LatentDiffusion, bind_hint
from tinyldm.metrics import edge_f1, partners
from tinyldm.runs import encode_all, hints_of, sample_images
from tinyldm.stages import BaseStage, ControlStage, VAEStage
from tinyldm.text import TextEncoder, Tokenizer
from tinyldm.training import fit, pick_device, pick_precision
from tinyldm.unet import UNet
from tinyldm.vae import VAE

LAB_VERSION = 1  # raise it when a change of the code changes what an arm becomes
BATCH = 100


def silhouette(x: Tensor) -> Tensor:
    """Images (n, k, H, W) in [-1, 1] on black -> 1 where something is, (n, 1, H, W): a second condition to compose with."""
    return (x.mean(1, keepdim=True) > -0.8).float()


HINTS = {"canny": canny, "silhouette": silhouette}


@dataclass
class Sampled:
    """Generated images and what was seen in them, image by image."""

    x: Tensor  # (n, k, H, W) in [-1, 1]
    features: Tensor  # (n, d), the judge's
    seen: dict[str, Tensor]  # label -> (n,)
    ef0: Tensor | None = None  # (n,) edge F1 against the hint
    ch: Tensor | None = None  # (n,) the same against another image's hint of the class


@dataclass(eq=False)
class Lab:
    """Trains arms, or finds them in `folder`; everything is a function of the settings and the arm."""

    folder: Path
    settings: Settings = Settings()
    device_name: str = "auto"
    trained: dict[str, dict] = field(default_factory=dict)  # folder -> circumstances of its training, as far as used
    aside: list[float] = field(default_factory=list)  # seconds in which this process trained, or waited for another

    @cached_property
    def device(self) -> torch.device:
        return pick_device(self.device_name)

    @lru_cache  # noqa: B019  one lab lives as long as the process
    def data(self, split: str) -> Dataset:
        return load(self.settings.dataset, split, limit=self.settings.limit)

    @cached_property
    def test(self) -> Dataset:
        """The n test images that every measurement takes its hints and captions from."""
        data = self.data("test")
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        return data.subset(order[: self.settings.n])

    @cached_property
    def hints(self) -> Tensor:
        """Of the test images (n, 1, H, W)."""
        return canny(to_float(self.test.images))

    @cached_property
    def strangers(self) -> Tensor:
        """For each test image another one of its class (n,): whose hint stands for chance."""
        label = self.test.labels["class"]
        return partners(label[:, None] == label[None, :], seed=0)

    @cached_property
    def judge(self) -> Judge:
        return load_judge(self.settings.dataset)

    @cached_property
    def reference(self) -> Tensor:
        """The judge's features of the whole test split (m, d)."""
        return self.judge(to_float(self.data("test").images))[0]

    def key(self, *what: object) -> str:
        """Hash of everything that determines a trained arm."""
        text = json.dumps([LAB_VERSION, asdict(self.settings), *map(self.described, what)], default=str, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def described(self, what: object) -> object:
        """An arm as a dictionary, with the settings' fit where it names none; anything else as it is."""
        if isinstance(what, BaseArm):
            return asdict(what) | {
                "fit": asdict(what.fit or self.settings.base_fit),
                "start": self.described(what.start),
            }
        if isinstance(what, ControlArm):
            fit = asdict(what.fit or self.settings.control_fit)
            return asdict(what) | {"fit": fit, "base": self.described(what.base)}
        return what

    def kept(self, name: str, network: nn.Module, train: Callable[[Path], None], *what: object) -> nn.Module:
        """The network with the weights that its folder holds; trained into it first, if it holds none."""
        folder = self.folder / f"{name}-{self.key(*what)}"
        path = folder / "weights.safetensors"
        start = time.perf_counter()
        with files.locked(folder / "lock"):  # another process may be training it
            if not path.exists():
                files.write_json(folder / "arm.json", [self.described(w) for w in what])
                train(folder)
                files.write_json(folder / "trained.json", circumstances(time.perf_counter() - start))
                files.write_tensors(path, network.state_dict())
                for checkpoint in folder.glob("*.checkpoint"):
                    checkpoint.unlink()
        self.aside.append(time.perf_counter() - start)
        network.load_state_dict(files.read_tensors(path, f"delete {folder}"))
        self.trained[folder.name] = files.read_json(folder / "trained.json", f"delete {folder}")
        network.kept_as = folder.name  # `sample` keeps what it gives under this name
        return network.requires_grad_(False).to(self.device, memory_format=torch.channels_last)

    @lru_cache  # noqa: B019
    def on(self, dataset: str) -> "Lab":
        """The same laboratory on another dataset."""
        return Lab(self.folder, replace(self.settings, dataset=dataset), self.device_name, self.trained, self.aside)

    def run(self, seed: int) -> RunConfig:
        return RunConfig(device=self.device_name, seed=seed)

    @cached_property
    def vae(self) -> VAE:
        """One autoencoder for every arm, with its scale."""
        torch.manual_seed(0)
        images = self.data("train").images
        vae = VAE(replace(self.settings.vae, image_channels=images.shape[1]))

        def train(folder: Path) -> None:
            fit(VAEStage(vae, 3e-5), Columns(images), self.settings.vae_fit, self.run(0), folder, "vae")
            vae.set_scale(encode_all(vae, images, self.device))

        return self.kept("vae", vae, train)

    @lru_cache  # noqa: B019
    def latents(self, inverted: bool = False) -> Tensor:
        """z (n, c, h, w) of the training images."""
        images = self.data("train").images
        return encode_all(self.vae, 255 - images if inverted else images, self.device)

    @lru_cache  # noqa: B019
    def train_hints(self, condition: str = "canny") -> Tensor:
        return hints_of(HINTS[condition], self.data("train").images)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        captions = self.data("train").captions.choices
        return Tokenizer.from_captions((c for choices in captions for c in choices), self.settings.text.length)

    @cached_property
    def captions(self) -> list[str]:
        """Every caption that a training or its validation may meet, in alphabetical order."""
        everyone = {caption for choices in self.data("train").captions.choices for caption in choices}
        return sorted(everyone | {*self.validation[2]})

    def new_base(self, seed: int, unscaled: bool = False) -> LatentDiffusion:
        """An untrained base around the shared autoencoder, or around a copy of it that does not rescale."""
        vae = copy.deepcopy(self.vae) if unscaled else self.vae
        if unscaled:
            vae.scale.fill_(1.0)
        torch.manual_seed(seed)
        s = self.settings
        text = TextEncoder(replace(s.text, vocabulary=len(self.tokenizer.vocabulary)))
        return LatentDiffusion(vae, self.tokenizer, text, UNet(s.unet), Schedule(), 32)

    def base(self, arm: BaseArm) -> LatentDiffusion:
        """The trained base of an arm."""
        ldm = self.new_base(arm.seed, arm.unscaled)
        if arm.start:
            ldm.load_state_dict(self.base(arm.start).state_dict())
        ldm.requires_grad_(True).vae.requires_grad_(False)
        stage = BaseStage(ldm, arm.caption_drop, arm.timesteps)

        def train(folder: Path) -> None:
            z = self.latents(arm.inverted) / (self.vae.scale.cpu() if arm.unscaled else 1)
            columns = Columns(z, self.data("train").captions)
            fit(stage, columns, arm.fit or self.settings.base_fit, self.run(arm.seed), folder, "base")

        return self.kept("base", ldm, train, arm)

    def new_control(self, ldm: LatentDiffusion, seed: int) -> ControlNet:
        """An untrained ControlNet for this base."""
        torch.manual_seed(seed + 1)
        return ControlNet(ldm.unet, 1, self.settings.hint_widths)

    def control(
        self,
        arm: ControlArm,
        edit: Callable[[ControlNet], object] = lambda controlnet: None,
        watch: Callable[[Path, ControlNet, int], None] = lambda folder, controlnet, step: None,
    ) -> ControlNet:
        """The trained ControlNet of an arm; `edit` changes it before training, and the arm's `edit` names that change.

        `watch(folder, controlnet, step)` is called every `preview_every` steps, and may keep what it sees in the folder.
        """
        ldm = self.base(arm.base)
        controlnet = self.new_control(ldm, arm.seed)
        edit(controlnet)
        return self.fitted(controlnet, ldm, controlnet, arm, watch)

    def fitted(
        self,
        network: nn.Module,
        ldm: LatentDiffusion,
        controlnet: nn.Module,
        arm: ControlArm,
        watch: Callable[[Path, nn.Module, int], None] = lambda folder, controlnet, step: None,
    ) -> nn.Module:
        """`network`, the part of ldm and controlnet that is not frozen, trained on the loss of a ControlNet."""
        captions = self.data("train").captions.choices
        first = arm.images or len(captions)

        def train(folder: Path) -> None:
            stage = ControlStage(ldm, controlnet, self.captions, arm.caption_drop, arm.timesteps)
            z, hints = self.latents(arm.base.inverted)[:first], self.train_hints(arm.condition)[:first]
            columns, settings = Columns(z, hints, Captions(captions[:first])), arm.fit or self.settings.control_fit
            seen = partial(watch, folder, controlnet)
            fit(stage, columns, settings, self.run(arm.seed), folder, "control", self.validation, seen)

        return self.kept("control", network, train, arm)

    @cached_property
    def validation(self) -> tuple[Tensor, Tensor, list[str]]:
        """The panel of validation losses: latents, hints and captions of validation images."""
        data = self.data("validation").subset(torch.arange(min(256, len(self.data("validation")))))
        hints = hints_of(canny, data.images)
        return encode_all(self.vae, data.images, self.device), hints, data.captions.full()

    def folder_of(self, arm: BaseArm | ControlArm) -> Path:
        """Where `kept` keeps it."""
        return self.folder / f"{'base' if isinstance(arm, BaseArm) else 'control'}-{self.key(arm)}"

    def validation_loss(self, arm: ControlArm) -> float:
        """Of the trained arm, on the panel, with the same noise for every arm."""
        lines = [json.loads(line) for line in (self.folder_of(arm) / "metrics.jsonl").read_text().splitlines()]
        return [line["validation_loss"] for line in lines if "validation_loss" in line][-1]

    def sample(
        self,
        ldm: LatentDiffusion,
        prompts: Sequence[str],
        controls: Callable[[slice], list[Control]] | None = None,
        keep: Sequence[object] | None = None,
        seed: int = 0,
        **settings,
    ) -> Tensor:
        """One image per prompt, x (n, k, H, W) in [-1, 1] on the CPU; `controls` are made for a part of the images.

        What a kept base gives is kept too, under the name of the base, the prompts and the settings; with controls only if
        `keep` tells which.
        """
        if controls is None:
            controls, keep = (lambda part: []), ()
        settings = {"guidance": self.settings.guidance, "steps": self.settings.steps} | settings
        settings["steps"] = min(settings["steps"], self.settings.most_steps)
        base, dtype = getattr(ldm, "kept_as", None), pick_precision("auto", self.device)
        draw = partial(sample_images, ldm, prompts, dtype, controls, seed, **settings)
        if base is None or keep is None:
            return draw()
        path = self.folder / f"samples-{self.key(base, list(prompts), settings, seed, *keep)}.safetensors"
        if not path.exists():
            files.write_tensors(path, {"x": draw()})
        return files.read_tensors(path, f"delete {path}")["x"]

    def remember(self, name: str, value: int) -> int:
        """The value that the first call with this name and these settings had: a measured time must not change an arm."""
        path = self.folder / f"{name}-{self.key(name)}.json"
        if not path.exists():
            files.write_json(path, value)
        return files.read_json(path, f"delete {path}")

    def longest(self, name: str, seconds: float) -> float:
        """The longest time that something took with these settings: the first, when its samples were not there yet."""
        path = self.folder / f"{name}-{self.key(name)}.json"
        known = files.read_json(path, f"delete {path}") if path.exists() else 0.0
        files.write_json(path, max(known, round(seconds, 1)))
        return max(known, round(seconds, 1))

    def measured(self, x: Tensor, hints: Tensor | None = None) -> Sampled:
        """What the judge sees in images (n, k, H, W) and, with hints (n, 1, H, W), how their edges agree."""
        features, seen = self.judge(x)
        if hints is None:
            return Sampled(x, features, seen)
        edges = canny(x)
        strangers = self.hints[self.strangers[: len(x)]]
        return Sampled(x, features, seen, edge_f1(edges, hints), edge_f1(edges, strangers))

    def controlled(
        self, ldm: LatentDiffusion, controlnet: ControlNet, prompts: Sequence[str], weight: float = 1.0, **settings
    ) -> Sampled:
        """Samples with the hints of the first test images, as many as there are prompts, measured."""
        hints = self.hints[: len(prompts)]
        on_device, name = hints.to(self.device), getattr(controlnet, "kept_as", None)
        keep = None if name is None else (name, weight)
        x = self.sample(ldm, prompts, lambda part: [bind_hint(controlnet, on_device[part], weight)], keep, **settings)
        return self.measured(x, hints)

    @torch.no_grad()
    def round_trip(self, x: Tensor) -> Tensor:
        """Edge F1 (n,) of the test images x (n, k, H, W), or a version of them, after the autoencoder, against their hints."""
        x_hat = [self.vae.decode(self.vae.encode(part.to(self.device))).cpu() for part in x.split(BATCH)]
        return edge_f1(canny(torch.cat(x_hat)), self.hints)

    @cached_property
    def ce(self) -> Tensor:
        """Edge F1 (n,) of the test images after a round trip through the autoencoder: the ceiling."""
        return self.round_trip(to_float(self.test.images))
