# %% What does the picture add? Contrast it with its noised self, or with no picture at all.
from rich.console import Console

import infer_kit as ik
from infer_kit import demo
from infer_kit.demo.scenes import held_out

model, processor = demo.load()
records = held_out(48)
chats = [
    [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": record.picture},
                {"type": "text", "text": record.question},
            ],
        }
    ]
    for record in records
]

# %% Four ways to answer. A budget sets the weight of each token: 0.1 nats away from plain.
ways = {
    "plain": ik.CFG(model, processor, scale=1.0),
    "VCD": ik.VCD(model, processor, alpha=1.0, beta=0.1, noise_step=999),
    "CFG": ik.CFG(model, processor, scale=1.5),
    "VCD, kl:0.1": ik.VCD(model, processor, alpha="kl:0.1", noise_step=999),
}
outs = {name: method.generate(chats, max_new_tokens=4) for name, method in ways.items()}
for name, out in outs.items():
    right = sum(text == record.answer for text, record in zip(out.text, records, strict=True))
    print(f"{name:12} {right} of {len(records)} right")

# %% The first question on which contrast and plain differ, and what each stream added.
plain, contrasted = outs["plain"].text, outs["VCD"].text
b = next(b for b in range(len(records)) if plain[b] != contrasted[b])
print(records[b].question, {name: out.text[b] for name, out in outs.items()}, records[b].answer)
Console().print(outs["VCD"].trace[b].table())
print("weights under the budget:", outs["VCD, kl:0.1"].trace[b].weights.round(2).tolist())
