"""The house stays small, and the README shows it as it is."""

import ast
import re
import statistics
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tinyldm"
NAMES = ["blocks", "diffusion", "text", "vae", "unet", "controlnet", "ldm"]
METHOD = [PACKAGE / f"{name}.py" for name in NAMES]
SCRIPTS = [ROOT / "train_base.py", ROOT / "train_control.py"]
README = (ROOT / "README.md").read_text()
LAYOUT = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
}


def docstrings(tree: ast.AST) -> set[tuple[int, int]]:
    """Where strings stand that are statements of their own."""
    found = (node.value for node in ast.walk(tree) if isinstance(node, ast.Expr))
    constants = (value for value in found if isinstance(value, ast.Constant))
    return {(c.lineno, c.col_offset) for c in constants if isinstance(c.value, str)}


def tokens(path: Path) -> int:
    """Tokens of a file, comments and docstrings not counted."""
    words = docstrings(ast.parse(path.read_text()))
    with open(path, "rb") as file:
        every = [token for token in tokenize.tokenize(file.readline) if token.type not in LAYOUT]
    return sum(token.type != tokenize.STRING or token.start not in words for token in every)


def functions(path: Path) -> list[tuple[int, str]]:
    """Lines and name of every function of a file."""
    nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
    return [((n.end_lineno or 0) - n.lineno + 1, f"{path.name}:{n.name}") for n in nodes]


def test_the_method_is_read_in_an_evening():
    assert sum(map(tokens, METHOD + SCRIPTS)) <= 8_500
    assert len(list(PACKAGE.glob("*.py"))) <= 9
    assert max(length for path in METHOD for length, _ in functions(path)) <= 25


def test_the_package_is_small_and_its_functions_are_short():
    files = [*PACKAGE.rglob("*.py"), *SCRIPTS]
    sizes = {path: tokens(path) for path in PACKAGE.rglob("*.py")}
    claims = sum(size for path, size in sizes.items() if path.parent.name == "claims")
    assert claims <= 35_500 and sum(sizes.values()) - claims <= 57_500
    lengths = [entry for path in files for entry in functions(path)]
    assert max(lengths)[0] <= 50, max(lengths)
    assert statistics.median(length for length, _ in lengths) <= 7


def tree() -> list[str]:
    """The first words of the lines of the README's tree."""
    drawn = README.split("<!-- tree -->")[1].split("```")[1]
    return re.findall(r"[\w/]+\.py|[\w/]+/", drawn)


@pytest.mark.parametrize("path", [*METHOD, *SCRIPTS, *PACKAGE.glob("*/*.py")], ids=lambda p: p.stem)
def test_every_file_stands_in_the_readmes_tree(path):
    claim = re.fullmatch(r"e\d\d_\w+\.py", path.name)  # named together, as e01 to e22
    if path.name != "__init__.py" and not claim:
        names = tree()
        folder = f"{path.parent.name}/"
        assert path.name in names and (path.parent in (ROOT, PACKAGE) or folder in names)


def test_the_readme_quotes_the_code_as_it_is():
    source = "\n".join(path.read_text() for path in METHOD)
    quoted = re.findall(r"```python\n(    .*?)```", README, flags=re.S)
    assert len(quoted) == 2
    assert all(quote in source for quote in quoted)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *(ROOT / "docs").glob("*.md")], ids=lambda p: p.stem
)
def test_links_between_pages_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    links = re.findall(r"\]\(([^)#]+)\)", text)
    for link in links:
        assert link.startswith("http") or (page.parent / link).exists(), link


def test_the_pages_name_tests_that_exist():
    page = (ROOT / "docs" / "zero-convolutions.md").read_text()
    code = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    named = re.findall(r"(?:::|`)(test_x\w+)", page)
    assert len(named) > 8
    assert all(f"def {name}(" in code for name in named)
