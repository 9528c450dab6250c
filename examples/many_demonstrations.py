# %% Sixteen demonstrations in four contexts: each chunk with the query, one pooled answer.
import infer_kit as ik
from infer_kit.demo import icl

model, processor = icl.load()
(episode,) = icl.held_out(1, shots=16)  # made-up words, bound anew to colours or shapes
demonstrations = episode.records()
query = [episode.query.turn()]

# %% fit() reads every chunk once; a query then costs its own few tokens.
picl = ik.ParallelICL(model, processor, chunks=4).fit(demonstrations)
out = picl.generate(query, max_new_tokens=2)
print("question:", episode.query.question, "| true answer:", episode.query.answer)
print("answer:", out.text, "| weights:", [round(w, 2) for w in out.weights])

# %% Which chunk decided, and how far the chunks disagree (Jensen-Shannon divergence, nats).
trace = out.trace
for chunk, name in enumerate(trace.streams):
    print(name, "wanted", trace.top[0][chunk], "and added", round(trace.parts[0][chunk], 2))
print("divergence:", trace.divergence.round(2).tolist())

# %% One chunk without the bank is plain full-context generate().
full = ik.ParallelICL(model, processor, chunks=1, bank=False).fit(demonstrations)
print("full context:", full.generate(query, max_new_tokens=2).text)
