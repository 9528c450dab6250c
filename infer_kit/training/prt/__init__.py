"""Training a portable reward: `PRTTrainer`, and `PRTMixin` for trainers of one's own.

>>> trainer = PRTTrainer(
...     model=reward, base_model=base, args=args, prt=PRTConfig(),
...     train_dataset=data, eval_dataset=held_out, processing_class=tokenizer,
... )
>>> trainer.train()
>>> trainer.save_reward("reward/")

`PRTSFTTrainer` is TRL's SFTTrainer with that loss; TRL is imported when the name is first used.
"""

from typing import Any

from infer_kit.training.base_cache import BaseCache as BaseCache
from infer_kit.training.prt.config import PRTConfig as PRTConfig
from infer_kit.training.prt.gain import SourceGain as SourceGain
from infer_kit.training.prt.mixin import PRTMixin as PRTMixin
from infer_kit.training.prt.trainer import PRTTrainer as PRTTrainer

__all__ = ["BaseCache", "PRTConfig", "PRTMixin", "PRTSFTTrainer", "PRTTrainer", "SourceGain"]


def __getattr__(name: str) -> Any:
    if name != "PRTSFTTrainer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from infer_kit.training.prt.trainer import sft_trainer

    globals()[name] = sft_trainer()
    return globals()[name]
