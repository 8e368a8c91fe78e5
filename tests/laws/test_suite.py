"""The suite is kept up: its folders mirror the rooms, its lists name existing files, and every mutant can be made."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import jaxtyping
import pytest
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import Float
from torch import Tensor

import positional_heads as ph
from tests.mutants.__main__ import MUTANTS

TESTS = Path(__file__).parents[1]
PACKAGE = Path(ph.__file__).parent
FAMILIES = TESTS / "support" / "tiny_models.py"
MAKEFILE = (TESTS.parent / "Makefile").read_text().replace("\\\n", " ")


def words(name):
    """A list of the Makefile."""
    return re.search(rf"^{name} = (.*)$", MAKEFILE, flags=re.MULTILINE).group(1).split()


def test_every_folder_of_tests_is_a_room_or_serves_all_of_them():
    folders = {path.name for path in TESTS.iterdir() if path.is_dir() and path.name != "__pycache__"}
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == rooms | {"laws", "support", "mutants"}


def test_the_oldest_versions_run_files_that_exist():
    assert all((TESTS / folder).is_dir() for folder in words("HOST_TESTS"))
    for file in words("SAME_IN_BOTH"):
        assert (TESTS / f"{file}.py").is_file(), file


def names(file):
    """Names of a file's tests and every text in it, among which are the names of its cases."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("room", sorted({mutant.file.partition("/")[0] for mutant in MUTANTS}))
def test_every_mutant_can_be_made_and_names_tests_that_exist(room):
    for mutant in (one for one in MUTANTS if one.file.startswith(f"{room}/")):
        assert (PACKAGE / mutant.file).read_text().count(mutant.right) == 1, mutant
        prefixes, _, word = mutant.tests.partition(" -k ")
        files = [file for prefix in prefixes.split() for file in TESTS.glob(f"{prefix}*.py")]
        assert files, mutant
        assert any(word in name for file in (*files, FAMILIES) for name in names(file)), mutant


def test_a_function_within_a_function_gets_its_type_checks_once_and_has_them_always():
    made = []

    def scaled(by):
        @jaxtyping.jaxtyped(typechecker=lambda function: made.append(function) or beartype(function))
        def scale(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
            return by * (x + y) if by else x[:1]

        return scale

    two, three, wrong, ones = scaled(2), scaled(3), scaled(0), torch.ones(4)
    assert len(made) == 2  # one of the arguments alone, and one with the result
    for function, arguments in ((two, (ones, ones[:3])), (three, (1, ones)), (wrong, (ones, ones))):
        with pytest.raises(jaxtyping.TypeCheckError):
            function(*arguments)
        assert (two(ones, ones)[0], three(ones, y=ones)[0]) == (4, 6)


MADE: list[object] = []
violating = beartype(conf=BeartypeConf(violation_type=TypeError))  # as the error of jaxtyping is
checked = jaxtyping.jaxtyped(typechecker=lambda function: MADE.append(function) or violating(function))


@checked
@dataclass
class Plain:
    number: int

    @checked
    def more(self, by: int) -> "Plain":
        return Plain(self.number + by) if by else by  # type: ignore[return-value]


@checked
def deep(x: list[Float[Tensor, " n"]] | None, y: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    return y if x else y[:1]


@checked
def as_long(n: int, x: Float[Tensor, " {n}"]) -> Float[Tensor, " {n}"]:
    return x if n < 3 else x[:2]


@checked
def named_by_a_text(x: "Float[Tensor, ' n']", y: "Float[Tensor, ' n']") -> "Float[Tensor, ' n'] | Unknown":
    return x + y


def test_what_names_no_shape_is_checked_by_the_type_checker_alone_and_shapes_within_one_memory_of_sizes():
    """Arguments and results of each kind; a shape may be deep in an annotation, or depend on an argument."""
    made = [function.__qualname__ for function in MADE]
    assert made == ["Plain.more", "Plain.__init__", "deep", *2 * ["as_long"], *2 * ["named_by_a_text"]]
    two, three = torch.ones(2), torch.ones(3)
    assert Plain(1).more(2) == Plain(3)
    assert torch.equal(deep([two], two), two)
    assert torch.equal(deep([three], three), three)  # no size is kept from one call to the next
    assert torch.equal(as_long(2, two), named_by_a_text(two, two) / 2)
    for wrong in (
        lambda: Plain("1"),
        lambda: Plain(1).more("1"),
        lambda: Plain(1).more(0),
        lambda: deep([two], three),
        lambda: deep([two], [2]),
        lambda: deep(None, two),
    ):
        with pytest.raises(TypeError, match=r"violates type hint"):
            wrong()
    for wrong in (lambda: as_long(3, two), lambda: as_long(3, three), lambda: named_by_a_text(two, three)):
        with pytest.raises(jaxtyping.TypeCheckError):
            wrong()
