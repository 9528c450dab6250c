"""`infer-kit explain`: one answer as a page that shows which stream moved each token."""

from pathlib import Path
from typing import Annotated

import typer

from infer_kit.cli import one_question as ask
from infer_kit.errors import InferKitError


def explain(
    model: ask.Model,
    question: ask.Question,
    out: Annotated[Path, typer.Option(help="The page to write.")],
    image: ask.Images = None,
    method: ask.Method = "red",
    weight: ask.Weight = None,
    set_: ask.Set = None,
    with_: ask.With = None,
    demonstrations: ask.Demonstrations = None,
    max_new_tokens: ask.MaxNewTokens = 64,
    candidates: Annotated[
        int, typer.Option(help="How many of each stream's best tokens are kept.")
    ] = 10,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite a file that is no page of this kind.")
    ] = False,
) -> None:
    """Answer one question and write a page: what each stream read and did to each token.

    The page is one file that asks for nothing else. Its slider shows what other weights would have
    chosen. A page of an earlier call is overwritten.
    """
    from infer_kit.cli.eval import quiet
    from infer_kit.explanation.page import check_target

    # all that can be wrong is said before the model is loaded
    request = ask.request_of(
        question, image, method, weight, set_, with_, demonstrations, max_new_tokens
    )
    if candidates < 1:
        raise InferKitError(f"--candidates is a number from 1 on, got {candidates}.")
    check_target(out, force)

    from infer_kit.explanation import explain as explained
    from infer_kit.named_models import load_model

    quiet()
    recipe = request.recipe(load_model(model), True)
    page = explained(
        recipe, request.chat, candidates, max_new_tokens=max_new_tokens, **request.inputs
    )
    page.save(out, force)
    print(page.text)
    typer.echo(f"written to {out}", err=True)
