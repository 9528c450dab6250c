"""Train a reward on one classifier of digits; use it on another, of another architecture.

Both know clean images of digits. The task is images that are turned, moved and noisy.
"""

import tempfile
from copy import deepcopy

import torch
from transformers import TrainingArguments

import infer_kit as ik
from infer_kit.demo import digits
from infer_kit.training.prt import PRTTrainer

torch.set_num_threads(1)

# %% Two bases, pretrained in about a second each.
data = digits.task(seed=0)
mlp = digits.pretrain("mlp", data)
cnn = digits.pretrain("cnn", data)

# %% The reward: a copy of the MLP, trained through the MLP. Its class head stays as it is.
reward = deepcopy(mlp)
reward.freeze_head()
args = TrainingArguments(
    tempfile.mkdtemp(),
    num_train_epochs=60,
    per_device_train_batch_size=64,
    learning_rate=2e-3,
    lr_scheduler_type="cosine",
    save_strategy="no",
    report_to="none",
    use_cpu=True,
)
trainer = PRTTrainer(
    model=reward,
    base_model=mlp,
    args=args,
    train_dataset=data.train,
    eval_dataset=data.validation,
    kind="classification",
)
trainer.train()
print("gain on its own base:", trainer.source_gain())

# %% Saved, loaded, and used with the CNN, of which nothing is trained.
folder = tempfile.mkdtemp()
trainer.save_reward(folder)
portable = ik.PortableReward.from_pretrained(folder, model_class=digits.DigitMLP)
composed = ik.compose(cnn, portable)
for name, model in {"MLP": mlp, "CNN": cnn, "CNN with the MLP's reward": composed}.items():
    right = 100 * digits.accuracy(model, data.test)
    print(f"{name:26} {right:.1f} % right, NLL {digits.nll(model, data.test):.2f}")

# %% How much of it? β is chosen on images that are not the test's.
validation = {"pixel_values": data.validation.images, "labels": data.validation.labels}
losses = composed.sweep([validation], [0.0, 0.5, 1.0, 1.5, 2.0])
print("loss by β on the validation images:", {b: round(loss, 3) for b, loss in losses.items()})
