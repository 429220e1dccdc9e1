"""Stable Diffusion 1.5 as a LatentDiffusion of ours: CLIP in place of our text encoder; needs transformers."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tinyldm.diffusers_io.networks import import_unet, import_vae
from tinyldm.diffusion import Schedule
from tinyldm.ldm import LatentDiffusion


class Clip(nn.Module):
    """transformers' CLIP as a tokenizer and a text encoder of ours: captions -> tokens -> context."""

    def __init__(self, folder: Path):
        from transformers import CLIPTextModel, CLIPTokenizer

        super().__init__()
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.text = CLIPTextModel.from_pretrained(folder / "text_encoder")

    def encode(self, captions: list[str]) -> Tensor:
        """Captions -> tokens (b, 77)."""
        how = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return self.tokenizer(captions, **how).input_ids

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (b, 77) -> context (b, 77, 768)."""
        return self.text(tokens).last_hidden_state


def load_stable_diffusion(folder: Path, resolution: int = 512) -> LatentDiffusion:
    """SD-1.5, or a fine-tune of it, in diffusers' layout on disk, frozen, for `generate`. Raises UserError."""
    clip: Any = Clip(folder)
    vae, unet = import_vae(folder / "vae"), import_unet(folder / "unet")
    ldm = LatentDiffusion(vae, clip, clip, unet, Schedule(), resolution)
    return ldm.requires_grad_(False)
