"""Run the engine's tests on several releases of transformers. By hand: `python tests/versions.py`.

    python tests/versions.py                    # the floor of pyproject.toml, 5.19.0 and the newest
    python tests/versions.py 5.20.0 newest      # these releases
    python tests/versions.py path/to/overlay    # a folder to be put on PYTHONPATH, as it is

Every release is installed into a folder of its own, which is laid over the running interpreter's
packages: transformers alone, and those of its requirements that these do not meet. Prints passed,
failed and skipped for each, and writes evals/results/versions.json. The exit code is 1 if a test
failed anywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "evals" / "results" / "versions.json"
TESTS = ("tests/engine", "tests/methods", "tests/reward", "tests/vocab", "tests/test_pool.py")
PIP = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")


def floor() -> str:
    """The lowest release that pyproject.toml allows."""
    found = re.search(r'"transformers>=([\d.]+)', (ROOT / "pyproject.toml").read_text())
    assert found, "pyproject.toml names no lowest transformers"
    return found.group(1)


def overlay(release: str, folder: Path) -> str:
    """Install a release into `folder`; what to put on PYTHONPATH."""
    wanted = "transformers" if release == "newest" else f"transformers=={release}"
    subprocess.run([*PIP, "--no-deps", "--target", str(folder), wanted], check=True)
    unmet = [str(need) for need in _requirements(folder) if not _met(need)]
    if unmet:
        print(f"transformers {release} needs besides: {', '.join(unmet)}", flush=True)
        subprocess.run([*PIP, "--target", str(folder / "besides"), *unmet], check=True)
    return os.pathsep.join([str(folder), str(folder / "besides")])


def _requirements(folder: Path) -> list[Requirement]:
    (package,) = metadata.distributions(name="transformers", path=[str(folder)])
    needs = [Requirement(text) for text in package.requires or ()]
    return [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]


def _met(need: Requirement) -> bool:
    try:
        return need.specifier.contains(metadata.version(need.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


def run(path: str, tests: tuple[str, ...]) -> dict[str, Any]:
    """The verdicts of the tests with `path` on PYTHONPATH."""
    environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        report = Path(name) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider"]
        subprocess.run([*command, f"--junitxml={report}", *tests], cwd=ROOT, env=environment,
                       stdout=subprocess.DEVNULL, check=False)  # fmt: skip
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    verdicts = Counter(_verdict(case) for case in cases)
    failures = sorted(_name(case) for case in cases if _verdict(case) == "failed")
    reasons = Counter(skip.get("message", "") for case in cases for skip in case.iter("skipped"))
    return {
        **_versions(environment),
        **{verdict: verdicts[verdict] for verdict in ("passed", "failed", "skipped")},
        "seconds": round(time.monotonic() - start),
        "failures": failures,
        "skip_reasons": dict(sorted(reasons.items())),
    }


def _verdict(case: ElementTree.Element) -> str:
    kinds = {child.tag for child in case}
    if kinds & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in kinds else "passed"


def _name(case: ElementTree.Element) -> str:
    return f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"


def _versions(environment: dict[str, str]) -> dict[str, str]:
    code = "import torch, transformers; print(transformers.__version__, torch.__version__)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, cwd=ROOT,
                          capture_output=True, text=True, check=True)  # fmt: skip
    transformers, torch = done.stdout.split()[-2:]
    return {"transformers": transformers, "torch": torch}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("releases", nargs="*", default=[floor(), "5.19.0", "newest"])
    parser.add_argument("--tests", nargs="+", default=list(TESTS))
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the results go")
    arguments = parser.parse_args()
    results = []
    for release in arguments.releases:
        with tempfile.TemporaryDirectory() as name:
            given = all(Path(part).is_dir() for part in release.split(os.pathsep))
            path = release if given else overlay(release, Path(name))
            results.append(run(path, tuple(arguments.tests)))
        shown = ("transformers", "passed", "failed", "skipped", "seconds")
        print("  ".join(f"{key} {results[-1][key]}" for key in shown), flush=True)
        for failure in results[-1]["failures"]:
            print(f"    {failure}", flush=True)
    document = {
        "tests": arguments.tests,
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, CPU",
        "releases": results,
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return int(any(result["failed"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
