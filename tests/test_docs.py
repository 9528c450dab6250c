"""The pages: the site builds, links lead somewhere, blocks print what they say, options exist."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(
    r"(?P<mark><!-- [^\n]* -->\n)?^```(?P<kind>[a-z]*)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_BETWEEN = "\x1e"
_COMMAND = re.compile(
    r"^(?:(?P<cli>infer-kit (?:concepts [a-z]+|demo (?:icl|concepts)|[a-z]+))|"
    r"(?:python|torchrun --nproc_per_node \d+) (?P<script>evals/[\w/]+\.py))\b(?P<rest>.*)$"
)


def of_pages(pages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=lambda path: path.stem)


def blocks(page: Path) -> list[re.Match[str]]:
    return list(_BLOCK.finditer(page.read_text(encoding="utf-8")))


def prose(page: Path) -> str:
    """The page without its blocks and code in lines."""
    return re.sub(r"`[^`\n]*`", "`…`", _BLOCK.sub("", page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    """Of the headings, as git hosts and the site make them."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.strip().lower())
        found.add(plain.replace(" ", "-"))
    return found


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("latex2mathml")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    built = {page.stem for page in PAGES if page.parent.name == "docs"} - {"index"}
    assert {path.parent.name for path in tmp_path.glob("*/index.html")} == built
    assert not list(tmp_path.rglob("*.py"))
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="((?:https?:)?//[^"]*)', text)
        assert not loaded, f"{page} fetches {loaded}"
        assert "arithmatex" not in text, f"{page} has a formula that was not drawn"


@of_pages(PAGES)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in _LINK.finditer(prose(page)):
        path, _, anchor = link["target"].partition("#")
        if path.startswith(("http://", "https://", "mailto:")):
            continue
        target = (page.parent / path).resolve() if path else page
        lost = anchor and target.suffix == ".md" and anchor not in anchors(target)
        if not target.exists() or lost:
            broken.append(link["target"])
    assert not broken


@of_pages(PAGES)
def test_lists_and_tables_begin_after_an_empty_line(page: Path) -> None:
    """Git hosts see them anyway; Python-Markdown, which makes the site, does not."""
    lines = _BLOCK.sub(lambda block: "\n" * (block[0].count("\n") + 1), page.read_text("utf-8"))
    wrong, before = [], ""
    for line in lines.splitlines():
        for begins in ("* ", "|"):
            if line.startswith(begins) and before and not before.startswith((begins, "  ")):
                wrong.append(line)
        before = line
    assert not wrong


def with_output(page: Path) -> list[tuple[str, str | None]]:
    """Python of a page that is run, with what it must print: what a block without a language says
    right after it; None under a mark `<!-- runs -->`."""
    found: list[tuple[str, str | None]] = []
    every = blocks(page)
    text = page.read_text(encoding="utf-8")
    for block, after in zip(every, [*every[1:], None][: len(every)], strict=True):
        if block["kind"] != "python":
            continue
        if after is not None and not after["kind"] and text[block.end() : after.start()] == "\n":
            found.append((block["body"], after["body"]))
        elif block["mark"] == "<!-- runs -->\n":
            found.append((block["body"], None))
    return found


@of_pages([page for page in PAGES if with_output(page)])
def test_blocks_print_what_the_page_says(page: Path, tmp_path: Path) -> None:
    wanted = with_output(page)
    script = tmp_path / "blocks.py"
    script.write_text(f"\nprint({_BETWEEN!r})\n".join(code for code, _ in wanted), "utf-8")
    run = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    printed = run.stdout.split(f"{_BETWEEN}\n")
    for (code, output), ours in zip(wanted, printed, strict=True):
        if output is not None:
            assert stripped(ours) == stripped(output), code


def stripped(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def test_the_commands_of_the_quickstart_run(tmp_path: Path) -> None:
    """In order, in one folder; the comparison prints what the page says."""
    page = ROOT / "docs" / "quickstart.md"
    from infer_kit import demo

    demo.example()[0].save(tmp_path / "picture.png")
    marked = [b["body"] for b in blocks(page) if b["mark"] == "<!-- runs -->\n"]
    folder = str(Path(sys.executable).parent)
    path = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "200"}
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(marked)],
        cwd=tmp_path, env=path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    (said,) = [b["body"] for b in blocks(page) if b["body"].startswith("difference")]
    assert said in run.stdout


