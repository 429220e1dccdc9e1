"""Parity with diffusers: the same random weights and inputs give the same outputs, in both directions of the key map."""

import json
import shutil

import pytest
import torch
from conftest import randomise

diffusers = pytest.importorskip("diffusers")

from tinyldm import diffusers_io as io  # noqa: E402
from tinyldm import files  # noqa: E402
from tinyldm.cli import parse  # noqa: E402
from tinyldm.controlnet import ControlNet  # noqa: E402
from tinyldm.diffusers_names import table_of  # noqa: E402
from tinyldm.diffusion import SAMPLERS, Schedule, ddim, guided  # noqa: E402
from tinyldm.errors import UserError  # noqa: E402
from tinyldm.ldm import LatentDiffusion, bind_context, bind_hint, generate, last, load_control, save_control  # noqa: E402
from tinyldm.text import TextConfig, TextEncoder, Tokenizer  # noqa: E402
from tinyldm.unet import UNet, UNetConfig  # noqa: E402
from tinyldm.vae import VAE, VAEConfig  # noqa: E402

CLOSE = {"rtol": 1e-5, "atol": 1e-5}

CONFIGS = {
    "two levels": UNetConfig(4, (32, 64), 1, (False, True), 2, 16),
    "three levels, two blocks": UNetConfig(4, (32, 64, 64), 2, (True, True, False), 4, 24),
    "four levels": UNetConfig(4, (32, 32, 64, 64), 1, (True, False, True, False), 8, 16),
    "no attention but in the middle": UNetConfig(3, (32, 96), 2, (False, False), 1, 8),
    "the cpu preset's": UNetConfig(),
}


def their_unet(config: UNetConfig):
    settings = {k: v for k, v in io.unet_settings(config, 8).items() if not k.startswith("_")}
    return diffusers.UNet2DConditionModel(**settings).eval()


def unet_pair(config: UNetConfig):
    torch.manual_seed(0)
    ours = randomise(UNet(config), std=0.03)
    theirs = their_unet(config)
    theirs.load_state_dict(io.to_diffusers(ours, config))
    return ours, theirs


def controlnet_pair(unet: UNet, channels: int, widths: tuple[int, ...]):
    ours = randomise(ControlNet(unet, channels, widths), seed=1, std=0.03)
    settings = io.controlnet_settings(unet.config, channels, widths)
    theirs = diffusers.ControlNetModel(**{k: v for k, v in settings.items() if not k.startswith("_")}).eval()
    theirs.load_state_dict(io.to_diffusers(ours, unet.config))
    return ours, theirs


def vae_pair(config: VAEConfig):
    torch.manual_seed(0)
    ours = randomise(VAE(config), std=0.03)
    settings = {k: v for k, v in io.vae_settings(config, 1.0, 32).items() if not k.startswith("_")}
    theirs = diffusers.AutoencoderKL(**settings).eval()
    theirs.load_state_dict(io.to_diffusers(ours, config))
    return ours, theirs


def inputs(config: UNetConfig, batch: int = 3, height: int = 8, width: int = 16):
    g = torch.Generator().manual_seed(2)
    z_t = torch.randn(batch, config.channels, height, width, generator=g)
    return z_t, torch.tensor([1, 500, 1000])[:batch], torch.randn(batch, 7, config.context_width, generator=g)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_unet_equals_unet2dconditionmodel(name):
    config = CONFIGS[name]
    ours, theirs = unet_pair(config)
    z_t, t, context = inputs(config)
    eps = ours(z_t, t, context)
    assert eps.std() > 0.05
    torch.testing.assert_close(eps, theirs(z_t, t - 1, context).sample, **CLOSE)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("channels", "widths"), [(1, (8, 16, 24)), (3, (16, 32))])
@torch.no_grad()
def test_controlnet_and_controlled_unet_equal_controlnetmodel(name, channels, widths):
    config = CONFIGS[name]
    unet, their_unet = unet_pair(config)
    ours, theirs = controlnet_pair(unet, channels, widths)
    z_t, t, context = inputs(config)
    f = 2 ** (len(widths) - 1)
    hint = torch.rand(3, channels, 8 * f, 16 * f)
    residuals = ours(z_t, t, context, hint)
    down, middle = theirs(z_t, t - 1, context, hint, return_dict=False)
    for a, b in zip(residuals, [*down, middle], strict=True):
        torch.testing.assert_close(a, b, **CLOSE)
    controlled = their_unet(
        z_t, t - 1, context, down_block_additional_residuals=down, mid_block_additional_residual=middle
    ).sample
    torch.testing.assert_close(unet(z_t, t, context, residuals), controlled, **CLOSE)
    assert not torch.allclose(controlled, unet(z_t, t, context), atol=1e-2)


