"""Train a reward on a small language model; use it on a larger one, which is not trained.

The task: tell a story as a radio message, its sentences ended by ", over." About a minute.
"""

import random
import tempfile
from copy import deepcopy

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import infer_kit as ik
from infer_kit.demo import text
from infer_kit.demo.text import corpus
from infer_kit.training.prt import PRTTrainer

torch.set_num_threads(1)
larger, tokenizer = text.load("a")  # the new base, and the tokenizer of both


# %% Blocks of 64 tokens: ordinary stories, or such stories told over the radio.
def blocks(count, seed, radio, held_out=False):
    rng, ids = random.Random(seed), []
    while len(ids) < count * 64:
        story = corpus.text("errands", rng, held_out).body
        story = story.replace(". ", ", over. ") if radio else story
        ids += [*tokenizer(story)["input_ids"], tokenizer.eos_token_id]
    rows = torch.tensor(ids[: count * 64]).view(count, 64)
    return [{"input_ids": row, "labels": row} for row in rows]


args = TrainingArguments(
    tempfile.mkdtemp(),
    max_steps=300,
    per_device_train_batch_size=16,
    learning_rate=3e-3,
    lr_scheduler_type="cosine",
    save_strategy="no",
    report_to="none",
    use_cpu=True,
)
common = {"args": args, "processing_class": tokenizer}

# %% A small base of the same tokenizer, trained on ordinary stories.
torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2}
small = LlamaForCausalLM(LlamaConfig(vocab_size=512, num_attention_heads=4, **sizes))
Trainer(small, train_dataset=blocks(4800, seed=1, radio=False), **common).train()

# %% The reward: a copy of the small base, trained through it on radio messages.
messages = blocks(4800, seed=2, radio=True)
held_out = blocks(100, seed=3, radio=True, held_out=True)
data = {"train_dataset": messages, "eval_dataset": held_out}
trainer = PRTTrainer(deepcopy(small), base_model=small, **data, **common)
trainer.train()
print("gain on its own base:", trainer.source_gain())
folder = tempfile.mkdtemp()
trainer.save_reward(folder)

# %% On the larger base: its scores and β times the reward's are added. It may want another β.
composed = ik.compose(larger, folder, tokenizer=tokenizer)
rows = [block["input_ids"] for block in blocks(30, seed=4, radio=True, held_out=True)]
losses = composed.sweep([r[:8] for r in rows], [r[8:] for r in rows], [0.5, 1.0, 1.5, 2.0, 3.0])
composed.set_beta(min(losses, key=losses.get))
print("loss by β on validation messages:", {beta: round(loss, 2) for beta, loss in losses.items()})

ids = torch.stack([block["input_ids"] for block in held_out])
with torch.no_grad():
    before, after = (m(input_ids=ids, labels=ids).loss for m in (larger, composed))
print(f"loss on held-out messages: {before:.2f} before, {after:.2f} with β = {composed.beta}")
prompt = tokenizer("One morning, Mila", return_tensors="pt")
for name, model in {"before": larger, "with the reward": composed}.items():
    written = model.generate(**prompt, max_new_tokens=60, do_sample=False)[0]
    print(f"{name}: {tokenizer.decode(written, skip_special_tokens=True)!r}")
