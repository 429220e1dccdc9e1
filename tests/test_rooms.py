"""The rooms of the package: a file imports only from rooms above it."""

import ast
from pathlib import Path

ROOMS = [
    *["errors", "files", "tables", "sizes", "blocks", "diffusion", "text", "vae", "unet", "controlnet"],
    *["dataset", "fashion_mnist", "shapes", "data", "conditions", "pictures"],
    *["ldm", "config", "cli", "checkpoint", "muon", "training", "runs", "stages", "classifier", "metrics"],
    *["sample", "evaluate", "diffusers_names", "diffusers_io", "curve", "workloads", "benchmark"],
]
PACKAGE = Path(__file__).parents[1] / "tinyldm"


def imports(path: Path) -> set[str]:
    """The rooms that a file imports, wherever in the file it does."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "tinyldm":
            rooms |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tinyldm."):
            rooms.add(node.module.split(".")[1])
    return rooms


def test_every_file_is_a_room():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {*ROOMS, "__init__"}


def test_a_room_imports_only_from_rooms_above_it():
    for i, room in enumerate(ROOMS):
        assert imports(PACKAGE / f"{room}.py") <= set(ROOMS[:i]), room


def test_claims_have_an_order_too_and_nothing_imports_them():
    folder = PACKAGE / "claims"
    one_each = sorted(path.stem for path in folder.glob("e??_*.py"))
    order = ["record", "settings", "lab", "claim", "arms", *one_each, "lessons", "report", "all", "__main__"]
    assert {path.stem for path in folder.glob("*.py")} == {*order, "__init__"}
    for i, room in enumerate(order):
        names = set()
        for node in ast.walk(ast.parse((folder / f"{room}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "tinyldm.claims":
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tinyldm.claims."):
                names.add(node.module.split(".")[2])
        assert names <= set(order[:i]), room


def test_diffusion_knows_no_network():
    assert imports(PACKAGE / "diffusion.py") == set()
