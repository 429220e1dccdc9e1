"""What the claims share: data, a panel, models that are trained once and kept, and their samples.

A model is described by an arm and a seed. Its key holds them, the sizes and the fit that they come to,
and the name of what it builds on: so an interrupted report resumes, claims share arms, and what only
changes a measurement retrains nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tinyldm.claims.arms import EDITS, ConcatUNet, just_hint
from tinyldm.claims.settings import BaseArm, ControlArm, Settings
from tinyldm.claims.store import Key, Store, digest, name_of
from tinyldm.claims.sweep import Sweep
from tinyldm.controlnet import ControlNet, ControlNetConfig
from tinyldm.data import load
from tinyldm.data.conditions import CONDITIONS, canny
from tinyldm.data.dataset import SPLITS, Captions, Columns, Tokens, drop_captions, to_float
from tinyldm.evaluate.judge import load_judge
from tinyldm.evaluate.panel import Panel, reconstruct, sample_images
from tinyldm.ldm import Control, LatentDiffusion
from tinyldm.text import Tokenizer
from tinyldm.training.caches import encode_all, hints_of
from tinyldm.training.checkpoint import Checkpoints
from tinyldm.training.fit import fit
from tinyldm.training.machine import Machine
from tinyldm.training.settings import FitSettings
from tinyldm.vae import VAE, vae_loss

LAB_VERSION = 3  # raise it when a change of the code changes what an arm becomes
RESOLUTION = 32
KL_WEIGHT = 3e-5
LEARNING_RATES = (2e-3, 4e-3, 8e-3)  # every arm that is compared gets the best of these
ControlFn = Callable[[Tensor, Tensor, Tensor, Tensor], list[Tensor]]
Arm = BaseArm | ControlArm


class Model(NamedTuple):
    """What samples: a base, with ControlNets or what stands in for them.

    `key` names all of its weights, the last trained last; it is () while they are trained.
    """

    ldm: LatentDiffusion
    nets: tuple[ControlFn, ...] = ()
    key: tuple[str, ...] = ()

    def steered(self, how: str, change: Callable[[ControlFn], ControlFn]) -> "Model":
        """This model with changed ControlNets; `how` names the change."""
        return Model(self.ldm, tuple(map(change, self.nets)), (*self.key, how))


Watch = Callable[[Path, Model, int], None]  # of a training: its folder, the model, the step


def noise_loss(model: Model, arm: Arm, z_0: Tensor, *batch: Any) -> Tensor:
    """The loss of train_base.py and train_control.py; a batch ends in a hint per ControlNet, and tokens."""
    *hints, tokens = batch
    controls = [Control(net, hint) for net, hint in zip(model.nets, hints, strict=True)]
    return model.ldm.loss(z_0, drop_captions(tokens, arm.caption_drop), controls, arm.density)


class Lab:
    """Trains arms, or loads them from the store; everything is a function of settings, arm and seed."""

    def __init__(self, store: Store, settings: Settings, machine: Machine, seeds: list[int]):
        self.store, self.settings, self.machine, self.seeds = store, settings, machine, seeds
        s, dataset, limit = settings, settings.dataset, settings.limit
        self.data = {split: load(dataset, split, RESOLUTION, None, limit) for split in SPLITS}
        self.panel = Panel(self.data["test"], load_judge(dataset), canny, s.n)
        captions = self.data["train"].captions.all()
        self.tokenizer = Tokenizer.from_captions(captions, s.text.length)
        self.data_key: Key = {"version": LAB_VERSION, "dataset": dataset, "limit": limit}
        self.vae_key: Key = {"kind": "vae", **self.data_key, "vae": s.vae, "fit": s.vae_fit}

    # ------------------------------------------------------------ what training needs

    def latents(self, inverted: bool = False) -> Tensor:
        """z (n, c, h, w) of the training images."""
        images = self.data["train"].images
        images = 255 - images if inverted else images
        key = {"kind": "latents", "vae": self.vae_key, "inverted": inverted}
        return self.store.keep(key, lambda: encode_all(self.vae(), images))

    def hints(self, condition: str = "canny") -> Tensor:
        """Of the training images, bool (n, 1, H, W)."""
        images, make = self.data["train"].images, CONDITIONS[condition]
        key = {"kind": "hints", "condition": condition, **self.data_key}
        return self.store.keep(key, lambda: hints_of(make, images))

    def tokens(self, n: int | None = None) -> Tokens:
        """Of the captions of the first n training images, or of all."""
        captions = Captions(self.data["train"].captions.choices[:n])
        return Tokens.of(captions, self.tokenizer.encode)

    def trained(self, key: Key, network: nn.Module, train: Callable[[Path], None]) -> str:
        """Load what `train(folder)` makes of the network, freeze it, and return its name in the store."""
        self.machine.place(network)

        @torch.enable_grad()  # whoever asks, perhaps a measurement
        def weights(folder: Path) -> dict[str, Tensor]:
            train(folder)
            return network.state_dict()

        network.load_state_dict(self.store.get(key, weights))
        network.requires_grad_(False)
        return name_of(key)

    def fit_of(self, arm: Arm) -> FitSettings:
        """The arm's own fit, or the settings' for its kind."""
        s = self.settings
        return arm.fit or (s.base_fit if isinstance(arm, BaseArm) else s.control_fit)

    def key_of(self, kind: str, arm: Arm, seed: int, **parts: Any) -> Key:
        """An arm's key; `parts` are the sizes that it depends on, and what it builds on."""
        return {"kind": kind, **vars(arm), "fit": self.fit_of(arm), "seed": seed, **parts}

    def base_key(self, arm: BaseArm, seed: int) -> Key:
        s, start = self.settings, arm.start and self.base_key(arm.start, seed)
        parts = {"vae": self.vae_key, "text": s.text, "unet": s.unet, "start": start}
        return self.key_of("base", arm, seed, **parts)

    # ------------------------------------------------------------ models

    def vae(self) -> VAE:
        """The one autoencoder of every arm, with its scale."""
        torch.manual_seed(0)
        images = self.data["train"].images
        vae = VAE(replace(self.settings.vae, image_channels=images.shape[1]))

        def train(folder: Path) -> None:
            fit(
                lambda batch: vae_loss(vae, to_float(batch), KL_WEIGHT),
                [vae],
                Columns(images),
                self.settings.vae_fit,
                checkpoints=Checkpoints(folder),
                name="vae",
                seed=0,
                machine=self.machine,
            )
            vae.set_scale(encode_all(vae, images))

        self.trained(self.vae_key, vae, train)
        return vae

    def new_base(self, seed: int) -> LatentDiffusion:
        """An untrained base round the autoencoder."""
        vae, s = self.vae(), self.settings
        torch.manual_seed(seed)
        return LatentDiffusion.build(vae, self.tokenizer, s.text, s.unet, RESOLUTION)

    def base(self, arm: BaseArm, seed: int) -> Model:
        """The trained base of an arm."""
        model = Model(self.base(arm.start, seed).ldm if arm.start else self.new_base(seed))
        scale = model.ldm.vae.scale.cpu().clone() if arm.unscaled else 1.0
        model.ldm.vae.scale /= scale

        def train(folder: Path) -> None:
            self.fit_base(model, arm, seed, self.latents(arm.inverted) / scale, folder)

        return model._replace(key=(self.trained(self.base_key(arm, seed), model.ldm, train),))

    def fit_base(self, model: Model, arm: BaseArm, seed: int, z_0: Tensor, folder: Path) -> None:
        """Train text encoder and U-Net on these latents (n, c, h, w) of the training images."""
        fit(
            partial(noise_loss, model, arm),
            [network.requires_grad_(True) for network in (model.ldm.text, model.ldm.unet)],
            Columns(z_0, self.tokens()),
            self.fit_of(arm),
            checkpoints=Checkpoints(folder),
            name="base",
            seed=seed,
            machine=self.machine,
        )

    def new_control(self, ldm: LatentDiffusion, edit: str, seed: int) -> tuple[Model, nn.Module]:
        """An untrained model that sees hints, and the part of it that is to be trained."""
        torch.manual_seed(seed + 1)
        if edit == "concat":
            unet = ConcatUNet(ldm.unet.config, ldm.vae.config.f)
            parts = ldm.vae, ldm.tokenizer, ldm.text, unet, ldm.schedule, ldm.resolution
            return Model(LatentDiffusion(*parts), (just_hint,)), unet
        controlnet = ControlNet(ldm.unet, ControlNetConfig(hint_widths=self.settings.hint_widths))
        EDITS[edit](controlnet)
        return Model(ldm, (controlnet,)), controlnet

    def control(self, arm: ControlArm, seed: int, watch: Watch = lambda *_: None) -> Model:
        """The trained ControlNet of an arm, on its base.

        `watch` is called every `preview_every` steps of the training; a watched arm must have one.
        """
        base = self.base(arm.base, seed)
        model, network = self.new_control(base.ldm, arm.edit, seed)

        def train(folder: Path) -> None:
            n = arm.images or None
            z_0, hints = self.latents(arm.base.inverted), self.hints(arm.condition)
            fit(
                partial(noise_loss, model, arm),
                [network],
                Columns(z_0[:n], hints[:n], self.tokens(n)),
                self.fit_of(arm),
                checkpoints=Checkpoints(folder),
                name="control",
                seed=seed,
                machine=self.machine,
                preview=partial(watch, folder, model),
            )

        parts = {"base": base.key, "hint_widths": self.settings.hint_widths}
        key = self.key_of("control", arm, seed, **parts)
        return model._replace(key=(*base.key, self.trained(key, network, train)))

    def models(self, arm: Arm) -> list[Model]:
        """The trained model of each seed."""
        if isinstance(arm, BaseArm):
            return [self.base(arm, seed) for seed in self.seeds]
        return [self.control(arm, seed) for seed in self.seeds]

    @torch.no_grad()
    def validation_loss(self, arm: ControlArm) -> float:
        """Of the trained arm of seed 0 on 256 images, with the same noise for every arm."""
        model, data = self.control(arm, 0), self.data["validation"]
        images, tokens = data.images[:256], self.tokenizer.encode(data.captions.full()[:256])
        hints = CONDITIONS[arm.condition](images)
        batch = self.machine.load((encode_all(model.ldm.vae, images), hints, tokens))
        torch.manual_seed(0)
        return noise_loss(model, arm, *batch).item()

    def tuned(self, arm: ControlArm) -> ControlArm:
        """The arm at that of LEARNING_RATES which has the lowest validation loss."""
        arms = [replace(arm, fit=replace(self.fit_of(arm), lr=lr)) for lr in LEARNING_RATES]
        return min(arms, key=self.validation_loss)

    # ------------------------------------------------------------ samples

    def sample(
        self,
        model: Model,
        prompts: Sequence[str],
        hints: Sequence[Tensor] | None = None,
        weight: float = 1.0,
        **settings: Any,
    ) -> Tensor:
        """One image per prompt, x (n, k, H, W) in [-1, 1] on the CPU; `settings` are those of `generate`.

        Each ControlNet gets its hints (n, 1, H, W), by default those of the first test images. What a
        trained model gives is kept.
        """
        s, shown = self.settings, hints or [self.panel.hints[: len(prompts)]] * len(model.nets)
        settings = {"guidance": s.guidance, "steps": s.steps, **settings}
        settings["steps"] = min(settings["steps"], s.most_steps)
        controls = [Control(net, hint, weight) for net, hint in zip(model.nets, shown, strict=True)]
        draw = partial(sample_images, model.ldm, prompts, self.machine, controls, **settings)
        key = {"kind": "samples", "model": model.key, "prompts": prompts, "weight": weight}
        key |= {"hints": [digest(hint) for hint in shown], **settings}
        return self.store.keep(key, draw) if model.key else draw()

    def sweep(
        self, what: Arm | list[Model], prompts: Sequence[str] | None = None, **settings: Any
    ) -> Sweep:
        """Samples of the models of an arm, one per seed, measured; `settings` are those of `sample`."""
        models = what if isinstance(what, list) else self.models(what)
        samples = [self.sample(m, prompts or self.panel.captions, **settings) for m in models]
        return Sweep([self.panel.measured(x) for x in samples], self.panel, self.ceiling())

    def ceiling(self) -> Tensor:
        """Edge F1 (n,) of the test images after a round trip through the autoencoder."""
        return self.round_trip(self.panel.data.images)

    def round_trip(self, images: Tensor) -> Tensor:
        """Edge F1 (n,) of versions of the test images, after the autoencoder, against their hints."""
        key = {"kind": "round-trip", "vae": self.vae_key, "images": digest(images)}
        x = self.store.keep(key, lambda: reconstruct(self.vae(), images))
        return self.panel.edge_scores(x)[0]
