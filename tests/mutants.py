"""Break the code one line at a time and see whether its tests notice: `make mutants`.

Cosmic-ray makes the mutants, in a copy of the tree for each worker; the tree itself is never touched. Each
mutant meets the test files that name its module. What survives is a gap in the tests, unless tests/mutants.md
accepts it.
"""

import difflib
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from cosmic_ray.ast import ast_nodes, get_ast_from_path
from cosmic_ray.mutating import use_mutation
from cosmic_ray.operators.operator import Operator
from cosmic_ray.operators.provider import OperatorProvider
from cosmic_ray.testing import TestOutcome, run_tests
from parso.python.tree import Keyword

ROOT = Path(__file__).parents[1]
ACCEPTED = ROOT / "tests" / "mutants.md"
# Arguments that change no number on a CPU: checks, devices, bars, how a picture looks.
UNSEEN = "strict device verbose desc unit unit_scale save_cpu_ram figsize dpi capsize"
LEFT_OUT = (".*", "runs", "results", "__pycache__", "*.egg-info")  # of the copies
GROUPS = ("method", "training", "data", "evaluate", "commands", "support")
COMMANDS = (("tinyldm", "sample.py"), ("evaluate", "__main__.py"))
# Of cosmic-ray's operators, those whose mutants run at all: + becomes -, and not >>.
SWAPS = (
    "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Mul Mod_FloorDiv Pow_Mul BitAnd_BitOr BitOr_BitAnd"
)
COMPARISONS = "Lt_LtE LtE_Lt Gt_GtE GtE_Gt Eq_NotEq NotEq_Eq Is_IsNot IsNot_Is"
OTHERS = (
    "AddNot ReplaceTrueWithFalse ReplaceFalseWithTrue ReplaceAndWithOr ReplaceOrWithAnd NumberReplacer "
    "ReplaceBreakWithContinue ReplaceContinueWithBreak RemoveDecorator "
    "ZeroIterationForLoop ReplaceUnaryOperator_USub_UAdd ReplaceUnaryOperator_Delete_Not"
)


class RemoveArgument(Operator):
    """f(x, y=z) -> f(x, **{}): what is passed by name is ignored."""

    def mutation_positions(self, node: Any) -> Iterator[tuple]:
        if node.type == "argument" and node.children[1] == "=":
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        return Keyword("**{}", node.start_pos, prefix=node.get_first_leaf().prefix)

    @classmethod
    def examples(cls) -> tuple:
        return ()


class RemoveStatement(RemoveArgument):
    """f(x) -> lambda: f(x): a call that stands alone is not made."""

    def mutation_positions(self, node: Any) -> Iterator[tuple]:
        if node.type == "atom_expr" and node.parent.type == "simple_stmt":
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        code = node.get_code(include_prefix=False)
        return Keyword(f"lambda: {code}", node.start_pos, prefix=node.get_first_leaf().prefix)


class Mutant(NamedTuple):
    path: str  # of the module, from the root
    operator: str
    occurrence: int  # of the operator in the module
    line: int
    tests: tuple[str, ...]
    timeout: float


class Result(NamedTuple):
    mutant: Mutant
    outcome: str  # "killed", "survived" or "accepted"
    diff: tuple[str, ...]  # the changed lines


@cache
def operators() -> dict[str, Operator]:
    binary = [f"ReplaceBinaryOperator_{swap}" for swap in SWAPS.split()]
    comparison = [f"ReplaceComparisonOperator_{swap}" for swap in COMPARISONS.split()]
    core = {name: OperatorProvider()[name]() for name in binary + comparison + OTHERS.split()}
    return {**core, "RemoveArgument": RemoveArgument(), "RemoveStatement": RemoveStatement()}


def says_nothing(node: Any) -> bool:
    """Is this an annotation, the message of an error, what runs a script, or an argument of UNSEEN?"""
    if node.type == "operator" and node.parent.type == "parameters":
        return True  # the star of def f(x, *, y)
    while parent := node.parent:
        annotated = parent.type == "annassign" and node is parent.children[1]
        returned = parent.type == "funcdef" and node is parent.annotation
        unseen = node.type == "argument" and node.children[0].get_code(False) in UNSEEN.split()
        if annotated or returned or unseen or parent.type in ("tfpdef", "raise_stmt"):
            return True
        if parent.type == "if_stmt" and "__name__" in parent.children[1].get_code():
            return True
        node = parent
    return False


