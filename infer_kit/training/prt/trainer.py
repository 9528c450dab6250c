"""`PRTTrainer`, and the same for TRL."""

from typing import Any

from transformers import Trainer

from infer_kit.errors import MissingExtra
from infer_kit.training.prt.checks import check_models
from infer_kit.training.prt.mixin import PRTMixin


class PRTTrainer(PRTMixin, Trainer):
    """transformers' `Trainer` for a reward; see `PRTMixin` for what it takes beyond it.

    Source: Chijiwa et al., "Portable Reward Tuning", ICML 2025 (arXiv 2502.12776), section 4.
    Differs from the paper: β may be other than 1; outputs of the base may be kept.
    """

    def __init__(
        self, model: Any = None, args: Any = None, *, peft_config: Any = None, **options: Any
    ) -> None:
        """Args:
        model, args, options: see `PRTMixin` and `Trainer`.
        peft_config: of an adapter that is put on `model` and is the reward.
        """
        if peft_config is not None:
            check_models(model, options.get("base_model"), peft_config)
            try:
                from peft import get_peft_model
            except ImportError as error:
                raise MissingExtra(
                    "peft_config needs PEFT, which is not installed.",
                    hint='pip install "infer-kit[train]"',
                ) from error
            model = get_peft_model(model, peft_config)
        super().__init__(model, args, **options)


def sft_trainer() -> type:
    """The class `PRTSFTTrainer`; imports TRL.

    Raises:
        MissingExtra: TRL is not installed.
    """
    try:
        from trl import SFTTrainer
    except ImportError as error:
        raise MissingExtra(
            "PRTSFTTrainer needs TRL, which is not installed.", "pip install trl"
        ) from error

    class PRTSFTTrainer(PRTMixin, SFTTrainer):
        """TRL's `SFTTrainer` for a reward: its data, masks and packing, the loss of `PRTMixin`."""

        def __init__(self, model: Any = None, args: Any = None, **options: Any) -> None:
            """Args: see `PRTMixin` and `SFTTrainer`. loss_type: "nll" alone."""
            super().__init__(model, args, **options)

    return PRTSFTTrainer
