"""`infer-kit concepts build`: a bank of phrases for an encoder."""

from pathlib import Path
from typing import Annotated

import typer

from infer_kit.cli import concept_inputs as given
from infer_kit.errors import InferKitError


def build(
    encoder: given.Encoder,
    out: Annotated[Path, typer.Option(help="The folder of the bank.")],
    phrases: Annotated[
        str | None, typer.Option(help="A file with a phrase a line; wordnet, demo-clip.")
    ] = None,
    captions: Annotated[
        Path | None, typer.Option(help="A file with a caption a line; noun phrases are taken.")
    ] = None,
    tagger: Annotated[
        str, typer.Option(help="Of captions: lexicon, nltk, spacy:<pipeline>.")
    ] = "lexicon",
    classes: Annotated[
        str | None, typer.Option(help="Names that may not be phrases; see explain --classes.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="What a phrase is put in.")] = "{}",
    longest: Annotated[int, typer.Option(help="Characters of the longest phrase kept.")] = 20,
    dtype: Annotated[str, typer.Option(help="float32, or float16 for half the size.")] = "float32",
    deduplicate: Annotated[
        float | None,
        typer.Option(help="Drop phrases with this cosine, or more, to an earlier one (0.95)."),
    ] = None,
    near_classes: Annotated[
        float | None,
        typer.Option(help="Drop phrases with this cosine, or more, to a class name (0.9)."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Texts encoded at a time.")] = 256,
    device: given.Device = None,
) -> None:
    """Encode phrases, and save them with their features.

    A build that was cut off goes on where it stopped. What is left out is counted.
    """
    if (phrases is None) == (captions is None):
        raise InferKitError("Give --phrases or --captions.")
    if near_classes is not None and classes is None:
        raise InferKitError("--near-classes needs --classes.")
    for option, cosine in (("--deduplicate", deduplicate), ("--near-classes", near_classes)):
        if cosine is not None and not 0 < cosine <= 1:
            raise InferKitError(f"{option} is a cosine above 0, at most 1, got {cosine}.")
    if batch_size < 1:
        raise InferKitError(f"--batch-size is a number from 1 on, got {batch_size}.")
    out = out if out.name else out.resolve()
    if (out / "bank.json").exists():
        raise InferKitError(
            f"{str(out)!r} holds a bank.", hint="Give another folder, or delete this one."
        )
    names = given.classes_of(classes) if classes else []
    filtered = deduplicate is not None or near_classes is not None

    from infer_kit.cli.demo import quieten
    from infer_kit.cli.eval import quiet
    from infer_kit.concepts.bank import ConceptBank
    from infer_kit.concepts.encoders import encoder_for

    given.check_device(device)
    texts = _phrases(phrases, captions, tagger, longest)
    (quieten if encoder == given.DEMO else quiet)()
    model = encoder_for(encoder, device)
    whole = out.with_name(out.name + ".all") if filtered else out
    bank = ConceptBank.build(
        texts, model, prompt, names, longest, dtype,  # type: ignore[arg-type]
        folder=whole, batch_size=batch_size,
    )  # fmt: skip
    if near_classes is not None:
        bank = bank.without(names, model, near_classes)
    if deduplicate is not None:
        bank = bank.deduplicated(deduplicate)
    if filtered:
        bank.save(out)
        typer.echo(f"all phrases are in {whole}", err=True)
    for why, n in bank.dropped.items():
        if n:
            typer.echo(f"left out: {n:,} {why}", err=True)
    print(f"{len(bank):,} phrases of {bank.dim} numbers in {out}")


def _phrases(phrases: str | None, captions: Path | None, tagger: str, longest: int) -> list[str]:
    from infer_kit.concepts.phrases import noun_phrases, wordnet_nouns

    if captions is not None:
        lines = given.lines_of(captions, "--captions")
        return noun_phrases(lines, tagger, longest, progress=True)
    if phrases == given.DEMO:
        from infer_kit.demo.clip import PHRASES

        return list(PHRASES)
    if phrases == "wordnet":
        return wordnet_nouns(longest)
    return given.lines_of(Path(str(phrases)), "--phrases")
