"""Bring the units of one small language model into the order of another's, and merge the two.

Two GPT-2s learn the same stories, as bytes, from different random weights. Their average is of no
use: unit 5 of one is not unit 5 of the other. Which orders leave a model as it is is read from its
graph; which of them is best is found by weights, by what units do on some text, and by
the loss of the midpoint there.
"""

import random
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from infer_kit.demo.text import corpus
from infer_kit.training.symmetry import (
    activation_match,
    barrier,
    barrier_figure,
    discover,
    match,
    next_token,
    ste_match,
)

LENGTH, BATCH, STEPS, POINTS = 64, 16, 700, 7
SETTINGS = {
    "vocab_size": 128, "n_positions": LENGTH, "n_embd": 64, "n_layer": 2, "n_head": 4,
    "bos_token_id": 0, "eos_token_id": 0,
    "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
}  # fmt: skip


# %% Texts as bytes; those held out are others than those trained on.
def rows(texts: Sequence[str], count: int, seed: int) -> Tensor:
    """`[count, LENGTH]` bytes from random places."""
    ids = torch.tensor([byte for byte in "\n".join(texts).encode() if byte < 128])
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(len(ids) - LENGTH, (count, 1), generator=generator)
    return ids[start + torch.arange(LENGTH)]


def trained(seed: int) -> dict[str, Tensor]:
    """The state of a model with random weights and batches of its own."""
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(**SETTINGS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, STEPS, pct_start=0.1)
    for batch in rows(train, BATCH * STEPS, seed).split(BATCH):
        cross_entropy(*next_token(model, batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.state_dict()


torch.set_num_threads(1)
rng = random.Random(0)
train = [corpus.text(corpus.DOMAINS[0], rng).body for _ in range(400)]
held_out = rows([text.body for text in corpus.held_out(40, corpus.DOMAINS[0])], 256, seed=0)
a, b = trained(0), trained(1)

# %% Which units may be reordered, and a test of it: all of them in a random order.
model = GPT2LMHeadModel(GPT2Config(**SETTINGS))
spec = discover(model, held_out[:2])
print(spec)
print(f"in a random order the outputs differ by {spec.check(model, held_out[:2]):.0e}")

# %% Orders of b's units, by weights, by activations, by loss; then the way from a to b.
some = list(rows(train, 64, seed=2).split(16))
judge = [rows(train, 128, seed=3)]
orders = {
    "as it is": spec.identity(),
    "by weights": match(spec, a, b).perms,
    "by activations": activation_match(model, spec, a, b, some, predict=next_token).perms,
    "by loss": ste_match(
        model, spec, a, b, some, epochs=10, judge=judge, predict=next_token, progress=False
    ).perms,
}
curves = {
    name: barrier(model, a, spec.apply(perms, b), [held_out], next_token, POINTS, progress=False)
    for name, perms in orders.items()
}
print("perplexity a byte  a", " " * 38, "b   barrier in nats")
for name, curve in curves.items():
    print(f"{name:15}", *(f"{value:6.2f}" for value in curve.perplexity), f"  {curve.barrier:.2f}")

# %% Is the average worth anything?
middle = {name: curve.perplexity[curve.midpoint] for name, curve in curves.items()}
best = min(middle, key=lambda name: middle[name])
alone = min(curves[best].perplexity[0], curves[best].perplexity[-1])
print(f"best midpoint: {middle[best]:.2f}, {best}; the better of the two alone: {alone:.2f}")
if find_spec("matplotlib"):
    figure = Path(tempfile.mkdtemp()) / "merged.png"
    barrier_figure(curves, figure, measure="perplexity")
    print("figure:", figure)
