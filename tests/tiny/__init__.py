"""Random tiny models of every family that infer_kit supports, and inputs for them.

They prove wiring, not quality: the weights are random, but scaled so that logits depend on the
whole context and on every image.
"""

from tests.tiny.reference import reference_logits as reference_logits
from tests.tiny.text import TEXT_GRID as TEXT_GRID
from tests.tiny.text import TEXT_SWEEP as TEXT_SWEEP
from tests.tiny.text import available as available
from tests.tiny.text import shared_text_model as shared_text_model
from tests.tiny.text import text_model as text_model
from tests.tiny.tokenizers import tiny_processor as tiny_processor
from tests.tiny.tokenizers import tiny_tokenizer as tiny_tokenizer
from tests.tiny.vision import LVLM_FUSED as LVLM_FUSED
from tests.tiny.vision import LVLM_SERIAL as LVLM_SERIAL
from tests.tiny.vision import TinyLVLM as TinyLVLM
from tests.tiny.vision import lvlm_available as lvlm_available
from tests.tiny.vision import shared_lvlm as shared_lvlm
from tests.tiny.vision import tiny_lvlm as tiny_lvlm
