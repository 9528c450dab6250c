"""Any method of this package as a model of lmms-eval."""

import itertools
import json
import os
from collections.abc import Sequence
from typing import Any

from infer_kit.errors import InferKitError, MissingExtra, UnsupportedArgument
from infer_kit.evaluation.few_shot import shot_of
from infer_kit.evaluation.samples import read_samples
from infer_kit.harness.arguments import check_model
from infer_kit.harness.generation import (
    before_stop,
    device_for,
    read_batch_size,
    read_generation,
)
from infer_kit.methods.named import build, canonical, checked_options, class_of
from infer_kit.methods.parallel_icl import ParallelICL
from infer_kit.named_models import load_model

try:
    from lmms_eval.api.model import lmms
    from tqdm import tqdm
except ImportError as error:
    raise MissingExtra(
        "lmms-eval is not installed.", hint="pip install lmms_eval==0.7.3"
    ) from error

_LOADING = ("dtype", "attn_implementation", "trust_remote_code")
_MARK = "<image>"
_DEFAULT_TOKENS = 256


class InferKitLMMS(lmms):
    """A method and the model that it wraps.

    `generate_until` alone: what a method pools is what it writes. An exception ends the run; there
    are no empty answers in its place.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str | None = None,
        method: str = "direct",
        demonstrations: str | None = None,
        device: str | None = None,
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        """Args:
        pretrained: a folder, a name on the hub, or a bundled model ("demo", "demo-icl").
        method: a name of `infer_kit.methods.named.CLASSES`: direct, red, parallel_icl, vcd, ...
        demonstrations: of parallel_icl, a JSONL file of answered samples; of several answers
            to one the most common is shown.
        **options: the method's, by their names; and dtype, attn_implementation,
            trust_remote_code.

        Raises:
            InferKitError: before anything is loaded: an unknown method or option, a file or a
                model that is not there, several processes.
        """
        super().__init__()
        loading = {name: options.pop(name) for name in _LOADING if name in options}
        self.method = canonical(method)
        checked_options(method, options)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InferKitError(
                "infer-kit is evaluated by one process here.",
                hint="Run it without torchrun and accelerate launch; batch_size= uses the GPU.",
            )
        if issubclass(class_of(method), ParallelICL) != (demonstrations is not None):
            raise InferKitError(
                f"method={method} and demonstrations={demonstrations}: parallel_icl learns from "
                "demonstrations, and no other method does.",
                hint="demonstrations=shots.jsonl, answered samples, a line each.",
            )
        samples = () if demonstrations is None else read_samples(demonstrations)
        shots = [shot_of(sample).turns() for sample in samples]
        self._batch_size = read_batch_size(1 if batch_size is None else batch_size)
        trusted = bool(loading.get("trust_remote_code"))
        check_model(pretrained, "pretrained", trust_remote_code=trusted)
        named = load_model(str(pretrained), device=device_for(device), **loading)
        self.recipe = build(
            method, named.model, named.processor, options, named.prompts, trace=False
        )
        if isinstance(self.recipe, ParallelICL):
            self.recipe.fit(shots)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The method's answer to each (context, gen_kwargs, doc_to_visual, doc_id, task, split)."""
        asked = [request.args for request in requests]
        settings = [read_generation(kwargs, _DEFAULT_TOKENS) for _, kwargs, *_ in asked]
        texts = [""] * len(asked)
        bar = tqdm(total=len(asked), desc=self.method, disable=self.rank != 0)

        def alike(n: int) -> str:
            return json.dumps(settings[n], sort_keys=True)

        for _, group in itertools.groupby(sorted(range(len(asked)), key=alike), alike):
            numbers = list(group)
            for start in range(0, len(numbers), self._batch_size):
                batch = numbers[start : start + self._batch_size]
                chats = [self._chat(asked[n]) for n in batch]
                kwargs, stops, tokens = settings[batch[0]]
                further = self._stopping(stops)
                out = self.recipe.generate(chats, max_new_tokens=tokens, **kwargs, **further)
                for n, text in zip(batch, out.text, strict=True):
                    texts[n] = before_stop(text, stops)
                bar.update(len(batch))
        bar.close()
        return texts

    def _stopping(self, stops: list[str]) -> dict[str, Any]:
        """Keywords that end an answer at a stop text.

        None where transformers cannot look for one with the model's tokenizer: the answer is then
        written to its limit and cut at the same place.
        """
        if not stops:
            return {}
        further = {"stop_strings": stops}
        try:
            self.recipe.backend.check(1, **further)
        except UnsupportedArgument:
            return {}
        return further

    def _chat(self, args: tuple[Any, ...]) -> list[dict[str, Any]]:
        """One user's turn: the document's pictures, and the context's text."""
        context, _, doc_to_visual, doc_id, task, split = args
        shown = doc_to_visual(self.task_dict[task][split][doc_id])
        pictures = [] if shown is None else shown if isinstance(shown, list) else [shown]
        return [{"role": "user", "content": parts(context, pictures, f"{task} {doc_id}")}]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refused: lmms-eval asks for it with whole documents, and few tasks do."""
        raise InferKitError(
            "infer-kit has no loglikelihood in lmms-eval.",
            hint="Take a task with output_type generate_until; from Python, Recipe.sweep scores "
            "candidates.",
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refused: a method answers one chat."""
        raise InferKitError("infer-kit answers one round in lmms-eval, not several.")


def parts(text: str, pictures: Sequence[Any], where: str) -> list[dict[str, Any]]:
    """Content of a turn: pictures where the text says `<image>`, else before it."""
    for picture in pictures:
        if not isinstance(picture, str) and not hasattr(picture, "convert"):
            raise InferKitError(
                f"{where}: expected pictures, got a {type(picture).__name__}.",
                hint="Video and audio are not read here.",
            )
    images = [{"type": "image", "image": picture} for picture in pictures]
    pieces = text.split(_MARK)
    if not images or len(pieces) != len(images) + 1:
        return [*images, {"type": "text", "text": text}]
    content: list[dict[str, Any]] = []
    for piece, image in itertools.zip_longest(pieces, images):
        if piece.strip():
            content.append({"type": "text", "text": piece})
        if image is not None:
            content.append(image)
    return content
