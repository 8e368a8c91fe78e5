"""Would the tests notice? One-token mistakes, each made in a copy of the library, each of which some test must catch.

`python -m tests.mutants` tries them all (half an hour), or those of the files that it is given, and exits with 1 if
one survives. Not a test itself.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mutants import bridge, core, results, scoring, studies
from tests.mutants.mutant import Mutant

ROOT = Path(__file__).parents[2]

MUTANTS = [mutant for room in (bridge, core, results, scoring, studies) for mutant in room.MUTANTS]


def failing(tests: list[str], mutant: Mutant | None = None) -> list[str]:
    """Names of the tests that fail, or of the first of them, in a copy of the library with a mistake or without.

    Args:
        tests: Arguments of pytest.
        mutant: The mistake.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("positional_heads", "tests", "docs"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, copy)
        if mutant is not None:
            file = copy / "positional_heads" / mutant.file
            source = file.read_text()
            if source.count(mutant.right) != 1:
                raise ValueError(f"{mutant.file} does not hold {mutant.right!r} once: renew the mutant")
            file.write_text(source.replace(mutant.right, mutant.wrong))
        first = ["-x"] if mutant else []
        command = [sys.executable, "-m", "pytest", *first, "-q", "-rfE", "-p", "no:cacheprovider", *tests]
        ended = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
        said = [line for line in ended.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        if ended.returncode != bool(said):  # 1 where tests fail, 0 where none does, another where none could be run
            raise RuntimeError(f"{' '.join(tests)}: could not be run\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}")
        return [line.split(" ", 1)[1].split(" - ")[0] for line in said]


def main() -> None:
    """Try every mutant, or those of the files that are named; tests that catch one must pass without it."""
    caught: set[str] = set()
    surviving = 0
    for mutant in (one for one in MUTANTS if len(sys.argv) == 1 or one.file in sys.argv[1:]):
        names, _, chosen = mutant.tests.partition(" -k ")
        files = [str(path.relative_to(ROOT)) for name in names.split() for path in (ROOT / "tests").glob(f"{name}*.py")]
        if not files:
            raise ValueError(f"{mutant.file}: no test file is called {names}")
        found = failing([*files, *(["-k", chosen] if chosen else [])], mutant)
        caught.update(found)
        surviving += not found
        print("caught  " if found else "SURVIVES", mutant.file, mutant.right.splitlines()[0], flush=True)  # noqa: T201
    anyway = failing(sorted(caught)) if caught else []
    print(f"{surviving} survive; fail without a mistake: {' '.join(anyway) or 'none'}")  # noqa: T201
    sys.exit(1 if surviving or anyway else 0)


if __name__ == "__main__":
    main()
