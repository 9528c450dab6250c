"""A base and its rewards in lm-evaluation-harness's own class for transformers' models."""

import inspect
import json
import os
from pathlib import Path
from typing import Any

from lm_eval.models.huggingface import HFLM

from infer_kit.engine.arguments import context_length
from infer_kit.errors import InferKitError
from infer_kit.harness.arguments import (
    COMPOSED,
    POOLED,
    check_model,
    check_names,
    check_reward,
    configuration_hash,
    number,
    split_names,
)
from infer_kit.harness.lm_cache import OwnCache
from infer_kit.reward.compose import compose
from infer_kit.reward.portable import PortableReward

_OF_THE_MODEL = ("attn_implementation", "load_in_4bit", "load_in_8bit", "bnb_4bit_compute_dtype")
_PLACE = ("revision", "subfolder", "gguf_file")
_NO_NAMES = ("self", "kwargs")
_SPREAD = ("parallelize", "tp_plan", "device_map", "autogptq", "gptqmodel")


class ComposedHFLM(OwnCache, HFLM):
    """`hf`, whose model is composed with rewards: for scores and for what is written.

    Without `reward=` or `tuned=` it is `hf` itself.
    """

    _model: Any
    _max_length: int | None

    def __init__(
        self,
        pretrained: Any = None,
        reward: Any = None,
        beta: float | None = None,
        tuned: str | None = None,
        untuned: str | None = None,
        **options: Any,
    ) -> None:
        """Args:
        pretrained: the base: a folder, a name on the hub, or a bundled model ("demo-text-a").
        reward: the folder of a portable reward; several with `+`.
        beta: the rewards' strength; default: what the reward was trained with, else 1.
        tuned, untuned: two models whose difference is the reward (EFT, proxy tuning).
        **options: of `hf`: dtype, device, batch_size, max_length, ...

        Raises:
            InferKitError: before anything is loaded: an unknown argument, a path that is not
                there, several processes.
        """
        given = {"reward": reward, "beta": beta, "tuned": tuned, "untuned": untuned}
        mine = {name: value for name, value in given.items() if value is not None}
        known = {n for n in inspect.signature(HFLM.__init__).parameters if n not in _NO_NAMES}
        # Those of models over bytes are known, and were refused where they are meant for several.
        check_names(options, known | {*COMPOSED, *POOLED, *_OF_THE_MODEL})
        options = {name: value for name, value in options.items() if name not in POOLED}
        self.configuration = configuration_hash(
            "infer-kit", {"pretrained": pretrained, **mine, **options}
        )
        trusted = {"trust_remote_code": bool(options.get("trust_remote_code"))}
        place = {name: options[name] for name in _PLACE if options.get(name)}
        base = check_model(pretrained, "pretrained", **trusted, **place)
        self._beta = None if beta is None else number(beta, "beta", 1.0)
        self._rewards = [] if reward is None else split_names(reward, "reward")
        for folder in self._rewards:
            check_reward(folder)
        if (tuned is None) != (untuned is None):
            raise InferKitError("tuned= and untuned= go together: their difference is the reward.")
        self._pair = tuple(
            check_model(name, what, **trusted)
            for what, name in (("tuned", tuned), ("untuned", untuned))
            if name is not None
        )
        self._base = base
        self._is_composed = bool(self._rewards or self._pair)
        if beta is not None and not self._is_composed:
            raise InferKitError("beta= is the strength of a reward.", hint="Add reward=DIR.")
        if self._is_composed:
            self._check_single(options)
        super().__init__(pretrained=base, **options)
        if self._is_composed and self._max_length is None:
            limits = [context_length(member) for member in self._model.members]
            self._max_length = min([self.max_length, *(n for n in limits if n is not None)])

    def _check_single(self, options: dict[str, Any]) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InferKitError(
                "A composed model is evaluated by one process.",
                hint="Run it without torchrun and accelerate launch; batch_size= uses the GPU.",
            )
        for name in _SPREAD:
            if options.get(name):
                raise InferKitError(f"{name}= cannot work here: a composed model is on one device.")

    def _create_model(self, *args: Any, **kwargs: Any) -> None:
        super()._create_model(*args, **kwargs)
        if not self._is_composed:
            return
        base = self._model.eval()
        dtype = kwargs.get("dtype", "auto")
        loading = {} if dtype in (None, "auto") else {"dtype": dtype}
        rewards = [self._reward(folder, base, loading) for folder in self._rewards]
        pair = tuple(self._plain(folder, base, loading, kwargs) for folder in self._pair)
        self._model = compose(
            base,
            rewards[0] if len(rewards) == 1 else rewards or None,
            self._beta,
            implicit=pair if len(pair) == 2 else None,
            tokenizer=self.tokenizer,
        )

    def _reward(self, folder: str, base: Any, loading: dict[str, Any]) -> PortableReward:
        shares = _same(_base_of_adapter(folder), self._base)
        reward = PortableReward.from_pretrained(folder, base=base if shares else None, **loading)
        reward.model.to(base.device)
        return reward

    def _plain(self, folder: str, base: Any, loading: dict[str, Any], given: Any) -> Any:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if _same(folder, self._base):
            return base
        trusted = {"trust_remote_code": bool(given.get("trust_remote_code"))}
        model = AutoModelForCausalLM.from_pretrained(folder, **trusted, **loading)
        return model.to(base.device).eval(), AutoTokenizer.from_pretrained(folder, **trusted)

    def get_model_info(self) -> dict[str, Any]:
        """What `hf` tells, and this model's configuration."""
        return {**super().get_model_info(), "infer_kit": self.configuration}


def _base_of_adapter(folder: str) -> str:
    """Where the model is that an adapter was trained on; empty for a reward that is none."""
    file = Path(folder) / "adapter_config.json"
    if not file.is_file():
        return ""
    return str(json.loads(file.read_text("utf-8")).get("base_model_name_or_path") or "")


def _same(one: str, other: str) -> bool:
    """Whether two names are one folder."""
    if not one or not other:
        return False
    paths = [Path(one), Path(other)]
    return all(path.is_dir() for path in paths) and paths[0].resolve() == paths[1].resolve()
