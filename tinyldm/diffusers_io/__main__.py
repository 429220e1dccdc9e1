"""`python -m tinyldm.diffusers_io`: a base and its ControlNet to and from the folders of diffusers.

`export OUT --base RUN [--control RUN]` writes the folders that `from_pretrained` loads;
`import FOLDER OUT --base RUN` reads such folders into run folders.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from tyro.conf import Positional

from tinyldm.controlnet import ControlNet
from tinyldm.data.conditions import Condition
from tinyldm.diffusers_io.configurations import (
    controlnet_entries,
    scheduler_entries,
    unet_entries,
    vae_entries,
)
from tinyldm.diffusers_io.networks import import_controlnet, import_unet, import_vae, write_folder
from tinyldm.ldm import LatentDiffusion
from tinyldm.support import files
from tinyldm.support.command_line import parse, run_command
from tinyldm.support.errors import UserError
from tinyldm.support.sealed import MANIFEST, Sealed, is_sealed, seal
from tinyldm.training.machine import process
from tinyldm.training.networks import (
    NO_BASE,
    SETTINGS,
    base_checksum,
    load_base,
    load_control,
    save_base,
    save_control,
)

CHANNELS = (
    "note: the ControlNet takes hints of {} channel(s): give diffusers' pipeline a tensor (b, 1, H, W), "
    "0 or 1, and not a picture, which it would make three channels of"
)


@dataclass(frozen=True)
class Export:
    """Write a base, and a ControlNet, as the folders that diffusers' from_pretrained loads."""

    out: Positional[Path]
    """New folder for unet/, vae/, scheduler/ and controlnet/."""
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
    """Write unet/, vae/, scheduler/ and, with a control, controlnet/, all or nothing. Raises UserError."""
    if os.path.lexists(settings.out):
        raise UserError(f"{settings.out}: exists already; name a new folder")
    ldm = load_base(settings.base)
    controlnet = None
    if settings.control:
        controlnet, _ = load_control(settings.control, settings.base, ldm)
    with files.whole_folder(settings.out) as folder:
        write_folders(folder, ldm, controlnet)
        written = [path for path in folder.rglob("*") if path.is_file()]
        seal(folder, {str(path.relative_to(folder)): files.sha256(path) for path in written})
    if controlnet:
        print(CHANNELS.format(controlnet.config.hint_channels), file=sys.stderr)


def write_folders(out: Path, ldm: LatentDiffusion, controlnet: ControlNet | None) -> None:
    """Write a model as the folders of diffusers."""
    unet, vae, size = ldm.unet, ldm.vae, ldm.resolution
    extra = {"scaling_factor": vae.scale.item(), "sample_size": size}
    write_folder(out / "vae", {**vae_entries(vae.config), **extra}, vae)
    extra = {"sample_size": size // vae.config.f}
    write_folder(out / "unet", {**unet_entries(unet.config), **extra}, unet)
    scheduler = scheduler_entries(ldm.schedule)
    files.write_json(out / "scheduler" / "scheduler_config.json", scheduler)
    if controlnet:
        entries = controlnet_entries(unet.config, controlnet.config)
        write_folder(out / "controlnet", entries, controlnet)


def check_same(what: Path, theirs: object, ours: object, *fields: str) -> None:
    """Raise UserError if what was read differs from our base in one of these fields of their configs."""
    for field in fields:
        a, b = getattr(theirs, field), getattr(ours, field)
        if a != b:
            raise UserError(f"{what}: its {field} is {a}, that of the base is {b}")


def check_export(folder: Path) -> None:
    """Raise UserError unless all files are as they were exported, and none came later."""
    sealed = Sealed(folder, "export it again")
    sealed.verify()
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    if later := sorted(names - {MANIFEST, *sealed.manifest.sha256}):
        raise UserError(f"{folder}: {later[0]} was not exported with the rest; remove it")


def import_run(settings: Import) -> None:
    """Write OUT/base and, with a controlnet/, OUT/control. Raises UserError if they exist or do not fit."""
    folder, base, control = settings.folder, settings.out / "base", settings.out / "control"
    if os.path.lexists(base) or os.path.lexists(control):
        raise UserError(f"{settings.out}: holds runs already; name another folder")
    if is_sealed(folder):
        check_export(folder)
    elif (folder / "controlnet").exists():
        print(f"note: {folder}: nothing says that controlnet/ belongs to unet/", file=sys.stderr)
    ldm = load_base(settings.base)
    unet, vae = import_unet(folder / "unet"), import_vae(folder / "vae")
    check_same(folder / "unet", unet.config, ldm.unet.config, "channels", "context_width")
    check_same(folder / "vae", vae.config, ldm.vae.config, "image_channels", "f")
    ldm.unet, ldm.vae = unet, vae
    chosen = Sealed(settings.base, NO_BASE).read(SETTINGS)
    controlnet = None
    if (folder / "controlnet").exists():
        controlnet = import_controlnet(folder / "controlnet", unet)
    with files.whole_folder(base) as new:
        files.write(new / SETTINGS, chosen)
        save_base(new, ldm)
    if controlnet:
        with files.whole_folder(control) as new:
            save_control(new, controlnet, Condition(), base_checksum(base))


def main(settings: Export | Import) -> None:
    """Export or import, and print the folder that was written."""
    with process("cpu", threads=torch.get_num_threads()):  # a signal leaves nothing half written
        if isinstance(settings, Export):
            export_run(settings)
        else:
            import_run(settings)
    print(settings.out)


if __name__ == "__main__":
    run_command(lambda: main(parse(Export | Import, about=__doc__)))
