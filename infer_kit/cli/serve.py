"""`infer-kit serve`: vLLM's OpenAI server, with methods."""

import os
import sys
from importlib.metadata import entry_points

import typer

from infer_kit.errors import InferKitError

_SET_HERE = ("--scheduler-cls", "--logits-processors", "--worker-extension-cls")


def serve(context: typer.Context, model: str = typer.Argument(help="A model, as vLLM's.")) -> None:
    """Serve a model over HTTP as vLLM does; chat requests may name a method.

    Every option of `vllm serve` works under its own name. A chat request names a method in
    `vllm_xargs`, for example {"method": "red", "weight": 0.5}.
    """
    given = list(context.args)
    for option in given:
        name = option.split("=")[0].replace("_", "-")
        if name in _SET_HERE:
            raise InferKitError(
                f"{name} is set by infer-kit serve: groups of streams need their own.",
                hint=f"Leave out {name}, or use vllm serve with all of {list(_SET_HERE)}.",
            )
    from infer_kit.vllm.names import PLUGIN, PROCESSOR, SCHEDULER, WORKER, check_version

    check_version()
    # a list of plug-ins keeps others out, so it names all that would have been loaded
    if "VLLM_PLUGINS" in os.environ:
        names = {*filter(None, os.environ["VLLM_PLUGINS"].split(",")), PLUGIN}
    else:
        names = {p.name for p in entry_points(group="vllm.general_plugins")} | {PLUGIN}
    os.environ["VLLM_PLUGINS"] = ",".join(sorted(names))
    plugins = ("--scheduler-cls", SCHEDULER, "--logits-processors", PROCESSOR)
    _serve([model, *given, *plugins, "--worker-extension-cls", WORKER])


def _serve(arguments: list[str]) -> None:
    """`vllm serve`, whose own main looks for a distribution that CPU builds are not called."""
    from vllm.entrypoints.cli.serve import cmd_init
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    sys.argv = ["vllm", "serve", *arguments]  # parts of vLLM look at it
    parser = FlexibleArgumentParser(prog="infer-kit")
    subparsers = parser.add_subparsers(dest="subparser")
    (command,) = cmd_init()
    command.subparser_init(subparsers)
    args = parser.parse_args(["serve", *arguments])
    command.validate(args)
    command.cmd(args)
