"""What the verbs of concept bottlenecks share: encoders, classes, pictures, the model."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infer_kit.errors import InferKitError

if TYPE_CHECKING:
    from infer_kit.concepts.cbm import ZeroShotCBM

DEMO = "demo-clip"

Encoder = Annotated[
    str,
    typer.Argument(
        help="A CLIP or SigLIP folder or hub name, or an open_clip folder; demo-clip is bundled."
    ),
]
Bank = Annotated[Path, typer.Option(help="A folder that `infer-kit concepts build` wrote.")]
Classes = Annotated[
    str, typer.Option(help="A file with a name a line, names with commas, or demo-clip.")
]
Template = Annotated[str, typer.Option(help="What a class name is put in.")]
TopK = Annotated[int | None, typer.Option("--k", help="Phrases to choose among. [2048]")]
Alpha = Annotated[float, typer.Option(help="Of scikit-learn's Lasso; λ = alpha · d.")]
Positive = Annotated[bool, typer.Option("--positive", help="Weights ≥ 0.")]
ImageMean = Annotated[
    Path | None,
    typer.Option(help="A folder of images like yours: phrases and images are centred."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ….")]

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FIGURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")


def lines_of(path: Path, option: str) -> list[str]:
    """The lines of a file that are not empty."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InferKitError(f"{option} {str(path)!r} cannot be read: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def classes_of(given: str) -> list[str]:
    """Class names of `--classes`."""
    if given == DEMO:
        from infer_kit.demo.clip import CLASSES

        return list(CLASSES)
    if os.path.isfile(given):  # Path.is_file raises where names are long
        return lines_of(Path(given), "--classes")
    names = [name.strip() for name in given.split(",") if name.strip()]
    if len(names) < 2:
        raise InferKitError(
            f"--classes {given!r} is no file, and no list of two or more names.",
            hint="Give a file with a name a line, or names with commas: cat,dog.",
        )
    return names


def pictures_in(folder: Path) -> list[str]:
    """The image files of a folder, sorted."""
    if not folder.is_dir():
        raise InferKitError(f"{str(folder)!r} is no folder of images.")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not found:
        raise InferKitError(
            f"{str(folder)!r} has no images.", hint=f"Looked for {', '.join(PICTURES)}."
        )
    return [str(path) for path in found]  # by which errors name them


def check_figure(figure: Path | None) -> None:
    """Raise unless a figure can be written to this file."""
    if figure is not None and (figure.suffix.lower() not in FIGURES or figure.is_dir()):
        raise InferKitError(
            f"--figure {str(figure)!r} is no name of a figure.",
            hint=f"Give a file that ends with one of {', '.join(FIGURES)}.",
        )


def check_device(device: str | None) -> None:
    """Raise unless torch has this device here."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InferKitError(
            f"--device {device!r} cannot be used here: {str(error).splitlines()[0]}"
        ) from error


def model_of(
    encoder: str,
    bank: Path,
    classes: list[str],
    template: str,
    k: int | None,
    alpha: float,
    positive: bool,
    image_mean: Path | None,
    device: str | None,
) -> "ZeroShotCBM":
    """The concept bottleneck that the options describe; warnings are printed, not raised."""
    from infer_kit.cli.demo import quieten
    from infer_kit.cli.eval import quiet
    from infer_kit.concepts.bank import ConceptBank
    from infer_kit.concepts.cbm import ZeroShotCBM
    from infer_kit.concepts.encoders import encoder_for, image_features
    from infer_kit.concepts.lasso import lasso_lambda

    check_device(device)
    lasso_lambda(alpha, 1)  # what can be wrong is said before anything is loaded
    (quieten if encoder == DEMO else quiet)()
    loaded_bank = ConceptBank.load(bank, mmap=True)
    options: dict[str, Any] = {}
    loaded = encoder_for(encoder, device)
    if image_mean is not None:
        mean = image_features(loaded, pictures_in(image_mean)).mean(0)
        options = {"center": "modality", "image_mean": mean}
    return ZeroShotCBM(
        loaded, loaded_bank, classes, template=template, k=k, alpha=alpha,
        positive=positive or None, device=device, **options,
    )  # fmt: skip
