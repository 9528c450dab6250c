# %% Replace the rationale and see whether the answer moves.
import infer_kit as ik
from infer_kit import demo
from infer_kit.demo.scenes import held_out

model, processor = demo.load()
records = [record for record in held_out(24) if record.kind == "walk"]
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

# %% Its own rationale, the next question's, none, and the true one.
red = ik.RED(model, processor, weight=1.0, prompts=demo.PROMPTS)
outs = red.intervene(
    chats,
    kinds=("own", "shuffled", "empty", "given"),
    given=[record.rationale for record in records],
    max_new_tokens=4,
)
for kind, out in outs.items():
    right = sum(text == record.answer for text, record in zip(out.text, records, strict=True))
    moved = sum(text != own for text, own in zip(out.text, outs["own"].text, strict=True))
    print(
        f"{kind:9} {right:2} of {len(records)} right, {moved:2} answers unlike those with its own"
    )
