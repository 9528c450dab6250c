"""lm-evaluation-harness keys its cache by requests alone; a cache belongs to one model here."""

from typing import Any

from infer_kit.errors import InferKitError

_KEY = "infer_kit configuration"


class OwnCache:
    """Mixin of models of lm-evaluation-harness: a cache of another model's answers is refused.

    Attributes:
        configuration: what `configuration_hash` gives for the model.
    """

    configuration: str

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Called with the cache of `--use_cache`, before any request."""
        answers = getattr(cache_hook, "dbdict", None)
        if answers is not None:
            written = answers.get(_KEY)
            if written is None and len(answers):
                raise InferKitError(
                    "The cache of --use_cache holds answers of another model.",
                    hint="Give another path, or evals/lm_eval_cli.py, which makes one a model.",
                )
            if written not in (None, self.configuration):
                raise InferKitError(
                    f"The cache of --use_cache was made with other model arguments (configuration "
                    f"{written}, now {self.configuration}); its keys do not tell them apart.",
                    hint="Give another path, or evals/lm_eval_cli.py, which makes one a model.",
                )
            answers[_KEY] = self.configuration
        super().set_cache_hook(cache_hook)  # type: ignore[misc]
