# %% A method of your own: what would be said of a black picture is held back.
from PIL import Image

import infer_kit as ik
from infer_kit import demo
from infer_kit.backends import backend_for
from infer_kit.chats import load_images
from infer_kit.demo.scenes import held_out
from infer_kit.explanation import explain
from infer_kit.methods.recipe import WeightedRecipe
from infer_kit.testing import assert_order_law, assert_zero_law


class AgainstBlack(WeightedRecipe):
    r"""$\pi \propto p(y \mid x, q)^{1+\alpha} / p(y \mid \mathrm{black}, q)^{\alpha}$"""

    knob = "alpha"  # what sweeps, KL budgets and sliders move; at 0 it is the plain model

    def __init__(self, model, processor, alpha=0.5, beta=0.1):
        self.backend = backend_for(model, processor)
        self.alpha, self.plausibility = alpha, beta

    def stream_weights(self, value):
        return [1 + value, -value]

    def groups(self, chats, memory=None):
        return [self.one(load_images(chat, b), b) for b, chat in enumerate(chats)]

    def one(self, chat, b):
        black = [{**turn, "content": [*map(blacked, turn["content"])]} for turn in chat]
        contexts = [self.backend.render(c, b) for c in (chat, black)]
        parts = zip(contexts, self._initial_weights(), ("image", "black"), strict=True)
        return ik.Group(tuple(ik.Stream(*part) for part in parts))


def blacked(part):
    if part["type"] != "image":
        return part
    return {"type": "image", "image": Image.new("RGB", part["image"].size)}


# %% It answers, with a trace of what each stream added, in nats over the runner-up.
model, processor = demo.load()
records = held_out(24)
asked = [
    ({"type": "image", "image": r.picture}, {"type": "text", "text": r.question}) for r in records
]
chats = [[{"role": "user", "content": [*parts]}] for parts in asked]
method = AgainstBlack(model, processor)
out = method.generate(chats, max_new_tokens=4)
print(out.text[0], out.trace[0].streams, out.trace[0].parts.round(1).tolist())

# %% Its streams obey the laws; a sweep and a page come with the class.
rows = [stream.context for stream in method.group(chats[0]).streams]
assert_zero_law(model, rows)
assert_order_law(model, rows, weights=[1.5, -0.5])
answers = [record.answer for record in records]
sweep = method.sweep(chats, answers, weights=[0, 0.5, 1], max_new_tokens=4, progress=False)
print("right by alpha:", dict(zip(sweep.weights, sweep.accuracy.round(2).tolist(), strict=True)))
print("page of:", explain(method, chats[0], max_new_tokens=4).text)  # .save("page.html")