def test_the_page_shows_the_example_whole() -> None:
    shown = {block["body"] for block in blocks(ROOT / "docs" / "extending.md")}
    code = (ROOT / "examples" / "your_own_method.py").read_text(encoding="utf-8")
    assert code in shown
    assert len(code.splitlines()) <= 60


def test_every_page_is_in_the_list_of_pages() -> None:
    index = prose(ROOT / "docs" / "index.md")
    links = {link["target"] for link in _LINK.finditer(index)}
    assert {page.name for page in PAGES} - {"index.md", "README.md"} <= links


def commands(page: Path) -> Iterator[str]:
    """The command lines of a page, those on several lines as one."""
    for block in blocks(page):
        if block["kind"] in ("bash", "") and "```" not in block["body"]:
            yield from block["body"].replace("\\\n", " ").splitlines()
    yield from re.findall(r"`([^`\n]+)`", _BLOCK.sub("", page.read_text(encoding="utf-8")))


@of_pages(PAGES)
def test_commands_have_the_options_that_pages_name(page: Path) -> None:
    for line in commands(page):
        found = _COMMAND.match(line.strip())
        if found is None:
            continue
        words = shlex.split(found["rest"].replace("…", "x"), comments=True)
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= options_of(found), line


@of_pages([ROOT / "docs" / f"{name}.md" for name in ("papers", "evaluating")])
def test_runs_of_pages_are_refused_for_their_data_alone(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their methods, tasks and options exist: all that stops them is that the file is not here."""
    from evals.sweep import sweep
    from infer_kit.cli import app

    sweeps = typer.Typer()
    sweeps.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
        sweep
    )
    monkeypatch.chdir(tmp_path)
    tried = 0
    for line in commands(page):
        found = _COMMAND.match(line.strip().replace("$m", "demo"))
        if found is None or "--data " not in found["rest"] or "--data demo" in found["rest"]:
            continue
        words = shlex.split(found["rest"], comments=True)
        swept = found["script"] == "evals/sweep.py"
        run = CliRunner().invoke(sweeps if swept else app, words if swept else ["eval", *words])
        assert re.search(r"data file .* does not exist", str(run.exception)), line
        tried += 1
    assert tried > 5


def options_of(found: re.Match[str]) -> set[str]:
    """What a command takes."""
    if found["cli"]:
        verb = found["cli"].split()[1]
        if verb == "serve":  # everything else goes on to vLLM
            return set(re.findall(r"--[\w-]+", found["rest"]))
        return of_cli(*found["cli"].split()[1:])
    script = found["script"]
    assert (ROOT / script).is_file(), script
    name = script.removesuffix(".py").replace("/", ".")
    if script == "evals/run.py":
        return of_cli("eval")
    if script.startswith("evals/data/"):
        return of_parser(name)
    if script in ("evals/sweep.py", "evals/report.py", "evals/tables.py"):
        app = typer.Typer()
        app.command()(getattr(importlib.import_module(name), script[6:-3]))
        own = of_typer(app, [])
        return own | of_cli("eval") if script == "evals/sweep.py" else own
    return set(re.findall(r"--[\w-]+", found["rest"]))  # benchmarks and launchers


@cache
def of_cli(*verb: str) -> set[str]:
    from infer_kit.cli import app

    return of_typer(app, [*verb])


def of_typer(app: typer.Typer, verb: list[str]) -> set[str]:
    wide = {"COLUMNS": "200", "TERMINAL_WIDTH": "200", "NO_COLOR": "1"}
    shown = CliRunner().invoke(app, [*verb, "--help"], env=wide)
    assert shown.exit_code == 0, shown.output
    return set(re.findall(r"--[a-z][\w-]*", re.sub(r"\x1b\[[\d;]*m", "", shown.output)))


@cache
def of_parser(name: str) -> set[str]:
    run = subprocess.run(
        [sys.executable, "-m", name, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    return set(re.findall(r"--[a-z][\w-]*", run.stdout))


def test_the_samples_on_the_page_are_samples(tmp_path: Path) -> None:
    from PIL import Image

    from infer_kit.evaluation.samples import read_samples

    (lines,) = [b["body"] for b in blocks(ROOT / "docs" / "evaluating.md") if b["kind"] == "json"]
    for name in re.findall(r"[\w/]+\.png", lines):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    (tmp_path / "test.jsonl").write_text(lines, "utf-8")
    assert len(read_samples(tmp_path / "test.jsonl")) == len(lines.splitlines())
