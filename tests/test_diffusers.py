"""Parity with diffusers: the same random weights and inputs give the same outputs, both ways of the key map."""

import json
import shutil
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch
from conftest import SD15_CONTROLNET, SD15_UNET, SD15_VAE, randomise

diffusers = pytest.importorskip("diffusers")

from tinyldm.controlnet import ControlNet, ControlNetConfig  # noqa: E402
from tinyldm.data.conditions import Condition  # noqa: E402
from tinyldm.diffusers_io import import_controlnet, import_unet, import_vae  # noqa: E402
from tinyldm.diffusers_io.__main__ import Export, Import, main  # noqa: E402
from tinyldm.diffusers_io.clip import load_stable_diffusion  # noqa: E402
from tinyldm.diffusers_io.configurations import (  # noqa: E402
    controlnet_config,
    controlnet_entries,
    scheduler_entries,
    unet_entries,
    vae_entries,
)
from tinyldm.diffusers_io.names import table_of  # noqa: E402
from tinyldm.diffusers_io.networks import modern, to_diffusers, write_folder  # noqa: E402
from tinyldm.diffusion import SAMPLERS, Schedule, ddim, guided, seeded  # noqa: E402
from tinyldm.ldm import Control, LatentDiffusion, bind, generate, last  # noqa: E402
from tinyldm.support import files  # noqa: E402
from tinyldm.support.command_line import parse  # noqa: E402
from tinyldm.support.errors import UserError  # noqa: E402
from tinyldm.text import TextConfig, Tokenizer  # noqa: E402
from tinyldm.training.networks import (  # noqa: E402
    base_checksum,
    load_base,
    load_control,
    save_base,
    save_control,
)
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


HINTS = ControlNetConfig(1, (8, 16, 24))


def public(entries: dict) -> dict:
    """The entries of a config.json that are arguments of diffusers' class."""
    return {key: value for key, value in entries.items() if not key.startswith("_")}


def their_unet(config: UNetConfig):
    return diffusers.UNet2DConditionModel(**public(unet_entries(config))).eval()


def unet_pair(config: UNetConfig):
    torch.manual_seed(0)
    ours = randomise(UNet(config), std=0.03)
    theirs = their_unet(config)
    theirs.load_state_dict(to_diffusers(ours))
    return ours, theirs


def controlnet_pair(unet: UNet, config: ControlNetConfig):
    ours = randomise(ControlNet(unet, config), seed=1, std=0.03)
    theirs = diffusers.ControlNetModel(**public(controlnet_entries(unet.config, config))).eval()
    theirs.load_state_dict(to_diffusers(ours))
    return ours, theirs


def vae_pair(config: VAEConfig):
    torch.manual_seed(0)
    ours = randomise(VAE(config), std=0.03)
    theirs = diffusers.AutoencoderKL(**public(vae_entries(config))).eval()
    theirs.load_state_dict(to_diffusers(ours))
    return ours, theirs


def noise_of(seed: int):
    """Standard normal noise from one generator, drawn call after call, as diffusers' schedulers draw it."""
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator)


def inputs(config: UNetConfig, batch: int = 3, height: int = 8, width: int = 16):
    g = torch.Generator().manual_seed(2)
    z_t = torch.randn(batch, config.channels, height, width, generator=g)
    return (
        z_t,
        torch.tensor([1, 500, 1000])[:batch],
        torch.randn(batch, 7, config.context_width, generator=g),
    )


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
    ours, theirs = controlnet_pair(unet, ControlNetConfig(channels, widths))
    z_t, t, context = inputs(config)
    f = 2 ** (len(widths) - 1)
    hint = torch.rand(3, channels, 8 * f, 16 * f)
    residuals = ours(z_t, t, context, hint)
    down, middle = theirs(z_t, t - 1, context, hint, return_dict=False)
    for a, b in zip(residuals, [*down, middle], strict=True):
        torch.testing.assert_close(a, b, **CLOSE)
    controlled = their_unet(
        z_t,
        t - 1,
        context,
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
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
        z = scheduler.step(
            fake_eps(z, torch.full((len(z),), int(t) + 1)), t, z, **kwargs
        ).prev_sample
        zs.append(z)
    return zs


SETTINGS = public(scheduler_entries(SCHEDULE))


@pytest.mark.parametrize("steps", [1, 2, 10, 50, 1000])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_trajectories_equal_ddimscheduler(steps, eta):
    z_T = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = their_trajectory(
        diffusers.DDIMScheduler(**SETTINGS),
        z_T,
        steps,
        eta=eta,
        generator=torch.Generator().manual_seed(1),
    )
    ours = list(ddim(SCHEDULE, fake_eps, z_T, steps, noise_of(1), eta))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [2, 10, 50, 1000])
