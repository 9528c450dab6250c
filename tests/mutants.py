"""Seeded faults in the engine: each must turn a test red. Run by hand: `python tests/mutants.py`.

Every mutant of `tests/faults.py` and of the files `tests/faults_of_*.py` is one textual change in
a copy of the package. The tests named with it are run on the copy, first without any change, when
all must pass, then with it, when one must fail. A mutant whose text is no longer in its file is
stale, and counts as a failure.

    python tests/mutants.py                 # all of them
    python tests/mutants.py crop positions  # those whose name contains one of the words
    python tests/mutants.py vllm:           # in an environment with vLLM: those of groups inside it
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.faults import MUTANTS as ENGINE_MUTANTS
from tests.faults import Mutant
from tests.faults_of_concepts import CONCEPT_MUTANTS
from tests.faults_of_evaluation import EVALUATION_MUTANTS
from tests.faults_of_explanation import EXPLANATION_MUTANTS
from tests.faults_of_harness import HARNESS_MUTANTS
from tests.faults_of_methods import METHOD_MUTANTS
from tests.faults_of_representation import REPRESENTATION_MUTANTS
from tests.faults_of_rewards import REWARD_MUTANTS
from tests.faults_of_symmetry import SYMMETRY_MUTANTS
from tests.faults_of_tickets import TICKET_MUTANTS
from tests.faults_of_vllm import VLLM_MUTANTS
from tests.faults_of_vocab import VOCAB_MUTANTS

ROOT = Path(__file__).resolve().parents[1]
MUTANTS = (
    *ENGINE_MUTANTS,
    *METHOD_MUTANTS,
    *VOCAB_MUTANTS,
    *REWARD_MUTANTS,
    *VLLM_MUTANTS,
    *EVALUATION_MUTANTS,
    *EXPLANATION_MUTANTS,
    *HARNESS_MUTANTS,
    *CONCEPT_MUTANTS,
    *REPRESENTATION_MUTANTS,
    *SYMMETRY_MUTANTS,
    *TICKET_MUTANTS,
)


def _copy(folder: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("infer_kit", "tests", "evals"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)


def _run(folder: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """Exit code of pytest on the copy, and the line of the first failure."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    lines = (done.stdout + done.stderr).splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return done.returncode, failed[0][:100] if failed else lines[-1] if lines else ""


def _verdict(mutant: Mutant) -> tuple[bool, str]:
    """Whether the mutant was killed, and how."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _copy(folder)
        file = folder / "infer_kit" / mutant.file
        text = file.read_text()
        if text.count(mutant.old) != 1:
            return False, f"stale: its text is {text.count(mutant.old)} times in {mutant.file}"
        file.write_text(text.replace(mutant.old, mutant.new))
        code, line = _run(folder, mutant.tests)
    if code == 1:
        return True, line
    return False, "survived" if code == 0 else f"pytest ended with code {code}: {line}"


def main(words: list[str]) -> int:
    chosen = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    if not chosen:
        print(f"No mutant is called so; there are: {', '.join(m.name for m in MUTANTS)}.")
        return 1
    tests = tuple(sorted({test for mutant in chosen for test in mutant.tests}))
    print(f"without a fault: {' '.join(tests)}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        _copy(Path(name))
        code, line = _run(Path(name), tests)
    print(f"  {line}", flush=True)
    if code != 0:
        print("The tests fail without a fault; mend that first.")
        return 1
    survivors = []
    for number, mutant in enumerate(chosen, start=1):
        start = time.monotonic()
        killed, how = _verdict(mutant)
        if not killed:
            survivors.append(mutant.name)
        mark = "killed  " if killed else "SURVIVED"
        took = f"{time.monotonic() - start:.0f} s"
        print(f"{number:3}/{len(chosen)} {mark} {mutant.name} ({took}): {how}", flush=True)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants killed.")
    for name in survivors:
        print(f"survived: {name}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
