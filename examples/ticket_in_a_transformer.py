"""Find a lottery ticket in a small transformer, save it, and let another process write with it.

No weight is ever trained: a score for each decides whether it stays. The text is what the package
makes up about children and their things, as bytes.
"""

import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from infer_kit.demo.text import corpus
from infer_kit.training.tickets import EdgePopup, Ticket, TopK, fit, make_ticket, warm_up_cosine

LENGTH, BATCH, STEPS = 64, 32, 900
PROMPT = "One morning, "
SETTINGS = {
    "vocab_size": 128, "n_positions": 192, "n_embd": 64, "n_layer": 2, "n_head": 4,
    "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0, "loss_type": "ForCausalLM",
    "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
}  # fmt: skip


# %% Texts as bytes; those held out are others than those searched on.
def rows(texts: list[str], count: int, seed: int) -> Tensor:
    """`[count, LENGTH]` bytes from random places."""
    ids = torch.tensor([byte for byte in "\n".join(texts).encode() if byte < 128])
    start = torch.randint(
        len(ids) - LENGTH, (count, 1), generator=torch.Generator().manual_seed(seed)
    )
    return ids[start + torch.arange(LENGTH)]


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(input_ids=batch, labels=batch).loss


def search(qk_scale: str | None) -> Ticket:
    """A ticket that keeps half of every tensor, embeddings among them."""
    model = GPT2LMHeadModel(GPT2Config(**SETTINGS))
    ticket = make_ticket(model, 0, "signed_constant", TopK(0.5), include=["*"], qk_scale=qk_scale)
    found = EdgePopup(ticket)
    optimizer = torch.optim.AdamW(found.groups(weight_decay=0.0), lr=2e-2)
    schedule = warm_up_cosine(optimizer, STEPS, warm_up=20)
    fit(model, batches, loss, 1, optimizer, schedule, search=found, per_step=True)
    model.eval()
    with torch.no_grad():
        print(f"qk_scale={qk_scale}: {loss(model, held_out):.3f} nats a byte on held-out text")
    return ticket


def write(model: nn.Module) -> str:
    prompt = torch.tensor([list(PROMPT.encode())])
    torch.manual_seed(0)
    ids = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=100,
        do_sample=True,
        temperature=0.6,
    )
    return bytes(ids[0].tolist()).decode()


# %% In another process: nothing but the file.
if len(sys.argv) > 1:
    print(write(Ticket.load(sys.argv[1]).materialize()))
    sys.exit()

# %% Search: queries and keys as drawn, then larger by the fourth root of a head's width.
torch.set_num_threads(1)
rng = random.Random(0)
domain = corpus.DOMAINS[0]
train = [corpus.text(domain, rng).body for _ in range(400)]
held_out = rows([text.body for text in corpus.held_out(40, domain)], 256, seed=0)
batches = rows(train, BATCH * STEPS, seed=0).split(BATCH)
tickets = {scale: search(scale) for scale in (None, "n**0.25")}

# %% Save one; another process writes the same text.
ticket = tickets[None]
file = Path(tempfile.mkdtemp()) / "ticket.safetensors"
ticket.save(file)
print(ticket.bits())
text = write(ticket.model)
print(text)
again = subprocess.run(
    [sys.executable, __file__, str(file)], capture_output=True, text=True, check=True
).stdout
print("another process writes the same:", again.rstrip("\n") == text.rstrip("\n"))