def test_ddpm_trajectories_equal_ddpmscheduler(steps):
    settings = {k: v for k, v in SETTINGS.items() if k != "set_alpha_to_one"}
    z_T = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler = diffusers.DDPMScheduler(**settings, variance_type="fixed_small")
    theirs = their_trajectory(scheduler, z_T, steps, generator=torch.Generator().manual_seed(1))
    ours = list(SAMPLERS["ddpm"](SCHEDULE, fake_eps, z_T, steps, noise=noise_of(1)))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [2, 10, 15, 50])
def test_dpm_solver_pp_trajectories_equal_dpmsolvermultistepscheduler(steps):
    settings = {k: v for k, v in SETTINGS.items() if k not in ("set_alpha_to_one", "clip_sample")}
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **settings,
        solver_order=2,
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
        final_sigmas_type="zero",
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
    controlnet, their_controlnet = controlnet_pair(unet, ControlNetConfig(3, (8, 16, 24)))
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
    control = Control(controlnet, hint, weight)
    eps_fn = guided(bind(unet, context, [control]), bind(unet, null, [control]), guidance)
    torch.testing.assert_close(
        last(ddim(SCHEDULE, eps_fn, z_T, steps)), theirs, rtol=1e-4, atol=1e-4
    )


# ---------------------------------------------------------------- the key map and the folders


def test_the_key_map_is_one_to_one_and_complete_at_sd15():
    with torch.device("meta"):
        unet = UNet(SD15_UNET)
        networks = [
            (unet, their_unet(SD15_UNET)),
            (
                ControlNet(unet, SD15_CONTROLNET),
                diffusers.ControlNetModel(cross_attention_dim=768, attention_head_dim=8),
            ),
            (VAE(SD15_VAE), diffusers.AutoencoderKL(**public(vae_entries(SD15_VAE)))),
        ]
    for ours, theirs in networks:
        table = table_of(ours)
        assert len(set(table.values())) == len(table) > 100
        shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
        assert {b: shapes[a] for a, b in table.items()} == {
            k: v.shape for k, v in theirs.state_dict().items()
        }


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A base and a control of random weights, saved as run folders."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_captions(["a red circle", "a blue ring"], length=6)
    text = TextConfig(width=16, layers=1, heads=2)
    ldm = LatentDiffusion.build(VAE(VAES[0]), tokenizer, text, CONFIGS["two levels"], 32)
    for network in (ldm.vae, ldm.text, ldm.unet):
        randomise(network, std=0.03)
    ldm.vae.scale.fill_(0.7)
    files.write_json(folder / "base" / "settings.json", {})
    save_base(folder / "base", ldm)
    controlnet = randomise(ControlNet(ldm.unet, HINTS), std=0.03)
    save_control(folder / "control", controlnet, Condition(), base_checksum(folder / "base"))
    main(Export(folder / "exported", folder / "base", folder / "control"))
    return folder


