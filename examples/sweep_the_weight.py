# %% How much should the rationale count? Choose λ on questions that are not the test's.
import tempfile
from pathlib import Path

from rich.console import Console

import infer_kit as ik
from infer_kit import demo
from infer_kit.demo.scenes import held_out

model, processor = demo.load()
records = held_out(60, seed=7)
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
answers = [record.answer for record in records]

# %% Every prompt is read once and every rationale written once, for all weights.
red = ik.RED(model, processor, prompts=demo.PROMPTS)
weights = [0, 0.25, 0.5, 1, 2]
sweep = red.sweep(chats, answers, weights=weights, max_new_tokens=4, progress=False)
Console().print(sweep.table())
print("best:", sweep.best)

# %% The figure, and the same over candidates: one pass scores them for all weights.
figure = sweep.figure(Path(tempfile.mkdtemp()) / "sweep.png")
print("figure:", figure.name)
colours = [
    n for n, record in enumerate(records) if record.question.endswith("what color is there ?")
]
candidates = sorted({answers[n] for n in colours})
chosen = red.sweep(
    [chats[n] for n in colours],
    [answers[n] for n in colours],
    weights=weights,
    candidates=candidates,
    progress=False,
)
print(f"among {len(candidates)} colours:", chosen.accuracy.round(2).tolist())
