"""`ComposedLM`: a base and its rewards as one causal language model."""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import ModelOutput

from infer_kit.engine.call import end_tokens
from infer_kit.engine.coupled_lm import CoupledLM, Scores
from infer_kit.engine.model_facts import forward_parameters
from infer_kit.engine.requests import token_ids
from infer_kit.errors import InferKitError, UnsupportedArgument, VocabularyMismatch
from infer_kit.pool import product
from infer_kit.reward.loss import IGNORED
from infer_kit.reward.portable import PortableReward, check_columns, check_strength, dtype_name

RECIPE = "composed.json"


@dataclass(frozen=True)
class Part:
    r"""One model of a composition, whose scores enter with weight $w_0$ or $\beta w$.

    Attributes:
        name: how it is called in messages and recipes.
        model: a causal language model.
        weight: w, of any sign. scaled: whether β multiplies it.
        path: where it can be loaded from; None where that is not known.
        is_reward: whether `path` is a `PortableReward`.
    """

    name: str
    model: PreTrainedModel
    weight: float
    scaled: bool = True
    path: str | None = None
    is_reward: bool = False


class ComposedLM(nn.Module):
    r"""$\log \pi = z_B + \beta \sum_i w_i s_i$, up to a constant, decoded as one language model.

    It has what a causal language model of transformers has: `config`, `device`, `generate`, and a
    `forward` that gives the logits of whole sequences. Decoding runs on `CoupledLM`: one cache for
    each model, greedy search, sampling, beams, assisted decoding and streamers. A model of weight 0
    is never run. Special ids, the generation config and the chat template are those of the base.

    Made by `compose`, or by `from_pretrained`.
    """

    def __init__(
        self, parts: Sequence[Part], beta: float, vocab_size: int, labels_sha256: str = ""
    ) -> None:
        """Args:
        parts: the base first. One model may occur in several; its weights then add up.
        beta: β. vocab_size: V, how many ids have a meaning. labels_sha256: hash of that.

        Raises:
            InferKitError: a part has fewer columns than V.
        """
        super().__init__()
        for part in parts:
            check_columns(part.name, part.model, vocab_size, "tokens")
        self.labels_sha256 = labels_sha256
        self.parts = tuple(parts)
        self.vocab_size = vocab_size
        models: dict[int, PreTrainedModel] = {id(p.model): p.model for p in self.parts}
        self.members = nn.ModuleList(models.values())
        self._place = {key: place for place, key in enumerate(models)}
        self.base: PreTrainedModel = self.parts[0].model
        self.config = copy.deepcopy(self.base.config)
        self.config.get_text_config(decoder=True).vocab_size = vocab_size
        self.generation_config = copy.deepcopy(self.base.generation_config)
        self.beta = 1.0
        self.set_beta(beta)
        self.eval()

    def set_beta(self, beta: float) -> "ComposedLM":
        """Take another strength; returns the model itself.

        Raises:
            InferKitError: β is no finite number.
        """
        self.beta = check_strength(beta, "beta")
        return self

    @property
    def weights(self) -> list[float]:
        """[K] the signed weight of each distinct model, the base's first."""
        return self.weights_at(self.beta)

    def weights_at(self, beta: float) -> list[float]:
        """[K] the same at another strength."""
        weights = [0.0] * len(self.members)
        for part in self.parts:
            weights[self._place[id(part.model)]] += part.weight * (beta if part.scaled else 1.0)
        return weights

    def name_of(self, member: nn.Module) -> str:
        """The names of the parts that a member is."""
        return " and ".join(part.name for part in self.parts if part.model is member)

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def name_or_path(self) -> str:
        """The base's."""
        return str(self.base.name_or_path)

    def can_generate(self) -> bool:
        return True

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: every member has tied its own."""

    def get_input_embeddings(self) -> nn.Module:
        """The base's; assisted decoding asks for it."""
        return self.base.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.base.get_output_embeddings()

    def coupled(self) -> CoupledLM:
        """The same as a `CoupledLM`, for groups of one's own."""
        engine = CoupledLM(
            list(self.members), weights=self.weights, pool="product", vocab_size=self.vocab_size
        )
        engine.generation_config = copy.deepcopy(self.generation_config)
        return engine

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Logits of whole sequences, without a cache.

        Args:
            input_ids: `[B, T]`. attention_mask: `[B, T]`, 0 at padding.
            position_ids: `[B, T]`; default: counted by the mask, the same for every member.
            labels: `[B, T]` for the mean cross-entropy, shifted here.
            logits_to_keep: of how many last positions; 0 keeps all.

        Returns:
            `logits` `[B, T, V]` at the scale of raw logits, float32 (those of the base, untouched,
            where no other model has weight), and `loss` where labels are given.

        Raises:
            UnsupportedArgument: a cache, embeddings, or any other argument.
        """
        allowed = {
            "use_cache": (False, True),
            "return_dict": (True,),
            "output_hidden_states": (False,),
            "output_attentions": (False,),
        }
        if labels is not None and logits_to_keep:
            raise UnsupportedArgument("labels need all logits: leave logits_to_keep out.")
        for name, value in kwargs.items():
            if value is not None and value not in allowed.get(name, ()):
                raise UnsupportedArgument(
                    f"{name} cannot work here: a composed model reads whole sequences of ids.",
                    hint="generate() keeps a cache for every member.",
                )
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        inputs = {"attention_mask": attention_mask, "position_ids": position_ids}
        weights = [(m, w) for m, w in zip(self.members, self.weights, strict=True) if w]
        if not weights:
            raise InferKitError("Every member has weight 0.")
        logits = [self._scores(model, input_ids, inputs, logits_to_keep) for model, _ in weights]
        if len(weights) == 1 and weights[0][1] == 1.0:
            pooled = logits[0]
        else:
            stacked = torch.stack([part.float() for part in logits], dim=1)
            table = torch.tensor([[w for _, w in weights]], device=stacked.device)
            pooled = product(stacked, table.expand(len(stacked), -1))
        loss = None
        if labels is not None:
            scores = pooled[:, :-1].float().reshape(-1, self.vocab_size)
            loss = nn.functional.cross_entropy(scores, labels[:, 1:].reshape(-1))
        return CausalLMOutput(loss=loss, logits=pooled)

    def _scores(
        self, model: nn.Module, ids: Tensor, inputs: dict[str, Tensor | None], keep: int
    ) -> Tensor:
        taken = forward_parameters(model)
        given: dict[str, Any] = {k: v for k, v in inputs.items() if v is not None and k in taken}
        if keep and "logits_to_keep" in taken:
            given["logits_to_keep"] = keep
        logits: Tensor = model(input_ids=ids, use_cache=False, **given).logits
        if logits.shape[-1] < self.vocab_size:
            raise InferKitError(
                f"{type(model).__name__} gives {logits.shape[-1]} scores, fewer than the "
                f"vocabulary's {self.vocab_size}."
            )
        return logits[:, -keep:, : self.vocab_size] if keep else logits[..., : self.vocab_size]

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        inputs: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Continue token sequences, as `GenerationMixin.generate` of a single model does.

        Args:
            input_ids: `[B, T]`, padded on the left. attention_mask: `[B, T]`; default: as in
                transformers, 0 at pad tokens where these are no end tokens, else all ones.
                Processors, criteria and streamers see prompts without padding that all have.
            **kwargs: whatever `generate` takes and several models can do; see `CoupledLM.generate`.
                An `assistant_model` whose head is padded needs `tokenizer=` and
                `assistant_tokenizer=` beside it.

        Returns:
            What `generate` returns; sequences start with `input_ids` as given.

        Raises:
            InferKitError: padding inside or after a prompt, or a keyword that cannot work.
        """
        ids = inputs if input_ids is None else input_ids
        if not isinstance(ids, Tensor) or ids.dim() != 2:
            raise InferKitError("generate needs input_ids [B, T], token ids of the base.")
        if "weights" in kwargs or "rows" in kwargs:
            raise UnsupportedArgument(
                "A composed model has its own prompts and weights.",
                hint="Use set_beta(...), or coupled() for groups of your own.",
            )
        config = kwargs.get("generation_config") or self.generation_config
        mask = self._mask(ids, config) if attention_mask is None else attention_mask
        prompts = [row[kept.bool()] for row, kept in zip(ids, mask, strict=True)]
        for number, kept in enumerate(mask):
            if not bool(kept.any()):
                raise InferKitError(f"Prompt {number} is empty.")
            if not bool(kept[-1]) or not bool((kept.diff() >= 0).all()):
                raise InferKitError(
                    f"Prompt {number} is padded on the right or inside; pad on the left.",
                    hint='tokenizer(..., padding=True, padding_side="left")',
                )
        extra = ids.shape[1] - max(len(prompt) for prompt in prompts)
        if extra and kwargs.get("max_new_tokens", config.max_new_tokens) is None:
            longest = kwargs.get("max_length", config.max_length)
            if longest is not None:
                kwargs["max_length"] = longest - extra
        rows = [[{"input_ids": prompt[None]}] * len(self.members) for prompt in prompts]
        output = self.coupled().generate(rows, **kwargs)
        sequences = output.sequences if isinstance(output, ModelOutput) else output
        copies = len(sequences) // len(ids)
        new = sequences[:, ids.shape[1] - extra :]
        whole = torch.cat([ids.repeat_interleave(copies, 0).to(new.device), new], dim=1)
        if isinstance(output, ModelOutput):
            output.sequences = whole
            return output
        return whole

    def _mask(self, ids: Tensor, config: GenerationConfig) -> Tensor:
        pad = config.pad_token_id
        if pad is None or pad in end_tokens(config) or not bool((ids == pad).any()):
            return torch.ones_like(ids)
        return (ids != pad).long()

    def score(self, prompts: Sequence[Tensor], continuations: Sequence[Tensor]) -> Scores:
        """Log-probabilities of given continuations; see `CoupledLM.score`.

        Args:
            prompts: each `[S]` token ids, unpadded. continuations: each `[n]`.
        """
        rows = [[{"input_ids": prompt[None]}] * len(self.members) for prompt in prompts]
        return self.coupled().score(rows, continuations)

    @torch.no_grad()
    def sweep(
        self,
        prompts: Sequence[Tensor | Sequence[int]],
        continuations: Sequence[Tensor | Sequence[int]],
        betas: Sequence[float],
    ) -> dict[float, float]:
        """Mean negative log-likelihood, nats a token, of continuations at each strength.

        Every model reads every text once. Choose β on data that is not the test's: a stronger base
        may want less.

        Args:
            prompts: each `[S]` token ids, tensors or lists. continuations: each `[n]`, ids, −100
                where none counts.
            betas: strengths to try; the model's own is left as it is.
        """
        if len(prompts) != len(continuations) or not len(prompts):
            raise InferKitError(
                f"Got {len(prompts)} prompts and {len(continuations)} continuations to sweep over."
            )
        starts = [token_ids(prompt, n) for n, prompt in enumerate(prompts)]
        texts = [token_ids(text, n) for n, text in enumerate(continuations)]
        strengths = [check_strength(beta, "beta") for beta in betas]
        sums, count = dict.fromkeys(strengths, 0.0), 0
        tables = {beta: torch.tensor([self.weights_at(beta)], device=self.device) for beta in sums}
        for place, (prompt, text) in enumerate(zip(starts, texts, strict=True)):
            labels = text.to(self.device)
            counted = labels != IGNORED
            kept = labels[counted]
            if not len(prompt):
                raise InferKitError(f"Prompt {place} is empty.")
            if len(kept) and not 0 <= int(kept.min()) <= int(kept.max()) < self.vocab_size:
                raise InferKitError(
                    f"Continuation {place} has ids from {int(kept.min())} to {int(kept.max())}; "
                    f"there are {self.vocab_size} tokens."
                )
            whole = torch.cat([prompt.to(self.device), labels.masked_fill(~counted, 0)])[None]
            parts = torch.stack(
                [self._scores(m, whole, {}, len(labels) + 1)[0, :-1].float() for m in self.members]
            )[None]
            count += len(kept)
            for beta, table in tables.items():
                logprobs = product(parts[:, :, counted], table)[0].log_softmax(-1)
                sums[beta] -= float(logprobs.gather(-1, kept[:, None]).sum())
        if not count:
            raise InferKitError("No token of the continuations counts: all are -100.")
        return {beta: total / count for beta, total in sums.items()}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write how the model is made: the paths of its parts, their weights and β.

        What was changed in a part since it was loaded or saved is not written: save the part first.

        Raises:
            InferKitError: a part was never saved or loaded, so that nothing says where it is; or
                two different parts have one path.
        """
        seen: dict[tuple[str, bool], Part] = {}
        for part in self.parts:
            if not part.path:
                raise InferKitError(
                    f"{part.name} has no path to be loaded from again.",
                    hint="Save it first (reward.save_pretrained(...)), or load it from a folder.",
                )
            other = seen.setdefault((part.path, part.is_reward), part)
            if other.model is not part.model:
                raise InferKitError(
                    f"{other.name} and {part.name} are two models with one path, {part.path!r}: "
                    "at least one of them was changed since it was loaded.",
                    hint="Save the changed one and load it from its own folder.",
                )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        recipe = {
            "beta": self.beta,
            "vocab_size": self.vocab_size,
            "labels_sha256": self.labels_sha256,
            "parts": [
                {
                    "name": part.name,
                    "path": _absolute(str(part.path)),
                    "weight": part.weight,
                    "scaled": part.scaled,
                    "is_reward": part.is_reward,
                    "dtype": dtype_name(part.model),
                }
                for part in self.parts
            ],
        }
        (folder / RECIPE).write_text(json.dumps(recipe, indent=2) + "\n", "utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> "ComposedLM":
        """The model of a recipe; every part is loaded from its path.

        Args:
            **kwargs: of the parts' `from_pretrained`; `dtype` is by default what each part had.

        Raises:
            InferKitError: no recipe there, a part that is gone, or a reward for other tokens than
                those of the recipe.
        """
        file = Path(folder) / RECIPE
        if not file.is_file():
            raise InferKitError(f"{folder} holds no composed model: there is no {RECIPE}.")
        try:
            recipe = json.loads(file.read_text("utf-8"))
        except ValueError as error:
            raise InferKitError(f"{file} cannot be read: {error}") from error
        labels = recipe["labels_sha256"]
        loaded: dict[tuple[str, bool], PreTrainedModel] = {}
        parts = []
        for part in recipe["parts"]:
            key = (part["path"], part["is_reward"])
            if key not in loaded:
                loaded[key] = _loaded(part, labels, kwargs)
            parts.append(Part(model=loaded[key], **{k: v for k, v in part.items() if k != "dtype"}))
        return cls(parts, recipe["beta"], recipe["vocab_size"], labels)


def _loaded(part: dict[str, Any], labels: str, kwargs: dict[str, Any]) -> PreTrainedModel:
    path = part["path"]
    if part.get("dtype"):
        kwargs = {"dtype": getattr(torch, part["dtype"]), **kwargs}
    if Path(path).is_absolute() and not Path(path).is_dir():
        raise InferKitError(
            f"{part['name']} was at {path}, where nothing is now.",
            hint=f"Put it back, or change its path in {RECIPE}.",
        )
    if not part["is_reward"]:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, **kwargs).eval()
        return model
    reward = PortableReward.from_pretrained(path, **kwargs)
    if labels and reward.config.labels_sha256 != labels:
        raise VocabularyMismatch(
            f"The reward at {path} is one for other tokens than the composed model was made with.",
            hint="It was replaced since. Compose the model anew.",
        )
    scorer: PreTrainedModel = reward.scorer
    return scorer


def _absolute(path: str) -> str:
    """A folder's full path; names on the hub as they are."""
    return str(Path(path).resolve()) if Path(path).is_dir() else path
