"""The faults of the plug-ins for harnesses; see `tests/faults.py`."""

from __future__ import annotations

from tests.faults import Mutant

BYTES, TOKENS, CONTINUATIONS = (
    "harness/byte_lm.py",
    "harness/token_lm.py",
    "vocab/continuations.py",
)
ARGUMENTS, CACHE, WRITING = (
    "harness/arguments.py",
    "harness/lm_cache.py",
    "harness/generation.py",
)
LMMS = "harness/lmms_model.py"

OF_BYTES = "tests/harness/test_byte_lm.py"
OF_TOKENS = "tests/harness/test_token_lm.py"
OF_ARGUMENTS = "tests/harness/test_arguments.py"
OF_LMMS = "tests/harness/test_lmms.py"

HARNESS_MUTANTS = (
    Mutant(
        "harness: continuations follow the first prompt",
        CONTINUATIONS,
        "text.fork() for text",
        "opened[0].fork() for text",
        (OF_BYTES,),
    ),
    Mutant(
        "harness: every continuation is greedy",
        CONTINUATIONS,
        "greedy[row] = greedy[row] and _likeliest(text) == symbols[row][place]",
        "pass",
        (OF_BYTES,),
    ),
    Mutant(
        "harness: the upper bound is reported",
        BYTES,
        "answer = (low, score.is_greedy)",
        "answer = (high + 0.01, score.is_greedy)",
        (OF_BYTES,),
    ),
    Mutant(
        "harness: the first model alone writes",
        BYTES,
        "self.ensemble.generate(prompts",
        "Ensemble([(self.ensemble.models[0], self.ensemble.vocabularies[0])], "
        'vocabulary="bytes").generate(prompts',
        (OF_BYTES,),
    ),
    Mutant("harness: weights are forgotten", BYTES, "weights=weights,\n", "\n", (OF_BYTES,)),
    Mutant(
        "harness: a chat is its last turn",
        BYTES,
        "return _CHAT + json.dumps(chat_history)",
        'return chat_history[-1]["content"]',
        (OF_BYTES,),
    ),
    Mutant(
        "harness: tokens are bytes", BYTES, "tokens * self.bytes_per_token", "tokens", (OF_BYTES,)
    ),
    Mutant(
        "harness: what was scored is not cached until the end",
        BYTES,
        "self.cache_hook.add_partial(what, key, low if rolling else answer)",
        "pass",
        (OF_BYTES,),
    ),
    Mutant(
        "harness: a cache serves any configuration",
        CACHE,
        "if written not in (None, self.configuration)",
        "if False",
        (OF_BYTES,),
    ),
    Mutant(
        "harness: the hash leaves arguments out",
        ARGUMENTS,
        "told = json.dumps([model, arguments,",
        "told = json.dumps([model,",
        (OF_ARGUMENTS,),
    ),
    Mutant(
        "harness: the hash leaves subfolders out",
        ARGUMENTS,
        "    return sorted(found)\n",
        '    return sorted(told for told in found if "/" not in told[0])\n',
        (OF_ARGUMENTS,),
    ),
    Mutant(
        "harness: the hash leaves files without .json out",
        ARGUMENTS,
        "            if file.is_file():\n",
        '            if file.suffix in (".json", ".safetensors", ".bin", ".jinja"):\n',
        (OF_ARGUMENTS,),
    ),
    Mutant(
        "harness: the hash leaves versions out",
        ARGUMENTS,
        '_PACKAGES = ("infer-kit", "torch", "transformers")',
        '_PACKAGES = ("infer-kit",)',
        (OF_ARGUMENTS,),
    ),
    Mutant(
        "harness: unknown generation arguments pass",
        WRITING,
        "        if name not in known:",
        "        if False:",
        (OF_ARGUMENTS,),
    ),
    Mutant(
        "harness: the reward is left out",
        TOKENS,
        "        self._model = compose(",
        "        compose(",
        (OF_TOKENS,),
    ),
    Mutant(
        "harness: tuned and untuned change places",
        TOKENS,
        "implicit=pair if",
        "implicit=pair[::-1] if",
        (OF_TOKENS,),
    ),
    Mutant(
        "harness: an adapter loads its base again",
        TOKENS,
        "base=base if shares else None",
        "base=None",
        (OF_TOKENS,),
    ),
    Mutant(
        "harness: a demonstration has the first answer",
        LMMS,
        "shot_of(sample).turns()",
        "shot_of(__import__('dataclasses').replace(sample, answers=sample.answers[:1])).turns()",
        (OF_LMMS,),
    ),
    Mutant(
        "harness: pictures are left out",
        LMMS,
        '"content": parts(context, pictures',
        '"content": parts(context, []',
        (OF_LMMS,),
    ),
    Mutant(
        "harness: requests of different settings go together",
        LMMS,
        "            return json.dumps(settings[n], sort_keys=True)",
        '            return ""',
        (OF_LMMS,),
    ),
)
