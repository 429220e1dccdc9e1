"""To and from the folders of diffusers."""

from tinyldm.diffusers_io.clip import load_stable_diffusion
from tinyldm.diffusers_io.networks import import_controlnet, import_unet, import_vae

__all__ = ["import_controlnet", "import_unet", "import_vae", "load_stable_diffusion"]