VAES = [VAEConfig(), VAEConfig(3, 4, (32, 64), 2), VAEConfig(1, 8, (32, 32, 64, 64), 1)]


@pytest.mark.parametrize("config", VAES, ids=str)
@torch.no_grad()
def test_vae_equals_autoencoderkl(config):
    ours, theirs = vae_pair(config)
    x = torch.rand(3, config.image_channels, 32, 48) * 2 - 1
    mean, logvar = ours.posterior(x)
    posterior = theirs.encode(x).latent_dist
    torch.testing.assert_close(mean, posterior.mean, **CLOSE)
    torch.testing.assert_close(logvar, posterior.logvar, **CLOSE)
    torch.testing.assert_close(ours.decode(mean), theirs.decode(mean).sample, **CLOSE)


# ---------------------------------------------------------------- samplers

SCHEDULE = Schedule()


def fake_eps(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Any smooth function of z and t stands for a network; gentle, so that rounding is not amplified."""
    return 0.5 * torch.sin(z) + z * t.reshape(-1, 1, 1, 1) / 4000


def their_trajectory(scheduler, z_T: torch.Tensor, steps: int, **kwargs) -> list[torch.Tensor]:
    timesteps = [t - 1 for t in SCHEDULE.timesteps(steps)[:-1]]
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == timesteps, "diffusers' trailing spacing is ours"
    zs, z = [], z_T
    for t in scheduler.timesteps:
        z = scheduler.step(fake_eps(z, torch.full((len(z),), int(t) + 1)), t, z, **kwargs).prev_sample
        zs.append(z)
    return zs


SETTINGS = {k: v for k, v in io.scheduler_settings(SCHEDULE.settings).items() if not k.startswith("_")}


@pytest.mark.parametrize("steps", [1, 2, 10, 50, 1000])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_trajectories_equal_ddimscheduler(steps, eta):
    z_T = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = their_trajectory(
        diffusers.DDIMScheduler(**SETTINGS), z_T, steps, eta=eta, generator=torch.Generator().manual_seed(1)
    )
    ours = list(ddim(SCHEDULE, fake_eps, z_T, steps, eta, torch.Generator().manual_seed(1)))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [2, 10, 50, 1000])
def test_ddpm_trajectories_equal_ddpmscheduler(steps):
    settings = {k: v for k, v in SETTINGS.items() if k != "set_alpha_to_one"}
    z_T = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler = diffusers.DDPMScheduler(**settings, variance_type="fixed_small")
    theirs = their_trajectory(scheduler, z_T, steps, generator=torch.Generator().manual_seed(1))
    ours = list(SAMPLERS["ddpm"](SCHEDULE, fake_eps, z_T, steps, generator=torch.Generator().manual_seed(1)))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [2, 10, 15, 50])
def test_dpm_solver_pp_trajectories_equal_dpmsolvermultistepscheduler(steps):
    settings = {k: v for k, v in SETTINGS.items() if k not in ("set_alpha_to_one", "clip_sample")}
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **settings, solver_order=2, algorithm_type="dpmsolver++", solver_type="midpoint", final_sigmas_type="zero"
    )
    scheduler.config.lower_order_final = True
    z_T = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ours = list(SAMPLERS["dpm++"](SCHEDULE, fake_eps, z_T, steps))
    theirs = their_trajectory(scheduler, z_T, steps)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- guidance and control together


def their_pipeline(vae, unet, controlnet, text_encoder=None, tokenizer=None):
    pipeline = diffusers.StableDiffusionControlNetPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        controlnet=controlnet,
        scheduler=diffusers.DDIMScheduler(**SETTINGS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(("guidance", "weight"), [(1.0, 1.0), (3.0, 1.0), (3.0, 0.5), (7.5, 0.0)])
@torch.no_grad()
def test_guidance_and_control_scale_equal_stablediffusioncontrolnetpipeline(guidance, weight):
    config, steps = CONFIGS["two levels"], 4
    unet, their_unet = unet_pair(config)
    controlnet, their_controlnet = controlnet_pair(unet, 3, (8, 16, 24))
    _, their_vae = vae_pair(VAEConfig(3, 4, (32, 32, 64), 1))
    pipeline = their_pipeline(their_vae, their_unet, their_controlnet)
    z_T, _, context = inputs(config, batch=1, height=8, width=8)
    null, hint = torch.randn(1, 7, 16), torch.rand(1, 3, 32, 32)
    theirs = pipeline(
        prompt_embeds=context,
        negative_prompt_embeds=null,
        image=hint,
        latents=z_T,
        height=32,
        width=32,
        num_inference_steps=steps,
        guidance_scale=guidance,
        controlnet_conditioning_scale=weight,
        output_type="latent",
    ).images
    control = bind_hint(controlnet, hint, weight)
    eps_fn = guided(bind_context(unet, context, [control]), bind_context(unet, null, [control]), guidance)
    torch.testing.assert_close(last(ddim(SCHEDULE, eps_fn, z_T, steps)), theirs, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- the key map and the folders


def test_the_key_map_is_one_to_one_and_complete_at_sd15():
    config = UNetConfig(4, (320, 640, 1280, 1280), 2, (True, True, True, False), 8, 768)
    vae = VAEConfig(3, 4, (128, 256, 512, 512), 2)
    with torch.device("meta"):
        unet, ours_vae = UNet(config), VAE(vae)
        networks = [
            (unet, config, their_unet(config)),
            (
                ControlNet(unet, 3, (16, 32, 96, 256)),
                config,
                diffusers.ControlNetModel(cross_attention_dim=768, attention_head_dim=8),
            ),
            (
                ours_vae,
                vae,
                diffusers.AutoencoderKL(**{k: v for k, v in io.vae_settings(vae, 1, 512).items() if k[0] != "_"}),
            ),
        ]
    for ours, config, theirs in networks:
        table = table_of(ours, config)
        assert len(set(table.values())) == len(table) > 100
        shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
        assert {b: shapes[a] for a, b in table.items()} == {k: v.shape for k, v in theirs.state_dict().items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A base and a control of random weights, saved as run folders."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_captions(["a red circle", "a blue ring"], length=6)
    text = TextEncoder(TextConfig(len(tokenizer.vocabulary), 6, 16, 1, 2))
    ldm = LatentDiffusion(VAE(VAES[0]), tokenizer, text, UNet(CONFIGS["two levels"]), Schedule(), 32)
    for network in (ldm.vae, ldm.text, ldm.unet):
        randomise(network, std=0.03)
    ldm.vae.scale.fill_(0.7)
    ldm.save(folder / "base")
    files.write_json(folder / "base" / "settings.json", {})
    settings = {"hint_channels": 1, "hint_widths": (8, 16, 24), "condition": "canny"}
    save_control(
        randomise(ControlNet(ldm.unet, 1, (8, 16, 24)), std=0.03), folder / "base", folder / "control", settings
    )
    io.main(io.Export(folder / "exported", folder / "base", folder / "control"))
    return folder


@torch.no_grad()
def test_an_exported_run_loads_with_from_pretrained_and_gives_equal_outputs(runs):
    ldm, out = LatentDiffusion.load(runs / "base"), runs / "exported"
    controlnet, _ = load_control(runs / "control", runs / "base", ldm)
    unet = diffusers.UNet2DConditionModel.from_pretrained(out, subfolder="unet")
    theirs = diffusers.ControlNetModel.from_pretrained(out, subfolder="controlnet")
    vae = diffusers.AutoencoderKL.from_pretrained(out, subfolder="vae")
    scheduler = diffusers.DDIMScheduler.from_pretrained(out, subfolder="scheduler")
    context, z_T, hint = ldm.context(["a red ring"]), ldm.noise(1, 0), torch.rand(1, 1, 32, 32)

    def their_eps(z_t, t):
        down, middle = theirs(z_t, t - 1, context, hint, return_dict=False)
        return unet(
            z_t, t - 1, context, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample

    eps_fn = bind_context(ldm.unet, context, [bind_hint(controlnet, hint)])
    z_0 = last(ddim(ldm.schedule, eps_fn, z_T, 4))
    scheduler.set_timesteps(4)
    z = z_T
    for t in scheduler.timesteps:
        z = scheduler.step(their_eps(z, t + 1), t, z).prev_sample
    torch.testing.assert_close(z_0, z, rtol=1e-4, atol=1e-4)
    assert vae.config.scaling_factor == pytest.approx(0.7)
    torch.testing.assert_close(ldm.vae.decode(z), vae.decode(z / vae.config.scaling_factor).sample, **CLOSE)


def test_importing_what_was_exported_gives_the_same_weights_bit_for_bit(runs):
    io.main(io.Import(runs / "exported", runs / "again", runs / "base"))
    for name in ("unet", "vae", "text"):
        again = runs / "again" / "base" / f"{name}.safetensors"
        assert files.sha256(again) == files.sha256(runs / "base" / f"{name}.safetensors")
    weights = [runs / folder / "controlnet.safetensors" for folder in ("control", "again/control")]
    assert files.sha256(weights[0]) == files.sha256(weights[1])
    load_control(runs / "again" / "control", runs / "again" / "base", LatentDiffusion.load(runs / "again" / "base"))
    with pytest.raises(UserError, match="already"):
        io.main(io.Import(runs / "exported", runs / "again", runs / "base"))
    ldm = LatentDiffusion.load(runs / "base")
    ours, _ = load_control(runs / "control", runs / "base", ldm)
    theirs = io.import_controlnet(runs / "exported" / "controlnet", ldm.unet)
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_folders_that_do_not_fit_are_clear_errors(runs, tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        io.import_unet(tmp_path)
    with pytest.raises(UserError, match="do not fit"):
        io.import_unet(wrong_copy(runs / "exported" / "unet", tmp_path / "a", {"layers_per_block": 2}))
    for i, change in enumerate(
        ({"use_linear_projection": True}, {"norm_num_groups": 16}, {"attention_head_dim": [2, 2]})
    ):
        with pytest.raises(UserError, match=r"config\.json.*SD-1\.5"):
            io.import_unet(wrong_copy(runs / "exported" / "unet", tmp_path / f"b{i}", change))
    with pytest.raises(UserError, match=r"do not fit.*weight"):
        io.import_vae(wrong_copy(runs / "exported" / "vae", tmp_path / "c", {"block_out_channels": [16, 32, 96]}))


@pytest.mark.parametrize(
    ("args", "word"), [([], "export"), (["export"], "PATH"), (["export", "x", "--base", "no"], "no")]
)
def test_bad_command_lines_are_one_line_errors(args, word):
    with pytest.raises(UserError, match=word):
        io.main(parse(io.Export | io.Import, args=args))


def wrong_copy(folder, target, changes):
    """A copy of a diffusers folder whose config.json differs."""
    shutil.copytree(folder, target)
    settings = json.loads((target / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(settings))
    return target


def test_the_old_names_of_the_vaes_attention_are_read():
    assert io.modern("decoder.mid_block.attentions.0.query.weight") == "decoder.mid_block.attentions.0.to_q.weight"
    assert io.modern("encoder.mid_block.attentions.0.proj_attn.bias") == "encoder.mid_block.attentions.0.to_out.0.bias"
    assert io.modern("conv_in.weight") == "conv_in.weight"


@torch.no_grad()
def test_generate_is_driven_by_stable_diffusions_own_parts(tmp_path):
    """A tiny random Stable Diffusion with CLIP on disk: our generate against diffusers' pipeline with ControlNet."""
    transformers = pytest.importorskip("transformers")
    config, vae = UNetConfig(4, (32, 64), 1, (True, False), 2, 24), VAEConfig(3, 4, (32, 32, 64), 1)
    unet, their_unet = unet_pair(config)
    _, their_controlnet = controlnet_pair(unet, 3, (8, 16, 24))
    _, their_vae = vae_pair(vae)
    their_vae.register_to_config(scaling_factor=0.18215)
    words = [
        "<|startoftext|>",
        "<|endoftext|>",
        "a</w>",
        "red</w>",
        "coat</w>",
        *"aredcot",
        *(f"{c}</w>" for c in "redcot"),
    ]
    (tmp_path / "v.json").write_text(json.dumps({word: i for i, word in enumerate(dict.fromkeys(words))}))
    (tmp_path / "m.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(tmp_path / "v.json"), str(tmp_path / "m.txt"), model_max_length=8)
    clip = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=8,
            bos_token_id=0,
            eos_token_id=1,
        )
    ).eval()
    pipeline = their_pipeline(their_vae, their_unet, their_controlnet, clip, tokenizer)
    pipeline.save_pretrained(tmp_path / "sd")
    ldm = io.load_stable_diffusion(tmp_path / "sd", resolution=32)
    ours = io.import_controlnet(tmp_path / "sd" / "controlnet", ldm.unet)
    hint = torch.rand(1, 3, 32, 32)
    z = generate(ldm, ["a red coat"], guidance=3.0, sampler="ddim", steps=4, controls=[bind_hint(ours, hint)])
    theirs = pipeline(
        "a red coat",
        image=hint,
        latents=ldm.noise(1, 0),
        height=32,
        width=32,
        num_inference_steps=4,
        guidance_scale=3.0,
        output_type="pt",
    ).images
    x = ldm.vae.decode(last(z))
    torch.testing.assert_close((x.clamp(-1, 1) + 1) / 2, theirs, rtol=1e-3, atol=1e-3)
