"""`infer-kit concepts eval`: accuracy on labelled images, beside its controls."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from infer_kit.cli import concept_inputs as given
from infer_kit.errors import InferKitError


def evaluate(
    encoder: given.Encoder,
    images: Annotated[
        str, typer.Argument(help="A folder with a folder of images a class; or demo-clip.")
    ],
    bank: given.Bank,
    classes: Annotated[
        str | None, typer.Option(help="As of explain; by default the names of the folders.")
    ] = None,
    template: given.Template = "a photo of a {}",
    k: given.TopK = None,
    alpha: given.Alpha = 1e-5,
    positive: given.Positive = False,
    image_mean: given.ImageMean = None,
    delete: Annotated[
        str, typer.Option(help="How many phrases to delete, with commas.")
    ] = "0,1,2,4,8,16",
    figure: Annotated[Path | None, typer.Option(help="Write a figure here.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random dictionary and deletions.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
    device: given.Device = None,
) -> None:
    """Accuracy from phrases, from the image itself, and from a dictionary of random rows.

    Then what deleting the largest phrases does, beside deleting random ones. An accuracy that a
    random dictionary has too says nothing about the phrases.
    """
    try:
        counts = [int(n) for n in delete.split(",")]
    except ValueError as error:
        raise InferKitError(f"--delete {delete!r} is no list of numbers.") from error
    if min(counts) < 0:
        raise InferKitError(f"--delete is a list of numbers from 0 on, got {delete!r}.")
    if not 0 <= seed < 2**63:
        raise InferKitError(f"--seed is a number from 0 on, below 2**63, got {seed}.")
    given.check_figure(figure)
    pictures, labels = _labelled(images)
    names = given.classes_of(classes) if classes else sorted(set(labels))

    from rich.console import Console

    from infer_kit.concepts.deletion import deletion_curve
    from infer_kit.concepts.encoders import image_features
    from infer_kit.concepts.measures import evaluate as measured

    console = Console(quiet=as_json)
    model = given.model_of(encoder, bank, names, template, k, alpha, positive, image_mean, device)
    features = image_features(model.encoder, pictures)
    found = measured(model, labels=labels, features=features, seed=seed)
    console.print(found.table())
    curve = deletion_curve(model, labels=labels, features=features, counts=counts, seed=seed)
    console.print(curve.table())
    if as_json:
        print(json.dumps({**found.to_dict(), "deletion": curve.to_dict()}))
    if figure is not None:
        console.print(f"written to {curve.figure(figure, found)}", markup=False)


def _labelled(images: str) -> tuple[list[Any], list[str]]:
    """Pictures and the class of each."""
    if images == given.DEMO:
        from infer_kit.demo.clip import held_out

        samples = held_out(200)
        return [s.picture for s in samples], [s.label for s in samples]
    root = Path(images)
    if not root.is_dir():
        raise InferKitError(f"{images!r} is no folder.")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    if not folders:
        raise InferKitError(
            f"{images!r} has no folders in it.",
            hint="Put the images of each class into a folder with its name.",
        )
    # as a CLIP should read them
    names = {folder: folder.name.replace("_", " ") for folder in folders}
    pairs = [
        (picture, names[folder]) for folder in folders for picture in given.pictures_in(folder)
    ]
    return [picture for picture, _ in pairs], [label for _, label in pairs]
