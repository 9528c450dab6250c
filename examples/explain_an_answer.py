# %% One answer explained: which stream moved each token, and what other weights would have chosen.
import tempfile
from pathlib import Path

import infer_kit as ik
from infer_kit import demo
from infer_kit.explanation import explain
from infer_kit.explanation.recomputed import recomputed

model, processor = demo.load()
picture, question = demo.example()
content = [{"type": "image", "image": picture}, {"type": "text", "text": f"{question} explain ."}]
chat = [{"role": "user", "content": content}]

# %% A rationale that contradicts the picture. Where does the answer follow it?
red = ik.RED(model, processor, weight=1.0, prompts=demo.PROMPTS)
rationale = "the red triangle is at a1 . up is b1 . right is b2 . b2 has a purple circle ."
explanation = explain(red, chat, rationale=rationale, max_new_tokens=32)
print("answer:", explanation.text)

# %% The page: one file for a browser, without a network. On a command line: infer-kit explain.
page = explanation.save(Path(tempfile.mkdtemp()) / "page.html")
print("page:", page.name, f"({page.stat().st_size // 1000} kB)")

# %% What its slider shows: the choice at each token under other weights, and how many are certain.
for weight in (0.0, 0.5, 1.0, 2.0):
    choices = recomputed(explanation.trace, explanation.controls.weights([weight]))
    certain = sum(choice.certain for choice in choices)
    print(f"weight {weight}:", *(choice.text for choice in choices), f"({certain} certain)")