def places(path: Path) -> Iterator[tuple[str, int, int]]:
    """Every operator with the occurrences and lines where it changes this file."""
    nodes = list(ast_nodes(get_ast_from_path(path)))
    for name, operator in operators().items():
        found = ((node, start) for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, (node, start) in enumerate(found):
            if not says_nothing(node):
                yield name, occurrence, start[0]


def tests_of(path: str) -> list[str]:
    """The test files whose source names this module."""
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    parent, _, name = module.rpartition(".")
    named = rf"\b{re.escape(module)}\b(?!\.\w)"
    imported = rf"from {re.escape(parent)} import (\w+, )*{name}\b" if parent else named
    files = sorted(Path("tests").glob("test_*.py"))
    found = re.compile(f"{named}|{imported}")
    return [f"tests/{file.name}" for file in files if found.search(file.read_text())]


def group_of(path: str) -> str:
    """The group that a module belongs to: its folder, in most cases."""
    *_, folder, name = ("method", *path.split("/"))
    if folder == "diffusers_io" or (folder, name) in COMMANDS:
        return "commands"
    return "method" if folder == "tinyldm" else folder


@cache
def seconds(test: str) -> float:
    """How long this test file takes on the unbroken copy, on which it has to pass."""
    begun = time.monotonic()
    outcome, output = run_tests(command([test]), timeout=600)
    if outcome != TestOutcome.SURVIVED:
        sys.exit(f"{test} fails without a mutant:\n{output}")
    return time.monotonic() - begun


def command(tests: list[str] | tuple[str, ...]) -> str:
    return f"{sys.executable} -m pytest -x -q -p no:cacheprovider {' '.join(tests)}"


def draw(path: str, each: int, seed: int) -> list[Mutant]:
    """This many mutants of a module, with its tests, the quickest first, and three times their time."""
    found = list(places(Path(path)))
    drawn = random.Random(f"{seed} {path}").sample(found, min(each, len(found)))
    tests = tuple(sorted(tests_of(path), key=seconds)) if drawn else ()
    return [Mutant(path, *place, tests, 30 + 3 * sum(map(seconds, tests))) for place in drawn]


def enter_copy(folder: str, tree: str) -> None:
    """Go to a new copy of a tree in this folder, on one thread; a worker copies the copy as it starts."""
    copy = Path(tempfile.mkdtemp(dir=folder)) / "tree"
    shutil.copytree(tree, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(copy)}
    os.chdir(copy)


def run(mutant: Mutant) -> Result:
    """Test one mutant in the copy of this worker."""
    operator = operators()[mutant.operator]
    with use_mutation(Path(mutant.path), operator, mutant.occurrence) as (before, after):
        outcome = "survived"
        if mutant.tests:
            outcome = run_tests(command(mutant.tests), mutant.timeout)[0].value
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    diff = tuple(line for line in lines if line[0] in "+-" and line[2:].strip())
    entry = f"`{mutant.path}`: `{min(diff)[2:].strip()}`"  # the new line, or the one removed
    if outcome == "survived" and entry in ACCEPTED.read_text():
        outcome = "accepted"
    return Result(mutant, outcome, diff)


def tested(mutants: list[Mutant], folder: str, workers: int) -> Iterator[Result]:
    """The result of each mutant, by so many workers where there are as many cores; told as they come."""
    workers, start = min(workers, os.cpu_count() or 1), (folder, os.getcwd())
    with ProcessPoolExecutor(workers, initializer=enter_copy, initargs=start) as pool:
        for number, result in enumerate(pool.map(run, mutants), 1):
            path, operator, _, line, *_ = result.mutant
            print(f"{number} {result.outcome} {path}:{line} {operator}", flush=True)
            yield result


def report(results: list[Result]) -> str:
    """The share killed by module and by group, and every survivor as a diff."""
    lines = ["| | drawn | killed | accepted | survived | share |", "|---|---|---|---|---|---|"]
    for group in GROUPS:
        inside = [r for r in results if group_of(r.mutant.path) == group]
        for name in (*sorted({r.mutant.path for r in inside}), f"**{group}**"):
            count = Counter(r.outcome for r in inside if name in (r.mutant.path, f"**{group}**"))
            drawn, counted = count.total(), count.total() - count["accepted"]
            if drawn:
                share = f"{count['killed'] / counted:.0%}" if counted else "-"
                numbers = (drawn, count["killed"], count["accepted"], count["survived"], share)
                lines.append(f"| {name} | {' | '.join(map(str, numbers))} |")
    for mutant, _, diff in (r for r in results if r.outcome == "survived"):
        title = f"{mutant.path}:{mutant.line} {mutant.operator}"
        lines += ["", title, "```diff", *diff, "```"]
    return "\n".join(lines) + "\n"


def modules() -> list[str]:
    """What is mutated by default: all of the groups but the presets, which are numbers alone."""
    paths = [*ROOT.glob("train_*.py"), *ROOT.glob("tinyldm/*.py"), *ROOT.glob("tinyldm/*/*.py")]
    names = sorted(str(path.relative_to(ROOT)) for path in paths)
    return [name for name in names if group_of(name) in GROUPS and "presets" not in name]


def main(
    only: tuple[str, ...] = (),
    each: int = 20,
    seed: int = 0,
    workers: int = 2,
    out: Path | None = None,
) -> None:
    """Draw mutants of the method, training, data, evaluation and commands; print what the tests kill.

    Args:
        only: Modules, such as tinyldm/diffusion.py; all by default.
        each: Mutants drawn of each module.
        seed: Of the drawing.
        workers: Mutants tested at once.
        out: Where the report is written, too.
    """
    out = out.absolute() if out else None
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        enter_copy(folder, str(ROOT))
        mutants = [mutant for path in only or modules() for mutant in draw(path, each, seed)]
        print(f"{len(mutants)} mutants, at most {each} a module, seed {seed}", flush=True)
        results = [*tested(mutants, folder, workers)]
        os.chdir(ROOT)
    print(report(results))
    if out:
        out.write_text(report(results))


if __name__ == "__main__":
    tyro.cli(main)
