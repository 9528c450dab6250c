"""Bring the images and texts of a CLIP nearer to each other, and look at what that costs.

The tiny CLIP that ships is refined on captioned pictures, by CLIP-Refine and by a contrastive loss
alone. Before and after on held-out pictures: where the features lie, retrieval, zero-shot classes,
and whether a concept bottleneck built on the refined model still names the classes.
"""

import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

import infer_kit as ik
from infer_kit.concepts import image_features, text_features
from infer_kit.demo import clip
from infer_kit.demo.clip.world import Sample, boards, samples_of
from infer_kit.training.representation import (
    CaptionedImages,
    CLIPRefineConfig,
    CLIPRefineTrainer,
    measure_clip,
    modality_figure,
    refine_arguments,
)


def caption(sample: Sample) -> str:
    """Three things of the picture."""
    things = [" ".join(thing) for thing in sample.things if thing is not None]
    return ", ".join(things[:3])


# %% Captioned pictures to refine on, and others to measure on.
torch.set_num_threads(1)
folder = Path(tempfile.mkdtemp())
samples = samples_of(boards(768, np.random.default_rng(0)))
data = CaptionedImages([sample.picture for sample in samples], [caption(s) for s in samples])
held_out = clip.held_out(200)
pictures = [sample.picture for sample in held_out]
captions, labels = [caption(s) for s in held_out], [s.label for s in held_out]


# %% Two ways of refining, the second a control: contrastive, without teacher and random vectors.
def refined(name: str, config: CLIPRefineConfig) -> Path:
    model, processor = clip.load()
    arguments = refine_arguments(
        folder / "run", per_device_train_batch_size=64, learning_rate=2e-4, num_train_epochs=3,
        disable_tqdm=True, logging_strategy="no", save_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = CLIPRefineTrainer(
        model, arguments, refine=config, processor=processor, train_dataset=data
    )
    trainer.train()
    print(f"{name}: similarities are {trainer.similarity}")
    trainer.save_model(str(folder / name))
    return folder / name


models = {
    "start": "demo-clip",
    "CLIP-Refine": str(refined("CLIP-Refine", CLIPRefineConfig())),
    "contrastive": str(refined("contrastive", CLIPRefineConfig(alpha=1.0, lam_rand=0.0))),
}

# %% Before and after. The classes were not in the captions: what they lose is what is forgotten.
features = {}
print("model         gap  alignment  uniformity  I2T@5  T2I@5  zero-shot  Z-CBM")
for name, where in models.items():
    encoder = ik.concepts.encoder_for(where)
    report = measure_clip(encoder, pictures, captions, clip.CLASSES, labels)
    features[name] = image_features(encoder, pictures), text_features(encoder, captions)
    bank = ik.ConceptBank.build(clip.PHRASES, encoder, classes=clip.CLASSES)
    said = ik.ZeroShotCBM(encoder, bank, clip.CLASSES).explain(pictures)
    right = sum(one.label == label for one, label in zip(said, labels, strict=True))
    m = report.modality
    print(
        f"{name:12} {m.gap:4.2f}  {m.alignment:9.2f}  {m.uniformity:10.2f}  "
        f"{m.image_to_text[5]:5.2f}  {m.text_to_image[5]:5.2f}  {report.zero_shot:9.2f}  "
        f"{right / len(labels):5.2f}"
    )
if find_spec("matplotlib"):
    modality_figure(features, folder / "features.png")
    print("figure:", folder / "features.png")
