"""The claims, in order."""

from tinyldm.claims import (
    e01_quality,
    e02_sudden,
    e03_ablation,
    e04_price,
    e05_dropping,
    e06_cfg_weights,
    e07_composition,
    e08_transfer,
    e09_overhead,
    e10_small_data,
    e11_without_prompts,
    e12_strength,
    e13_batches,
    e14_latent,
    e15_guidance,
    e16_samplers,
    e17_unit_variance,
    e18_compositional,
)

MODULES = (
    e01_quality,
    e02_sudden,
    e03_ablation,
    e04_price,
    e05_dropping,
    e06_cfg_weights,
    e07_composition,
    e08_transfer,
    e09_overhead,
    e10_small_data,
    e11_without_prompts,
    e12_strength,
    e13_batches,
    e14_latent,
    e15_guidance,
    e16_samplers,
    e17_unit_variance,
    e18_compositional,
)
CLAIMS = [module.CLAIM for module in MODULES]
