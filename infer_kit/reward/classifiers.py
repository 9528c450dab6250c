"""`ComposedClassifier`: a base classifier and its rewards as one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from infer_kit.errors import InferKitError
from infer_kit.reward.composition import compose_logprobs, compose_shared
from infer_kit.reward.portable import check_strength


@dataclass(frozen=True)
class Tilt:
    """A classifier whose scores are added with a weight.

    Attributes:
        model: gives `logits` `[B, L]`. weight: of any sign, before β.
    """

    model: nn.Module
    weight: float


class ComposedClassifier(nn.Module):
    r"""$\log \pi = \mathrm{log\_softmax}(z_B + \beta \sum_i w_i r_i)$ over the base's classes.

    Args:
        base: the base classifier. tilts: of the rewards.
        beta: β. num_labels: L, how many classes.
        id_map: base class to reward class, where the reward knows only some of the classes, or
            under other numbers; the others keep their probability. With one reward only.
    """

    def __init__(
        self,
        base: nn.Module,
        tilts: Sequence[Tilt],
        beta: float,
        num_labels: int,
        id_map: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__()
        if id_map is not None and len(tilts) != 1:
            raise InferKitError(f"id_map is for one reward, got {len(tilts)}.")
        self.base = base
        self.rewards = nn.ModuleList(tilt.model for tilt in tilts)
        self.reward_weights = [tilt.weight for tilt in tilts]
        self.num_labels = num_labels
        self.id_map = None if id_map is None else dict(id_map)
        self.config = getattr(base, "config", None)
        self.beta = 1.0
        self.set_beta(beta)
        self.eval()

    def set_beta(self, beta: float) -> "ComposedClassifier":
        """Take another strength; returns the model itself."""
        self.beta = check_strength(beta, "beta")
        return self

    def forward(
        self, *args: Any, reward_inputs: Mapping[str, Any] | None = None, **inputs: Any
    ) -> SequenceClassifierOutput:
        """Classify.

        Args:
            **inputs: of the base, and of the rewards as well unless `reward_inputs` says theirs
                (another size of image, another tokenizer).

        Returns:
            `logits` `[B, L]`: log-probabilities, float32; the base's own logits where β or all
            weights are 0. `loss`, cross-entropy, where `labels` `[B]` are given.
        """
        labels = inputs.pop("labels", None)
        base = self._scores(self.base, args, inputs)
        strengths = [self.beta * weight for weight in self.reward_weights]
        if any(strengths):
            theirs = (args, inputs) if reward_inputs is None else ((), reward_inputs)
            running = [
                (self._scores(model, *theirs), strength)
                for model, strength in zip(self.rewards, strengths, strict=True)
                if strength
            ]
            logits = self._tilted(base, running)
        else:
            logits = base[:, : self.num_labels]
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def sweep(
        self, batches: Sequence[Mapping[str, Any]], betas: Sequence[float]
    ) -> dict[float, float]:
        """Mean cross-entropy, nats, of labelled batches at each strength.

        Args:
            batches: what `forward` takes, with `labels`.
        """
        before, count = self.beta, 0
        sums = {check_strength(beta, "beta"): 0.0 for beta in betas}
        try:
            for batch in batches:
                labels = batch["labels"]
                count += len(labels)
                for beta in sums:
                    loss = self.set_beta(beta)(**batch).loss
                    sums[beta] += float(loss) * len(labels)
        finally:
            self.set_beta(before)
        if not count:
            raise InferKitError("There are no labelled batches to sweep over.")
        return {beta: total / max(count, 1) for beta, total in sums.items()}

    def _scores(self, model: nn.Module, args: Sequence[Any], inputs: Mapping[str, Any]) -> Tensor:
        out = model(*args, **inputs)
        logits: Tensor = out if isinstance(out, Tensor) else out.logits
        return logits

    def _tilted(self, base: Tensor, running: Sequence[tuple[Tensor, float]]) -> Tensor:
        if self.id_map is None:
            rewards, strengths = zip(*running, strict=True)
            return compose_logprobs(base, rewards, strengths, vocab_size=self.num_labels)
        ((reward, strength),) = running
        mine, theirs = (
            torch.tensor(list(ids), device=base.device)
            for ids in (self.id_map.keys(), self.id_map.values())
        )
        return compose_shared(base[:, : self.num_labels], reward, mine, theirs, strength)
