# %% A picture as a short list of phrases; other phrases, another class. The tiny CLIP that ships.
# With a CLIP of your own: its folder or hub name, your phrases, your class names, your pictures.
from rich.console import Console

import infer_kit as ik
from infer_kit.concepts import encoder_for, image_features
from infer_kit.demo import clip

encoder = encoder_for("demo-clip")
bank = ik.ConceptBank.build(clip.PHRASES, encoder, classes=clip.CLASSES)
mean = image_features(encoder, [sample.picture for sample in clip.held_out(200, seed=1)]).mean(0)
cbm = ik.ZeroShotCBM(encoder, bank, clip.CLASSES, alpha=1e-3, center="modality", image_mean=mean)

# %% Forty held-out pictures; the first whose class hangs on its first phrase.
explained = cbm.explain([sample.picture for sample in clip.held_out(40)])
moved = [one for one in explained if one.delete(1).label != one.label]
print(f"the class moves without the first phrase: {len(moved)} of {len(explained)} pictures")
one, phrase = moved[0], moved[0].phrases[0]
Console().print(one.table(8))

# %% Take it out. Without a refit the other weights stay; with one the lasso looks for other words.
without = one.delete(phrase)
refitted = one.delete(phrase, refit=True)
print(f"without {phrase!r}: {one.label} {one.probabilities[one.label]:.2f} ->", end=" ")
print(f"{without.label} {without.probabilities[without.label]:.2f}")
print(f"refitted: {refitted.label}, in other words {list(refitted.phrases[:3])}")

# %% Put something in: the same phrase with its weight, or one that is not in the picture.
back = without.insert({phrase: float(one.weights[0])})
print(f"put back: {back.label}; as before: {abs(back.cosine - one.cosine) < 1e-4}")
for other in ("teal square", "purple cross", "green circle"):
    if other not in without.phrases:
        print(f"with {other!r} in its place: {without.insert({other: 0.6}).label}")