@torch.no_grad()
def test_an_exported_run_loads_with_from_pretrained_and_gives_equal_outputs(runs):
    ldm, out = load_base(runs / "base"), runs / "exported"
    controlnet, _ = load_control(runs / "control", runs / "base", ldm)
    unet = diffusers.UNet2DConditionModel.from_pretrained(out, subfolder="unet")
    theirs = diffusers.ControlNetModel.from_pretrained(out, subfolder="controlnet")
    vae = diffusers.AutoencoderKL.from_pretrained(out, subfolder="vae")
    scheduler = diffusers.DDIMScheduler.from_pretrained(out, subfolder="scheduler")
    context, hint = ldm.context(["a red ring"]), torch.rand(1, 1, 32, 32)
    z_T = seeded(0, 1)(torch.Size([1, *ldm.latent_shape]))

    def their_eps(z_t, t):
        down, middle = theirs(z_t, t - 1, context, hint, return_dict=False)
        return unet(
            z_t,
            t - 1,
            context,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample

    eps_fn = bind(ldm.unet, context, [Control(controlnet, hint)])
    z_0 = last(ddim(ldm.schedule, eps_fn, z_T, 4))
    scheduler.set_timesteps(4)
    z = z_T
    for t in scheduler.timesteps:
        z = scheduler.step(their_eps(z, t + 1), t, z).prev_sample
    torch.testing.assert_close(z_0, z, rtol=1e-4, atol=1e-4)
    assert vae.config.scaling_factor == pytest.approx(0.7)
    torch.testing.assert_close(
        ldm.vae.decode(z), vae.decode(z / vae.config.scaling_factor).sample, **CLOSE
    )


def test_importing_what_was_exported_gives_the_same_weights_bit_for_bit(runs):
    main(Import(runs / "exported", runs / "again", runs / "base"))
    for name in ("unet", "vae", "text"):
        again = runs / "again" / "base" / f"{name}.safetensors"
        assert files.sha256(again) == files.sha256(runs / "base" / f"{name}.safetensors")
    weights = [runs / folder / "controlnet.safetensors" for folder in ("control", "again/control")]
    assert files.sha256(weights[0]) == files.sha256(weights[1])
    load_control(
        runs / "again" / "control", runs / "again" / "base", load_base(runs / "again" / "base")
    )
    with pytest.raises(UserError, match="already"):
        main(Import(runs / "exported", runs / "again", runs / "base"))
    ldm = load_base(runs / "base")
    ours, _ = load_control(runs / "control", runs / "base", ldm)
    theirs = import_controlnet(runs / "exported" / "controlnet", ldm.unet)
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_an_export_replaces_nothing_and_is_whole_or_not_there(runs, tmp_path, monkeypatch, capsys):
    settings = Export(tmp_path / "out", runs / "base", runs / "control")
    for thing in (lambda p: p.write_text("mine"), lambda p: p.symlink_to("gone"), Path.mkdir):
        thing(tmp_path / "out")
        with pytest.raises(UserError, match="out: exists already; name a new folder"):
            main(settings)
        remove = Path.rmdir if (tmp_path / "out").is_dir() else Path.unlink
        remove(tmp_path / "out")
    write, calls = files.write_json, []

    def full(path, content):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(files, "write_json", full)
    with pytest.raises(UserError, match=r"out: cannot be written .No space left"):
        main(settings)
    assert not [*tmp_path.iterdir()]
    capsys.readouterr()
    monkeypatch.undo()
    main(settings)
    assert "hints of 1 channel" in capsys.readouterr().err


def test_pieces_of_two_exports_are_never_imported_together(runs, tmp_path):
    shutil.copytree(runs / "exported", tmp_path / "mixed")
    name = "diffusion_pytorch_model.safetensors"
    path = tmp_path / "mixed" / "controlnet" / name
    weights = files.read_tensors(path, "")
    files.write_tensors(path, {key: x + 1 for key, x in weights.items()})  # of another export
    with pytest.raises(UserError, match=f"controlnet/{name}: changed"):
        main(Import(tmp_path / "mixed", tmp_path / "new", runs / "base"))
    assert not (tmp_path / "new").exists()


def test_a_controlnet_that_came_later_is_not_imported_with_an_export(runs, tmp_path):
    main(Export(tmp_path / "out", runs / "base"))
    shutil.copytree(runs / "exported" / "controlnet", tmp_path / "out" / "controlnet")
    with pytest.raises(UserError, match=r"controlnet/.* was not exported with the rest"):
        main(Import(tmp_path / "out", tmp_path / "new", runs / "base"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("scale", [0, -3, float("nan"), 1e300, "1", None])
def test_a_scaling_factor_that_is_none_is_a_clear_error(runs, tmp_path, scale):
    shutil.copytree(runs / "exported", tmp_path / "x")
    (tmp_path / "x" / "manifest.json").unlink()
    path = tmp_path / "x" / "vae" / "config.json"
    files.write_json(path, json.loads(path.read_text()) | {"scaling_factor": scale})
    with pytest.raises(UserError, match=r"vae/config\.json.*scaling_factor"):
        main(Import(tmp_path / "x", tmp_path / "new", runs / "base"))


def test_a_folder_that_nobody_sealed_is_imported_with_a_note(runs, tmp_path, capsys):
    shutil.copytree(runs / "exported", tmp_path / "theirs")
    (tmp_path / "theirs" / "manifest.json").unlink()
    main(Import(tmp_path / "theirs", tmp_path / "new", runs / "base"))
    assert "nothing says that controlnet/ belongs to unet/" in capsys.readouterr().err
    main(Import(runs / "exported", tmp_path / "ours", runs / "base"))
    assert "note" not in capsys.readouterr().err


def test_an_import_is_whole_or_not_there(runs, tmp_path, monkeypatch):
    write = files.write_tensors

    def full(path, tensors):
        if path.name == "unet.safetensors":
            raise OSError(28, "No space left on device")
        return write(path, tensors)

    monkeypatch.setattr(files, "write_tensors", full)
    with pytest.raises(UserError, match=r"base: cannot be written .No space left"):
        main(Import(runs / "exported", tmp_path / "new", runs / "base"))
    assert not [*(tmp_path / "new").iterdir()]


def test_folders_that_do_not_fit_are_clear_errors(runs, tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        import_unet(tmp_path)
    config = CONFIGS["two levels"]
    one, two = (set(table_of(UNet(replace(config, res_blocks=n))).values()) for n in (1, 2))
    words = f"a: {len(one ^ two)} weights do not fit .*, the first is {min(one ^ two)}$"
    with pytest.raises(UserError, match=words):
        import_unet(wrong_copy(runs / "exported" / "unet", tmp_path / "a", {"layers_per_block": 2}))
    for i, change in enumerate(
        ({"use_linear_projection": True}, {"norm_num_groups": 16}, {"attention_head_dim": [2, 2]})
    ):
        with pytest.raises(UserError, match=r"config\.json.*SD-1\.5"):
            import_unet(wrong_copy(runs / "exported" / "unet", tmp_path / f"b{i}", change))
    blocks = {"up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D"]}
    for name, change in (("norm_num_groups", {"norm_num_groups": 3}), ("up_block_types", blocks)):
        with pytest.raises(UserError, match=rf"config\.json.*SD-1\.5.*{name} is"):
            import_vae(wrong_copy(runs / "exported" / "vae", tmp_path / name, change))
    with pytest.raises(UserError, match=r"do not fit.*weight"):
        import_vae(
            wrong_copy(
                runs / "exported" / "vae", tmp_path / "c", {"block_out_channels": [8, 16, 96]}
            )
        )


OTHERS = {
    "context": (
        "unet",
        replace(CONFIGS["two levels"], context_width=24),
        "context_width is 24.* 16",
    ),
    "latents": ("unet", replace(CONFIGS["two levels"], channels=3), "channels is 3.* 4"),
    "colours": ("vae", replace(VAES[0], image_channels=3), "image_channels is 3.* 1"),
    "scale": ("vae", replace(VAES[0], widths=(32, 64)), "f is 2.* 4"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_an_import_for_a_base_of_other_sizes_is_refused_and_writes_nothing(runs, tmp_path, name):
    part, config, words = OTHERS[name]
    network, entries = (UNet, unet_entries) if part == "unet" else (VAE, vae_entries)
    shutil.copytree(runs / "exported", tmp_path / "theirs")
    (tmp_path / "theirs" / "manifest.json").unlink()  # as from anybody else
    write_folder(tmp_path / "theirs" / part, entries(config), network(config))
    with pytest.raises(UserError, match=f"theirs/{part}: its {words}$"):
        main(Import(tmp_path / "theirs", tmp_path / "new", runs / "base"))
    assert not (tmp_path / "new").exists()


def test_a_controlnet_of_a_unet_of_other_sizes_is_refused(runs):
    unet = UNet(replace(CONFIGS["two levels"], heads=4))
    with pytest.raises(
        UserError, match="controlnet: this ControlNet is for a U-Net of other sizes"
    ):
        import_controlnet(runs / "exported" / "controlnet", unet)


def test_entries_that_sd15_leaves_out_have_its_values(runs, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert controlnet_config(tmp_path) == ControlNetConfig(3, (16, 32, 96, 256))
    shutil.copytree(runs / "exported" / "vae", tmp_path / "vae")
    entries = json.loads((tmp_path / "vae" / "config.json").read_text())
    assert import_vae(tmp_path / "vae").scale.item() == pytest.approx(entries["scaling_factor"])
    for name in ("scaling_factor", "norm_num_groups"):
        del entries[name]
    (tmp_path / "vae" / "config.json").write_text(json.dumps(entries))
    assert import_vae(tmp_path / "vae").scale.item() == pytest.approx(0.18215)


def test_the_number_of_heads_is_read_under_either_name(runs, tmp_path):
    changes = {"num_attention_heads": 4, "attention_head_dim": 99}
    unet = import_unet(wrong_copy(runs / "exported" / "unet", tmp_path / "unet", changes))
    assert unet.config == replace(CONFIGS["two levels"], heads=4)
    assert not any(p.requires_grad for p in unet.parameters())


def test_an_export_names_its_sizes_and_without_a_control_has_none(runs, tmp_path, capfd):
    main(Export(tmp_path / "out", runs / "base"))
    assert capfd.readouterr() == (f"{tmp_path / 'out'}\n", "")
    folders = {"unet", "vae", "scheduler"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == folders | {"manifest.json"}
    vae, unet = (
        json.loads((tmp_path / "out" / part / "config.json").read_text())
        for part in ("vae", "unet")
    )
    assert (vae["sample_size"], unet["sample_size"]) == (32, 8)
    assert vae["scaling_factor"] == pytest.approx(0.7)
    main(Import(tmp_path / "out", tmp_path / "runs", runs / "base"))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["base"]
    for taken in ("base", "control"):
        (tmp_path / taken / taken).mkdir(parents=True)
        with pytest.raises(UserError, match=f"{taken}: holds runs already; name another folder"):
            main(Import(tmp_path / "out", tmp_path / taken, runs / "base"))


@pytest.mark.parametrize(
    ("args", "word"),
    [([], "export"), (["export"], "PATH"), (["export", "x", "--base", "no"], "no")],
)
def test_bad_command_lines_are_one_line_errors(args, word):
    with pytest.raises(UserError, match=word):
        main(parse(Export | Import, args=args))


def test_settings_stay_as_they_were_given():
    for settings in (Export(Path("out")), Import(Path("theirs"), Path("out"))):
        with pytest.raises(FrozenInstanceError):
            settings.base = Path("another")


def wrong_copy(folder, target, changes):
    """A copy of a diffusers folder whose config.json differs."""
    shutil.copytree(folder, target)
    settings = json.loads((target / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(settings))
    return target


def test_the_old_names_of_the_vaes_attention_are_read():
    assert (
        modern("decoder.mid_block.attentions.0.query.weight")
        == "decoder.mid_block.attentions.0.to_q.weight"
    )
    assert (
        modern("encoder.mid_block.attentions.0.proj_attn.bias")
        == "encoder.mid_block.attentions.0.to_out.0.bias"
    )
    assert modern("conv_in.weight") == "conv_in.weight"


@torch.no_grad()
def test_generate_is_driven_by_stable_diffusions_own_parts(tmp_path):
    """A tiny random Stable Diffusion with CLIP on disk: our generate against diffusers' pipeline."""
    transformers = pytest.importorskip("transformers")
    config, vae = UNetConfig(4, (32, 64), 1, (True, False), 2, 24), VAEConfig(3, 4, (32, 32, 64), 1)
    unet, their_unet = unet_pair(config)
    _, their_controlnet = controlnet_pair(unet, ControlNetConfig(3, (8, 16, 24)))
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
    (tmp_path / "v.json").write_text(
        json.dumps({word: i for i, word in enumerate(dict.fromkeys(words))})
    )
    (tmp_path / "m.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(tmp_path / "v.json"), str(tmp_path / "m.txt"), model_max_length=8
    )
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
    ldm = load_stable_diffusion(tmp_path / "sd", resolution=32)
    assert ldm.resolution == 32 and load_stable_diffusion(tmp_path / "sd").resolution == 512
    assert not any(p.requires_grad for p in ldm.parameters())
    ours = import_controlnet(tmp_path / "sd" / "controlnet", ldm.unet)
    hint = torch.rand(1, 3, 32, 32)
    z = generate(
        ldm, ["a red coat"], guidance=3.0, sampler="ddim", steps=4, controls=[Control(ours, hint)]
    )
    theirs = pipeline(
        "a red coat",
        image=hint,
        latents=seeded(0, 1)(torch.Size([1, *ldm.latent_shape])),
        height=32,
        width=32,
        num_inference_steps=4,
        guidance_scale=3.0,
        output_type="pt",
    ).images
    x = ldm.vae.decode(last(z))
    torch.testing.assert_close((x.clamp(-1, 1) + 1) / 2, theirs, rtol=1e-3, atol=1e-3)
