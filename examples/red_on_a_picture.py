# %% Rationale-enhanced decoding on one picture, with the tiny model that ships.
# With a model of your own: load it and its processor with transformers, and leave out `prompts`.
from rich.console import Console
from transformers import TextStreamer

import infer_kit as ik
from infer_kit import demo

model, processor = demo.load()
picture, question = demo.example()
messages = [
    {
        "role": "user",
        "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}],
    }
]

# %% The answer, streamed; then the rationale that the second stream read.
red = ik.RED(model, processor, weight=1.0, prompts=demo.PROMPTS)
streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
out = red.generate(messages, max_new_tokens=8, streamer=streamer)
print("question: ", question)
print("rationale:", out.rationale)
print("answer:   ", out.text)

# %% What each stream added to each token, and whether the rationale decided one.
Console().print(out.trace.table())
print("the rationale mattered:", out.trace.mattered("rationale"))
