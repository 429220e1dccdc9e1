"""tinyldm: a small latent diffusion model with ControlNet, from scratch."""
