"""`infer-kit concepts explain`: images as short weighted lists of phrases."""

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from infer_kit.cli import concept_inputs as given
from infer_kit.errors import InferKitError


def explain(
    encoder: given.Encoder,
    images: Annotated[list[str], typer.Argument(help="Picture files or URLs.")],
    bank: given.Bank,
    classes: given.Classes,
    template: given.Template = "a photo of a {}",
    k: given.TopK = None,
    alpha: given.Alpha = 1e-5,
    positive: given.Positive = False,
    image_mean: given.ImageMean = None,
    top: Annotated[int, typer.Option(help="Phrases that are shown.")] = 16,
    delete: Annotated[
        list[str] | None,
        typer.Option(help="A phrase to take out, of images that have it; repeatable."),
    ] = None,
    insert: Annotated[
        list[str] | None,
        typer.Option(help="A phrase to add, or phrase=weight; repeatable."),
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Write a figure here; of several images a folder.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object an image and nothing else.")
    ] = False,
    device: given.Device = None,
) -> None:
    """Show which phrases an image is made of, and the class that they give.

    Phrases are chosen by a certified lasso; under the table is what a reader should know of it.
    After --delete and --insert the table is shown again.
    """
    if top < 1:
        raise InferKitError(f"--top is a number from 1 on, got {top}.")
    if figure is not None and len(images) > 1 and figure.suffix and not figure.is_dir():
        raise InferKitError("--figure takes a folder where several images are given.")
    if len(images) == 1:
        given.check_figure(figure)
    stems = [Path(name).stem for name in images]
    alike = len(set(stems)) < len(stems)
    names = given.classes_of(classes)
    further = _weighted(insert or [])

    from rich.console import Console

    from infer_kit.images import open_image

    console = Console(quiet=as_json)
    opened = [open_image(image, f"Image {n}") for n, image in enumerate(images)]
    model = given.model_of(encoder, bank, names, template, k, alpha, positive, image_mean, device)
    for n, found in enumerate(model.explain(opened)):
        name, picture = images[n], opened[n]
        console.print(Path(name).name, style="bold", markup=False, highlight=False)
        console.print(found.table(top))
        there = [phrase for phrase in delete or () if found.has(phrase)]
        if delete and not there and len(images) > 1:
            console.print(f"{', '.join(delete)}: no weight here.", markup=False)
        elif delete:
            found = found.delete(delete if len(images) == 1 else there)
            console.print(f"without {', '.join(there)}:", markup=False)
            console.print(found.table(top))
        if insert:
            found = found.insert(further)
            console.print(f"with {', '.join(insert)}:", markup=False)
            console.print(found.table(top))
        if figure is not None:
            file = f"{n + 1} {stems[n]}.png" if alike else f"{stems[n]}.png"
            path = figure if len(images) == 1 else figure / file
            console.print(f"written to {found.figure(path, picture, top)}", markup=False)
        if as_json:
            print(json.dumps({"image": name, **found.to_dict()}))


def _weighted(texts: list[str]) -> list[str] | dict[str, float]:
    """Phrases, or phrases with weights."""
    if not any("=" in text for text in texts):
        return texts
    out: dict[str, float] = {}
    for text in texts:
        phrase, _, weight = text.rpartition("=")
        if phrase in out:
            raise InferKitError(f"--insert gives {phrase!r} twice.")
        try:
            out[phrase] = float(weight)
        except ValueError:
            out[phrase] = math.nan
        if not math.isfinite(out[phrase]):
            raise InferKitError(
                f"--insert {text!r} is no phrase=weight.",
                hint="Give all of them with a weight, or none.",
            )
    return out
