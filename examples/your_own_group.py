# %% A method of your own: the picture against the same picture without colour.
# Tokens that the grey picture explains just as well are held back (a contrastive pool).
import infer_kit as ik
from infer_kit import demo

model, processor = demo.load()
picture, question = demo.example()


def row(image):
    """What the processor returns for one unpadded prompt."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )


# %% Two contexts, one model, weights of either sign; every keyword of generate works.
lm = ik.CoupledLM([model, model], weights=[1.5, -0.5])
rows = [[row(picture), row(picture.convert("L").convert("RGB"))]]
out = lm.generate(rows, max_new_tokens=4, num_beams=3, return_dict_in_generate=True)
print("engine:", out.engines)
new = out.sequences[:, rows[0][0]["input_ids"].shape[1] :]  # the prompt comes first, as ever
print("answer:", processor.batch_decode(new, skip_special_tokens=True)[0])

# %% Score answers instead of writing one.
for word in ("red", "blue", "circle"):
    ids = processor.tokenizer(word, add_special_tokens=False)["input_ids"]
    print(f"log π({word}) = {lm.score(rows, [ids]).pooled[0].sum():.2f}")


# %% A pool of your own: the stream that is surer of itself counts more.
def by_certainty(step: ik.Step):
    entropy = -(step.logprobs.exp() * step.logprobs).sum(-1)  # [R, K, n]
    return (-entropy).softmax(1)


sure = ik.CoupledLM([model, model], weights=by_certainty, pool="mixture")
ids = sure.generate(rows, max_new_tokens=4)[:, rows[0][0]["input_ids"].shape[1] :]
print("by certainty:", processor.batch_decode(ids, skip_special_tokens=True)[0])
