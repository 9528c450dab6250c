"""`infer-kit demo concepts`: a picture explained by phrases, and what explanations are worth."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infer_kit.cli.demo import check_save, quieten
from infer_kit.errors import InferKitError

if TYPE_CHECKING:
    from infer_kit.demo.clip.ways import Way


def demo_concepts(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
    save: Annotated[
        Path | None, typer.Option(help="Write the picture, its explanation and a figure here.")
    ] = None,
    pictures: Annotated[int, typer.Option(help="Held-out pictures to explain.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the held-out pictures.")] = 0,
) -> None:
    """Zero-shot concept bottlenecks on a tiny CLIP that ships, offline, within a minute.

    Explains one picture. Then, for some settings: accuracy from the phrases beside that from the
    picture itself and from a dictionary of random rows; how many of the first phrases are true; and
    what deleting the largest phrases does beside deleting random ones. It is a teaching model, and
    no evidence for the paper.

    Example: infer-kit demo concepts --save demo/
    """
    from rich.console import Console
    from rich.progress import Progress

    started = time.perf_counter()
    if pictures < 10:
        raise InferKitError(f"--pictures must be at least 10, got {pictures}.")
    if not 0 <= seed < 2**63:
        raise InferKitError(f"--seed is a number from 0 on, below 2**63, got {seed}.")
    check_save(save)
    console = Console(quiet=as_json)
    quieten()
    from infer_kit.demo.clip import held_out, ways

    with console.status("Loading the tiny CLIP"):
        world = ways.World()
        samples = held_out(pictures, seed)
    first = samples[0]
    one = world.model(ways.CENTRED).explain(first.picture)
    console.print(f"A picture of a {first.label}. It shows: {', '.join(first.phrases)}.")
    console.print(one.table())
    with Progress(console=console, transient=True, disable=as_json) as bar:
        task = bar.add_task("Explaining", total=len(ways.WAYS))
        found = ways.measured(
            world, samples, lambda way: bar.update(task, description=way, advance=1), seed
        )
    console.print(table(found, pictures))
    console.print(
        "Pairs of things in the bank: more phrases than dimensions. A random dictionary is then as "
        "accurate as the published setting, so that its accuracy says nothing of the phrases.",
        style="dim",
    )
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
        first.picture.save(save / "picture.png")
        one.figure(save / "explanation.png", first.picture)
        console.print(f"Saved picture.png, explanation.png and {deletion_figure(save, found)}.")
    seconds = time.perf_counter() - started
    console.print(f"{pictures} pictures in {seconds:.1f} s.", style="dim")
    if as_json:
        report = {
            "ways": {name: way.to_dict() for name, way in found.items()},
            "example": {"label": first.label, "true": first.phrases, **one.to_dict()},
            "n": pictures,
            "seed": seed,
            "seconds": round(seconds, 2),
        }
        print(json.dumps(report))


def table(found: "dict[str, Way]", pictures: int) -> Any:
    """The ways side by side."""
    from rich.table import Table

    columns = ("phrases", "image", "random", "nonzero", "neg.", "true", "-4 top", "-4 any")
    out = Table(title=f"Accuracy on {pictures} held-out pictures", padding=(0, 0))
    out.add_column("way", no_wrap=True)
    for column in columns:
        out.add_column(column)
    for name, way in found.items():
        e, at = way.evaluation, way.deletion.counts.index(4)
        out.add_row(
            name,
            *(f"{x.accuracy:.3f}" for x in (e.model, e.zero_shot, e.random)),
            f"{e.nonzero:.0f}/{way.phrases}",
            f"{e.negative:.0%}",
            f"{way.true:.2f}",
            *(f"{way.deletion.accuracy[order][at]:.3f}" for order in ("descending", "random")),
        )
    out.caption = (
        "read from the phrases, from the image itself, from as many random rows; phrases with "
        "weight, and its negative share; how many of the first six say what is there; accuracy "
        "without the 4 largest phrases, and without 4 random ones"
    )
    return out


def deletion_figure(save: Path, found: "dict[str, Way]") -> Path:
    """Accuracy against deleted phrases, published and centred."""
    from infer_kit.canvas import canvas, saved
    from infer_kit.demo.clip.ways import CENTRED, PUBLISHED

    drawn, axes = canvas(8.4, 3.4, 2, sharey=True)
    for ax, name in zip(axes, (PUBLISHED, CENTRED), strict=True):
        way = found[name]
        way.deletion.draw(ax, way.evaluation)
        ax.set_title(name, fontsize="small")
    axes[1].set_ylabel("")
    return saved(drawn, save / "deletion.png")
