"""Train a latent diffusion model in three steps [LDM, Rombach et al. 2022, arXiv 2112.10752].

1. The autoencoder:  min |x - D(z)| + 10 (x - D(z))^2 + w KL(q(z | x) || N(0, I)), z ~ q(z | x)  [LDM, 3.1]
2. Its latents:      z_0 = s E(x), with s such that they have unit variance; frozen           [LDM, D.1]
3. Diffusion:        min || eps - eps_theta(alpha_t z_0 + sigma_t eps, t, tau(y)) ||^2        [LDM, eq. 3]
"""

from functools import partial

import tinyldm  # noqa: F401, before torch: it sets how threads wait

# isort: split
from torch import Tensor

from tinyldm.data.dataset import Columns, Tokens, drop_captions, to_float
from tinyldm.support.command_line import parse_with_preset, run_command
from tinyldm.training.caches import encode_all
from tinyldm.training.fit import fit
from tinyldm.training.machine import process
from tinyldm.training.networks import build_base, save_base
from tinyldm.training.presets import BASE_PRESETS
from tinyldm.training.previews import watch_samples, watch_vae
from tinyldm.training.run_folder import check_out, load_data, open_run
from tinyldm.training.settings import BaseSettings
from tinyldm.vae import vae_loss


def main(settings: BaseSettings) -> None:
    """Train the model into the run folder `settings.out`."""
    run = settings.run
    memory = run.gradient_accumulation_steps, run.gradient_checkpointing
    with process(run.device, run.precision, run.threads, *memory) as machine:
        check_out(settings, machine)
        data, validation = load_data(settings.data, "train", "validation")
        ldm = build_base(settings, data)
        machine.place(ldm)
        with open_run(settings, machine) as checkpoints:
            out = checkpoints.folder
            minimise = partial(fit, checkpoints=checkpoints, seed=run.seed, machine=machine)

            # 1. The autoencoder
            def reconstruction_loss(images: Tensor) -> Tensor:
                return vae_loss(ldm.vae, to_float(images), settings.kl_weight)

            watch = watch_vae(ldm, validation, out)
            images = Columns(data.images)
            minimise(reconstruction_loss, [ldm.vae], images, settings.vae_fit, name="vae", **watch)

            # 2. Its latents, of unit variance; from here on it is frozen
            ldm.vae.requires_grad_(False)
            latents = ldm.vae.set_scale(encode_all(ldm.vae, data.images))

            # 3. Diffusion on them; for guidance, some captions are dropped [CFG, arXiv 2207.12598]
            def noise_loss(z_0: Tensor, tokens: Tensor) -> Tensor:
                tokens = drop_captions(tokens, settings.caption_drop)
                return ldm.loss(z_0, tokens, density=settings.t_density)

            watch = watch_samples(ldm, validation, out, "base")
            columns = Columns(latents, Tokens.of(data.captions, ldm.tokenizer.encode))
            minimise(noise_loss, [ldm.text, ldm.unet], columns, settings.fit, name="base", **watch)

            if machine.team.rank == 0:
                save_base(out, ldm, latents)
    print(f"{settings.out}: done. Next:\n    python train_control.py --base {settings.out}")


if __name__ == "__main__":
    run_command(lambda: main(parse_with_preset(BASE_PRESETS)))
