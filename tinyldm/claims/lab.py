"""What the claims share: data, a panel, models that are trained once and kept, and their samples.

A model is described by an arm and a seed. Its key holds them, the sizes and the fit that they come to,
and the name of what it builds on: so an interrupted report resumes, claims share arms, and what only
changes a measurement retrains nothing.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tinyldm.claims.arms import EDITS, ConcatUNet, ScaledUNet, just_hint
from tinyldm.claims.hints import HINTS, STYLES
from tinyldm.claims.settings import BaseArm, ControlArm, Settings
from tinyldm.claims.store import Key, Store, digest, name_of
from tinyldm.claims.sweep import Sweep
from tinyldm.controlnet import ControlNet, ControlNetConfig
from tinyldm.data import load
from tinyldm.data.conditions import canny
from tinyldm.data.dataset import SPLITS, Columns, Tokens, drop_captions, to_float
from tinyldm.evaluate.judge import load_judge
from tinyldm.evaluate.panel import Panel, reconstruct, sample_images
from tinyldm.ldm import Control, LatentDiffusion
from tinyldm.support import files
from tinyldm.text import Tokenizer
from tinyldm.training.caches import encode_all, hints_of
from tinyldm.training.checkpoint import METRICS, Checkpoints
from tinyldm.training.fit import fit
from tinyldm.training.machine import Machine
from tinyldm.training.networks import base_checksum, load_base
from tinyldm.training.settings import FitSettings
from tinyldm.vae import VAE, vae_loss

LAB_VERSION = 4  # raise it when a change of the code changes what an arm becomes
KL_WEIGHT = 3e-5
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


def distance(a: nn.Module, b: nn.Module) -> float:
    """|b - a| / |a| over all weights."""
    x, y = (torch.cat([p.detach().cpu().flatten() for p in m.parameters()]) for m in (a, b))
    return ((y - x).norm() / x.norm()).item()


def noise_loss(model: Model, arm: Arm, z_0: Tensor, *batch: Any) -> Tensor:
    """The loss of train_base.py and train_control.py; a batch ends in a hint per ControlNet, and tokens."""
    *hints, tokens = batch
    controls = [Control(net, hint) for net, hint in zip(model.nets, hints, strict=True)]
    return model.ldm.loss(z_0, drop_captions(tokens, arm.caption_drop), controls, arm.density)


class Lab:
    """Trains arms, or loads them from the store; everything is a function of settings, arm and seed.

    With `ground`, the run folder of a base, that one is every seed's base, and seeds are of what is trained
    on it. Without, each seed has its own.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        machine: Machine,
        seeds: list[int],
        ground: Path | None = None,
    ):
        self.store, self.settings, self.machine, self.seeds = store, settings, machine, seeds
        self.bases: dict[str, Model] = {}
        self.ground, s = ground, settings
        self.data = {split: load(s.dataset, split, s.resolution, None, s.limit) for split in SPLITS}
        judge = load_judge(s.dataset)
        judge.to(machine.device)
        self.panel = Panel(self.data["test"], judge, canny, s.n)
        self.wide = Panel(self.data["test"], judge, canny, s.wide, repeated=True)
        captions = self.data["train"].captions.all()
        self.tokenizer = Tokenizer.from_captions(captions, s.text.length)
        self.data_key: Key = {
            "version": LAB_VERSION,
            "dataset": s.dataset,
            "resolution": s.resolution,
            "limit": s.limit,
        }
        self.vae_key: Key = {"kind": "vae", **self.data_key, "vae": s.vae, "fit": s.vae_fit}
        if ground:
            self.tokenizer = load_base(ground).tokenizer
            self.vae_key = {"kind": "vae", **self.data_key, "base": base_checksum(ground)}

    # ------------------------------------------------------------ what training needs

    def latents(self, style: str = "") -> Tensor:
        """z (n, c, h, w) of the training images in a style."""
        images = STYLES[style](self.data["train"].images)
        key = {"kind": "latents", "vae": self.vae_key, "style": style}
        return self.store.keep(key, lambda: encode_all(self.vae(), images))

    def hints(self, condition: str = "canny") -> Tensor:
        """Of the training images (n, 1, H, W)."""
        images, make = self.data["train"].images, HINTS[condition]
        key = {"kind": "hints", "condition": condition, **self.data_key}
        return self.store.keep(key, lambda: hints_of(make, images))

    def chosen(self, arm: Arm) -> Tensor:
        """The training images (m,) of an arm, in an order that is drawn at random."""
        data = self.data["train"]
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        first, second = (values[order] for values in list(data.labels.values())[:2])
        if isinstance(arm, BaseArm):
            out = [(first == a) & (second == b) for a, b in arm.left_out]
            return order[~torch.stack(out).any(0)] if out else order
        kept = order[first % 2 == arm.half % 2] if arm.half else order
        return kept[: arm.images or None]

    def tokens(self, chosen: Tensor) -> Tokens:
        """Of the captions of these training images (m,)."""
        return Tokens.of(self.data["train"].subset(chosen).captions, self.tokenizer.encode)

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
        if self.ground and arm == BaseArm():
            return {"kind": "ground", "base": base_checksum(self.ground), **self.data_key}
        parts = {"vae": self.vae_key, "text": s.text, "unet": s.unet, "start": start}
        return self.key_of("base", arm, seed, **parts)

    # ------------------------------------------------------------ models

    def vae(self) -> VAE:
        """The one autoencoder of every arm, with its scale."""
        if self.ground:
            vae = load_base(self.ground).vae
            self.machine.place(vae)
            return vae
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
        return LatentDiffusion.build(vae, self.tokenizer, s.text, s.unet, s.resolution)

    def base(self, arm: BaseArm, seed: int) -> Model:
        """The trained base of an arm: a copy, for the caller to change."""
        name = name_of(self.base_key(arm, seed))
        if name not in self.bases:
            self.bases[name] = self.made_base(arm, seed)
        return deepcopy(self.bases[name])

    def made_base(self, arm: BaseArm, seed: int) -> Model:
        """Trained, or loaded from the store."""
        key = self.base_key(arm, seed)
        if self.ground and arm == BaseArm():
            ldm = load_base(self.ground)
            self.machine.place(ldm)
            return Model(ldm, key=(name_of(key),))
        model = Model(self.base(arm.start, seed).ldm if arm.start else self.new_base(seed))
        scale = model.ldm.vae.scale.cpu().clone() if arm.unscaled else 1.0
        model.ldm.vae.scale /= scale
        if arm.scaled_input:
            model.ldm.unet = ScaledUNet(model.ldm.unet, model.ldm.schedule, 1 / float(scale))

        def train(folder: Path) -> None:
            self.fit_base(model, arm, seed, self.latents(arm.style) / scale, folder)

        return model._replace(key=(self.trained(key, model.ldm, train),))

    def fit_base(self, model: Model, arm: BaseArm, seed: int, z_0: Tensor, folder: Path) -> None:
        """Train text encoder and U-Net on these latents (n, c, h, w) of the training images."""
        chosen = self.chosen(arm)
        fit(
            partial(noise_loss, model, arm),
            [network.requires_grad_(True) for network in (model.ldm.text, model.ldm.unet)],
            Columns(z_0[chosen], self.tokens(chosen)),
            self.fit_of(arm),
            checkpoints=Checkpoints(folder),
            name="base",
            seed=seed,
            machine=self.machine,
        )

    def new_control(self, ldm: LatentDiffusion, edit: str, seed: int) -> tuple[Model, nn.Module]:
        """An untrained model that sees hints, and the part of it that is to be trained."""
        torch.manual_seed(seed + 1)
        if edit == "fine-tuned":
            unet = ConcatUNet(ldm.unet, ldm.vae.config.f)
            parts = ldm.vae, ldm.tokenizer, ldm.text, unet, ldm.schedule, ldm.resolution
            return Model(LatentDiffusion(*parts), (just_hint,)), unet
        controlnet = ControlNet(ldm.unet, ControlNetConfig(hint_widths=self.settings.hint_widths))
        EDITS[edit](controlnet)
        return Model(ldm, (controlnet,)), controlnet

    def control_key(self, arm: ControlArm, seed: int) -> Key:
        base = self.base_key(arm.base, seed)
        return self.key_of("control", arm, seed, base=base, hint_widths=self.settings.hint_widths)

    def control(self, arm: ControlArm, seed: int, watch: Watch | None = None) -> Model:
        """The trained ControlNet of an arm, on its base.

        `watch` is called every `preview_every` steps of the training; a watched arm must have one.
        """
        base, key = self.base(arm.base, seed), self.control_key(arm, seed)
        if arm.watched and watch is None and not self.store.has(key):
            raise ValueError("a watched arm is trained by watch.progress_of")
        model, network = self.new_control(base.ldm, arm.edit, seed)

        def train(folder: Path) -> None:
            chosen = self.chosen(arm)
            z_0, hints = self.latents(arm.base.style), self.hints(arm.condition)
            fit(
                partial(noise_loss, model, arm),
                [network],
                Columns(z_0[chosen], hints[chosen], self.tokens(chosen)),
                self.fit_of(arm),
                checkpoints=Checkpoints(folder),
                name=f"control {arm.edit}",
                seed=seed,
                machine=self.machine,
                validation=() if arm.watched else self.validation(arm),
                preview=partial(watch, folder, model) if watch else lambda step: None,
            )

        return model._replace(key=(*base.key, self.trained(key, network, train)))

    def untrained(self, arm: ControlArm, seed: int) -> Model:
        """The model of an arm as it is before its training."""
        model, network = self.new_control(self.base(arm.base, seed).ldm, arm.edit, seed)
        self.machine.place(network.requires_grad_(False))
        return model

    def models(self, arm: Arm) -> list[Model]:
        """The trained model of each seed."""
        if isinstance(arm, BaseArm):
            return [self.base(arm, seed) for seed in self.seeds]
        return [self.control(arm, seed) for seed in self.seeds]

    def validation(self, arm: ControlArm) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, hints and tokens of 256 images that no arm is trained on."""
        data = self.data["validation"]
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:256]
        data = data.subset(order)
        images, tokens = data.images, self.tokenizer.encode(data.captions.full())
        z_0 = encode_all(self.vae(), STYLES[arm.base.style](images))
        return z_0, HINTS[arm.condition](images), tokens

    def logged(self, arm: ControlArm, seed: int) -> list[tuple[int, float]]:
        """(step, validation loss) during the arm's training, with the same noise every time."""
        if not self.store.has(key := self.control_key(arm, seed)):
            self.control(arm, seed)
        lines = files.read_lines(self.store.folder / name_of(key) / METRICS)
        return [(e["step"], e["validation_loss"]) for e in lines if "validation_loss" in e]

    def last_loss(self, arm: ControlArm, seed: int) -> float:
        """The validation loss of the trained arm."""
        return self.logged(arm, seed)[-1][1]

    def losses(self, arm: ControlArm, seed: int) -> list[tuple[int, float]]:
        """As `logged`, from before the first step on."""
        logged, arm = self.logged(arm, seed), replace(arm, edit="zero")

        @torch.no_grad()
        def first() -> Tensor:
            model = self.untrained(arm, seed)
            torch.manual_seed(0)
            return noise_loss(model, arm, *self.machine.load(self.validation(arm))).cpu()

        key = {"kind": "first-loss", "of": self.control_key(arm, seed)}
        return [(0, self.store.keep(key, first).item()), *logged]

    def last_quarter(self, arm: ControlArm, seed: int) -> float:
        """Share of its loss's whole fall that the arm makes in the last quarter of its training."""
        losses = self.losses(arm, seed)
        last, first = losses[-1], losses[0][1]
        late = min(losses, key=lambda each: abs(each[0] - 0.75 * last[0]))
        return (late[1] - last[1]) / max(1e-9, first - last[1])

    def moved(self, arm: ControlArm, seed: int) -> float:
        """How far training moved the copy: |after - before| / |before| of its encoder's weights."""

        def far() -> Tensor:
            before = self.new_control(self.base(arm.base, seed).ldm, arm.edit, seed)[1]
            after = self.control(arm, seed).nets[0]
            assert isinstance(before, ControlNet) and isinstance(after, ControlNet)
            return torch.tensor(distance(before.encoder, after.encoder))

        return self.store.keep({"kind": "moved", "of": self.control_key(arm, seed)}, far).item()

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
        self,
        what: Arm | list[Model],
        prompts: Sequence[str] | None = None,
        panel: Panel | None = None,
        hints: Sequence[Tensor] | None = None,
        **settings: Any,
    ) -> Sweep:
        """Samples of the models of an arm, one per seed, measured; `settings` are those of `sample`.

        By default of `self.panel`, with its true captions; FD can decide on more images only.
        """
        models = what if isinstance(what, list) else self.models(what)
        panel = panel or self.panel
        prompts, samples = prompts or panel.captions, []
        for model in models:
            shown = hints or [panel.hints] * len(model.nets)
            samples.append(panel.measured(self.sample(model, prompts, shown, **settings)))
        return Sweep(samples, panel, self.ceiling(panel))

    def ceiling(self, panel: Panel) -> Tensor:
        """Edge F1 (n,) of a panel's images after a round trip through the autoencoder."""
        x = self.round_trip(panel.data.images)
        return panel.edge_scores(x)[0]

    def round_trip(self, images: Tensor) -> Tensor:
        """Images uint8 (n, k, H, W) -> x (n, k, H, W) after the autoencoder."""
        key = {"kind": "round-trip", "vae": self.vae_key, "images": digest(images)}
        return self.store.keep(key, lambda: reconstruct(self.vae(), images))
