"""`Ensemble` over one engine of vLLM, whose model may be a composite of several."""

import math
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import torch

from infer_kit.engine.call import pad_token
from infer_kit.vllm.description import PoolRule
from infer_kit.vllm.engines import OfflineEngine, run_for_figures
from infer_kit.vllm.jobs import WeightedInput, job_of, split_returned
from infer_kit.vllm.prompts import hollow_model
from infer_kit.vllm.sampling import params_of, resolve
from infer_kit.vllm.settings import check_active
from infer_kit.vocab.conditioning import answer_ids, chat_ids, split_ids, text_ids
from infer_kit.vocab.keywords import DEFAULT_NEW
from infer_kit.vocab.results import EnsembleOutput, LogProb
from infer_kit.vocab.symbol_lm import SymbolTokenizer
from infer_kit.vocab.utf8 import as_text
from infer_kit.vocab.vocabulary import Vocabulary


class EngineEnsemble:
    """The part of `Ensemble` that runs on a `vllm.LLM`: texts in, texts out, over its tokens."""

    def __init__(self, llm: Any, tokenizer: Any) -> None:
        """Args:
        llm: a `vllm.LLM` that runs the plug-ins of groups. tokenizer: its own.

        Raises:
            InferKitError: the plug-ins are not active.
        """
        check_active(llm.llm_engine.vllm_config)
        self._engine = OfflineEngine(llm)
        self._hollow = hollow_model(llm.llm_engine.vllm_config.model_config)
        self._tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        self.vocabulary = (
            tokenizer
            if isinstance(tokenizer, Vocabulary)
            else Vocabulary.from_hf(tokenizer, self._hollow)
        )
        self.tokenizer = SymbolTokenizer(self.vocabulary.tokens)
        self._hollow.generation_config.eos_token_id = sorted(self.vocabulary.end_ids) or None

    def generate(
        self, prompts: Sequence[Any], single: bool, kwargs: Mapping[str, Any]
    ) -> EnsembleOutput:
        """See `Ensemble.generate`; the keywords are those of methods on vLLM."""
        ids = [self._ids(prompt) for prompt in prompts]
        given = dict(kwargs)
        if "sampling_params" not in given:
            given = {"max_new_tokens": DEFAULT_NEW, "tokenizer": self._tokenizer, **given}
        params = params_of(given, [len(row) for row in ids], self._hollow, None)
        jobs, rows = [], []
        for b, row in enumerate(ids):
            for each in split_returned(params[b]):
                jobs.append(self._job(row, each, PoolRule(), f"Prompt {b}"))
                rows.append(row)
        outputs = self._engine.run(jobs)
        new = [list(output.outputs[0].token_ids) for output in outputs]
        spelled = [self.tokenizer.spell(torch.tensor(row, dtype=torch.long)) for row in new]
        texts = [as_text(text) for text in spelled]
        pad = pad_token(resolve({"max_new_tokens": 1}, 1, self._hollow))
        width = max(map(len, rows)) + max(map(len, new))
        sequences = torch.full((len(new), width), pad, dtype=torch.long)
        for place, (row, written) in enumerate(zip(rows, new, strict=True)):
            begin = max(map(len, rows)) - len(row)
            line = torch.tensor([*row, *written])
            sequences[place, begin : begin + len(line)] = line
        return EnsembleOutput(
            text=texts[0] if single and len(texts) == 1 else texts,
            alphabet="tokens",
            sequences=sequences,
            tv_bound=0.0,
            leak=(0.0,),
            calls=(max(map(len, new)),),
            rows=(sum(map(len, new)),),
            steps=[],
            output=outputs,
        )

    def logprob(self, texts: Sequence[str], prompts: Sequence[Any], end: bool) -> list[LogProb]:
        """See `Ensemble.logprob`: of the text as the tokenizer writes it."""
        ends = [[token] for token in sorted(self.vocabulary.end_ids)] if end else [[]]
        jobs, places = [], []
        for place, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
            head, ids = self._split(text, prompt)
            for tail in ends:
                name = uuid4().hex
                rule = PoolRule(trace=name, forced=(*ids, *tail), tables=((1.0,),))
                params = params_of(
                    {"max_new_tokens": len(rule.forced)}, [len(head)], self._hollow, None
                )[0]
                params.stop_token_ids, params.detokenize = [], False
                jobs.append(self._job(head, params, rule, f"Text {place}"))
                places.append((place, name))
        values = [-math.inf] * len(texts)
        if jobs:
            _, kept = run_for_figures(self._engine, jobs, [name for _, name in places])
            for place, name in places:
                total = torch.tensor(kept[name], dtype=torch.float64).sum()
                values[place] = float(torch.logaddexp(torch.tensor(values[place]).double(), total))
        return [
            LogProb(value, value, ((value, value),), len(text.encode()), (0.0,), (len(jobs),))
            for value, text in zip(values, texts, strict=True)
        ]

    def _job(self, ids: Sequence[int], params: Any, rule: PoolRule, where: str) -> Any:
        stream = WeightedInput({"type": "token", "prompt_token_ids": list(ids)}, 1.0)
        return job_of([stream], params, rule, self._engine.config, where)

    def _ids(self, prompt: Any) -> list[int]:
        if not prompt or isinstance(prompt, str):
            ids = text_ids(self.vocabulary, prompt or "", self._tokenizer)
            return ids or list(self.vocabulary.empty_ids)
        return chat_ids(self.vocabulary, self._tokenizer, prompt)

    def _split(self, text: str, prompt: Any) -> tuple[list[int], list[int]]:
        if not prompt:
            return self._ids(prompt), self.vocabulary.encode(text)
        if not isinstance(prompt, str):
            return self._ids(prompt), answer_ids(self.vocabulary, text)
        return split_ids(self.vocabulary, text, prompt, self._tokenizer)
