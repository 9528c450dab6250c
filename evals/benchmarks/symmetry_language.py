"""Two small language models of different seeds: perplexity on the line between them."""

from __future__ import annotations

import random
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from infer_kit.demo.text import corpus
from infer_kit.training.symmetry import (
    Curve,
    PermSpec,
    activation_match,
    barrier,
    discover,
    match,
    next_token,
)

LENGTH, BATCH = 48, 32
State = dict[str, Tensor]


@dataclass(frozen=True)
class Languages:
    """Two GPT-2s on stories as bytes.

    Attributes:
        steps: of training from a start of each one's own. tuning: of fine-tuning from one start.
        width: of the residual stream, 4 heads.
    """

    steps: int
    tuning: int
    width: int

    def run(self) -> tuple[dict[str, Curve], list[str]]:
        """Curves by pair and alignment, and the groups of the attention."""
        torch.set_num_threads(1)
        model = _model(self.width, 0)
        held = list(_rows(128, seed=1, held_out=True).split(64))
        spec = discover(model, {"input_ids": held[0][:2]})
        one, two = (_trained(_model(self.width, s), self.steps, 10 + s) for s in (0, 1))
        curves = self._curves(model, spec, one, two, held, "two starts")
        # From one start, on other texts, and one with its units in another order.
        shared = [_trained(_loaded(self.width, one), self.tuning, 20 + s, 3e-4) for s in (0, 1)]
        moved = spec.apply(spec.random(0), shared[1])
        curves |= self._curves(model, spec, shared[0], moved, held, "one start, shuffled")
        return curves, [group for group in spec.groups if "attn" in group]

    def _curves(
        self, model: nn.Module, spec: PermSpec, a: State, b: State, held: list[Tensor], pair: str
    ) -> dict[str, Curve]:
        data = list(_rows(64, seed=2).split(32))
        orders = {
            "as they are": spec.identity(),
            "matched by weights": match(spec, a, b).perms,
            "matched by activations": activation_match(
                model, spec, a, b, data, predict=next_token
            ).perms,
        }
        return {
            f"{pair}, {name}": barrier(
                model, a, spec.apply(perms, b), held, next_token, steps=7, progress=False
            )
            for name, perms in orders.items()
        }


def _model(width: int, seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=128, n_positions=LENGTH, n_embd=width, n_layer=2, n_head=4, bos_token_id=0,
        eos_token_id=0, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def _loaded(width: int, state: State) -> GPT2LMHeadModel:
    model = _model(width, 0)
    model.load_state_dict(state)
    return model


def _rows(count: int, seed: int, held_out: bool = False) -> Tensor:
    """`[count, LENGTH]` bytes of stories, from random places."""
    rng = random.Random(seed)
    domain = corpus.DOMAINS[0]
    texts = (
        [text.body for text in corpus.held_out(40, domain)]
        if held_out
        else [corpus.text(domain, rng).body for _ in range(200)]
    )
    ids = torch.tensor([byte for byte in "\n".join(texts).encode() if byte < 128])
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(len(ids) - LENGTH, (count, 1), generator=generator)
    return ids[start + torch.arange(LENGTH)]


def _trained(model: GPT2LMHeadModel, steps: int, seed: int, lr: float = 2e-3) -> State:
    """By AdamW, down to 0 as a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for ids in _rows(steps * BATCH, seed).split(BATCH):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        plan.step()
    return deepcopy(dict(model.state_dict()))
