"""Two language models with different tokenizers write one text, and score one."""

from transformers import TextStreamer

import infer_kit as ik
from infer_kit.demo import text

members = [text.load(name) for name in text.NAMES]  # (model, tokenizer) pairs
for name, (model, tokenizer) in zip(text.NAMES, members, strict=True):
    cut = tokenizer.tokenize("Mila has a red lantern.")
    print(f"{name}: {len(tokenizer)} tokens, {model.num_parameters():,} parameters, {cut}")

ensemble = ik.Ensemble(members, weights="bayes")
print("\nthe ensemble goes on from half a word, streamed:")
out = ensemble.generate(
    "One morning, Mi",
    max_new_tokens=120,  # bytes
    streamer=TextStreamer(ensemble.tokenizer, skip_prompt=True),
)
print(f"pooled over {out.alphabet}; each law within {out.tv_bound:.1e} of the exact one")
print(f"model calls {out.calls}, rows {out.rows}, leak {[f'{leak:.1e}' for leak in out.leak]}")

story = out.text[: out.text.rfind(".") + 1] or out.text
score = ensemble.logprob(story, prompt="One morning, Mi")
for name, (low, high) in zip(text.NAMES, score.members, strict=True):
    print(f"log P of it under {name}: between {low:.4f} and {high:.4f}")
print(f"under the ensemble: between {score.low:.4f} and {score.high:.4f}")
print(f"                    {score.bits_per_byte:.3f} bits a byte")
