"""lm-evaluation-harness's own command line, with the model `infer-kit` registered.

    python evals/lm_eval_cli.py run --model infer-kit --model_args pretrained=A,ensemble=B \
        --tasks everyday_science --include_path evals/tasks/lm_eval

Everything is `lm_eval`'s. Two things are added: version 0.4.13 looks for no plug-ins, so the model
is imported here; and its response cache is keyed by requests alone, so that one path would give
every model the answers of the first. `--use_cache PATH` is made `PATH-<hash>` here, with a hash
of the model, its arguments and the files that they name.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from infer_kit.errors import InferKitError
from infer_kit.harness.arguments import configuration_hash


def cache_path(path: str, model: str, model_args: Mapping[str, Any]) -> str:
    """The cache of one model's answers, beside those of others."""
    return f"{path}-{configuration_hash(model, model_args)}"


def with_own_cache(argv: list[str]) -> list[str]:
    """The arguments, with the cache of `--use_cache` (or of a `--config` file) a model's own."""
    from lm_eval._cli.harness import HarnessCLI
    from lm_eval.config.evaluate_config import EvaluatorConfig

    before = sys.argv
    sys.argv = list(argv)
    try:
        parsed = HarnessCLI().parse_args()
    finally:
        argv, sys.argv = sys.argv, before  # with `run` put in, where it was left out
    if getattr(parsed, "command", None) != "run":
        return argv
    config = EvaluatorConfig.from_cli(parsed)
    if not config.use_cache:
        return argv
    return [*argv, "--use_cache", cache_path(config.use_cache, config.model, config.model_args)]


def main() -> None:
    from lm_eval.__main__ import cli_evaluate

    import infer_kit.harness.lm as plugin  # registers the model

    assert plugin.InferKitLM is not None
    try:
        sys.argv = with_own_cache(sys.argv)
        cli_evaluate()
    except InferKitError as error:
        hint = f"\n{error.hint}" if error.hint else ""
        sys.exit(f"{error}{hint}")


if __name__ == "__main__":
    main()
