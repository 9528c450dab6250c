"""`infer-kit concepts`: zero-shot concept bottlenecks."""

import typer

from infer_kit.cli.concepts_build import build
from infer_kit.cli.concepts_eval import evaluate
from infer_kit.cli.concepts_explain import explain

_BANK = "--bank bank/ --classes demo-clip"

concepts = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Explain images as short lists of phrases, and read their class from these.",
    epilog="Example: infer-kit concepts build demo-clip --phrases demo-clip --out bank/",
)
concepts.command(
    epilog="Example: infer-kit concepts build demo-clip --phrases demo-clip --out bank/"
)(build)
concepts.command(
    epilog=f"Example: infer-kit concepts explain demo-clip picture.png {_BANK} --figure page.png"
)(explain)
concepts.command(
    "eval", epilog="Example: infer-kit concepts eval demo-clip demo-clip --bank bank/"
)(evaluate)
