"""The panel: test images with their hints and a judge, and what is seen in samples of a model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinyldm.data.dataset import Dataset, to_float, to_uint8
from tinyldm.evaluate.judge import Judge, accuracy
from tinyldm.evaluate.metrics import different, edge_f1, partners
from tinyldm.ldm import Control, LatentDiffusion, generate, last
from tinyldm.support.progress import progress
from tinyldm.training.machine import Machine
from tinyldm.vae import VAE

BATCH, GPU_BATCH = 100, 250  # images at a time: what fits a cache, what fills a device
PromptSettings = dict[str, tuple[list[str], dict[str, Tensor]]]  # name -> prompts, labels asked for


@dataclass
class Sampled:
    """Images and what is seen in them, image by image."""

    x: Tensor  # (n, k, H, W) in [-1, 1]
    features: Tensor  # (n, d), the judge's
    seen: dict[str, Tensor]  # label -> (n,)
    ef0: Tensor  # (n,) edge F1 against the image's own hint
    ch: Tensor  # (n,) the same against the hint of a stranger, of the class but another origin: chance


class Panel:
    """n images of a test split, chosen by the seed, with what samples are measured by.

    If there are fewer, all of them, or `repeated`: samples of one hint differ by their noise.
    """

    def __init__(
        self,
        test: Dataset,
        judge: Judge,
        condition: Callable[[Tensor], Tensor],
        n: int,
        seed: int = 0,
        repeated: bool = False,
    ):
        order = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed))
        order = order.repeat(-(-n // len(test))) if repeated else order
        self.data, self.judge, self.condition = test.subset(order[:n]), judge, condition
        given = self.data.hints
        self.hints = condition(self.data.images) if given is None else given  # bool (n, 1, H, W)
        self.captions = self.data.captions.full()
        self.labels = self.data.labels
        self.origins = self.data.origins  # (n,)
        same_class, others = ~different(self.labels["class"]), different(self.origins)
        self.strangers = partners(same_class, seed, others)  # (n,)
        # features of the whole test split (m, d)
        self.reference, seen = judge(to_float(test.images))
        self.accuracy = accuracy(seen, test.labels)  # label -> the judge's, on all of it

    def __len__(self) -> int:
        return len(self.data)

    def measured(self, x: Tensor) -> Sampled:
        """What is seen in the first images' samples x (m <= n, k, H, W)."""
        features, seen = self.judge(x)
        return Sampled(x, features, seen, *self.edge_scores(x))

    def edge_scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """EF0 and CH (m,) of the first images' samples x (m <= n, k, H, W)."""
        m = len(x)
        return self.edge_f1(x, self.hints[:m]), self.edge_f1(x, self.hints[self.strangers[:m]])

    def edge_f1(self, x: Tensor, hints: Tensor) -> Tensor:
        """F1 (m,) of the hints of samples x (m, k, H, W) against other hints (m, 1, H, W)."""
        return edge_f1(self.condition(to_uint8(x)), hints)


@torch.no_grad()
def reconstruct(vae: VAE, images: Tensor) -> Tensor:
    """Images uint8 (n, k, H, W) -> x (n, k, H, W) in about [-1, 1] after a round trip, on the CPU."""
    parts, device = images.split(BATCH), vae.scale.device
    return torch.cat([vae.decode(vae.encode(to_float(p).to(device))).cpu() for p in parts])


@torch.no_grad()
def sample_images(
    ldm: LatentDiffusion,
    prompts: Sequence[str],
    machine: Machine,
    controls: Sequence[Control] = (),
    seed: int = 0,
    desc: str = "sample",
    **settings: Any,
) -> Tensor:
    """One image per prompt, and per hint of each control (n, k, H, W): x (n, k, H, W) in [-1, 1], on the CPU.

    Samples by autocast; `settings` are those of `generate`.
    """
    batch = BATCH if ldm.device.type == "cpu" else GPU_BATCH
    images, starts = [], range(0, len(prompts), batch)
    for i in progress(starts, desc=desc, unit_scale=batch, unit="image"):
        part = slice(i, i + batch)
        bound = [c._replace(hint=c.hint[part].to(ldm.device)) for c in controls]
        with machine.autocast():
            z = generate(ldm, prompts[part], controls=bound, seed=seed + i, **settings)
            z_0 = last(z).float()
        images.append(ldm.vae.decode(z_0).clamp(-1, 1).cpu())
    return torch.cat(images)


def prompt_settings(data: Dataset, seed: int) -> PromptSettings:
    """name -> prompts (n) and the labels they ask for: the four settings of [CN, 4.2], and one more.

    conflicting: the caption of an image that differs in class and in attribute. changed: of the same
    class, with another attribute, so that it asks for something that edges neither show nor forbid. Where
    images have no attribute, there is no "changed", and where they have no classes either, any other caption
    conflicts.
    """
    n, (first, *attributes) = len(data), data.labels.values()
    other_class = different(first) if len(first.unique()) > 1 else different(captions_of(data))
    other_attribute = different(attributes[0]) if attributes else other_class
    chosen = {
        "perfect": torch.arange(n),
        "conflicting": partners(other_class & other_attribute, seed),
    }
    if attributes:
        chosen["changed"] = partners(~other_class & other_attribute, seed)
    asked = {name: data.subset(indices) for name, indices in chosen.items()}
    return {
        "none": ([""] * n, {}),
        "insufficient": (["a photo"] * n, {}),
        **{name: (part.captions.full(), part.labels) for name, part in asked.items()},
    }


def captions_of(data: Dataset) -> Tensor:
    """A number for each image's caption (n,), equal for equal ones."""
    captions = data.captions.full()
    numbers = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    return torch.tensor([numbers[caption] for caption in captions])
