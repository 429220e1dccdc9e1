"""`python -m tinyldm.diffusers_io`: a base and its ControlNet to and from the folders of diffusers.

`export OUT --base RUN [--control RUN]` writes the folders that `from_pretrained` loads;
`import FOLDER OUT --base RUN` reads such folders into run folders.
"""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from tinyldm.diffusers_io.configurations import (
    controlnet_entries,
    scheduler_entries,
    unet_entries,
    vae_entries,
)
from tinyldm.diffusers_io.networks import import_controlnet, import_unet, import_vae, write_folder
from tinyldm.support import files
from tinyldm.support.command_line import parse, run_command
from tinyldm.support.errors import UserError
from tinyldm.training.networks import NO_BASE, load_base, load_control, save_base, save_control


@dataclass(frozen=True)
class Export:
    """Write a base, and a ControlNet, as the folders that diffusers' from_pretrained loads."""

    out: Positional[Path]
    """Folder to write unet/, vae/, scheduler/ and controlnet/ into."""
    base: Path = Path("runs/base")
    """Run folder of train_base.py."""
    control: Path | None = None
    """Run folder of train_control.py."""


@dataclass(frozen=True)
class Import:
    """Read unet/, vae/ and, if it is there, controlnet/ of diffusers into new runs OUT/base, OUT/control."""

    folder: Positional[Path]
    """Folder with unet/ and vae/, perhaps controlnet/."""
    out: Positional[Path]
    """Folder for the runs `base` and `control`; must not hold them yet."""
    base: Path = Path("runs/base")
    """Run folder of train_base.py whose tokenizer, text encoder and schedule belong to that U-Net."""


def export_run(settings: Export) -> None:
    """Write unet/, vae/, scheduler/ and, with a control, controlnet/. Raises UserError."""
    ldm, out = load_base(settings.base), settings.out
    unet, vae, size = ldm.unet, ldm.vae, ldm.resolution
    extra = {"scaling_factor": vae.scale.item(), "sample_size": size}
    write_folder(out / "vae", {**vae_entries(vae.config), **extra}, vae)
    extra = {"sample_size": size // vae.config.f}
    write_folder(out / "unet", {**unet_entries(unet.config), **extra}, unet)
    scheduler = scheduler_entries(ldm.schedule)
    files.write_json(out / "scheduler" / "scheduler_config.json", scheduler)
    if settings.control:
        controlnet, _ = load_control(settings.control, settings.base, ldm)
        entries = controlnet_entries(unet.config, controlnet.config)
        write_folder(out / "controlnet", entries, controlnet)


def check_same(what: Path, theirs: object, ours: object, *fields: str) -> None:
    """Raise UserError if what was read differs from our base in one of these fields of their configs."""
    for field in fields:
        a, b = getattr(theirs, field), getattr(ours, field)
        if a != b:
            raise UserError(f"{what}: its {field} is {a}, that of the base is {b}")


def import_run(settings: Import) -> None:
    """Write OUT/base and, with a controlnet/, OUT/control. Raises UserError if they exist or do not fit."""
    folder, base, control = settings.folder, settings.out / "base", settings.out / "control"
    ldm = load_base(settings.base)
    if base.exists() or control.exists():
        raise UserError(f"{settings.out}: holds runs already; name another folder")
    unet, vae = import_unet(folder / "unet"), import_vae(folder / "vae")
    check_same(folder / "unet", unet.config, ldm.unet.config, "channels", "context_width")
    check_same(folder / "vae", vae.config, ldm.vae.config, "image_channels", "f")
    ldm.unet, ldm.vae = unet, vae
    save_base(base, ldm)
    chosen = files.read_json(settings.base / "settings.json", NO_BASE)
    files.write_json(base / "settings.json", chosen)
    if (folder / "controlnet").exists():
        controlnet = import_controlnet(folder / "controlnet", unet)
        save_control(control, controlnet, "canny", base)


def main(settings: Export | Import) -> None:
    """Export or import, and print the folder that was written."""
    if isinstance(settings, Export):
        export_run(settings)
    else:
        import_run(settings)
    print(settings.out)


if __name__ == "__main__":
    run_command(lambda: main(parse(Export | Import, about=__doc__)))
