# ruff: noqa: E402
"""Random groups on model runner V2, in a process of its own; triton's kernels are interpreted.

python -m tests.vllm.groups_in_process MODEL CASES OUTPUT
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
os.environ["TRITON_INTERPRET"] = "1"

from triton.backends import backends

backends["cpu"] = backends["nvidia"]  # the interpreter asks for some backend's name

from tests.vllm.engines import Watch, check_idle, engine, scheduler_of
from tests.vllm.group_cases import Case, answers


def main(folder: str, cases: str, output: str) -> None:
    """Answers of the cases in a JSON file, greedy and sampled, and what was watched."""
    made = []
    for case in json.loads(Path(cases).read_text()):
        case["prompts"] = tuple(map(tuple, case["prompts"]))
        made.append(Case(**case | {"weights": tuple(case["weights"])}))
    results = []
    for overlapped in (False, True):
        with engine(folder, asynchronous=overlapped, num_gpu_blocks_override=10) as llm:
            scheduler = scheduler_of(llm)
            assert scheduler.use_v2_model_runner
            assert scheduler.scheduler_config.async_scheduling == overlapped
            with Watch(llm) as watch:
                greedy = answers(llm, made)
            check_idle(llm)
            sampled = [
                answers(llm, part, temperature=1.0, seed=5, logprobs=None)
                for part in (made[:4], made[:4][::-1], made[:1])
            ]
            check_idle(llm)
        results.append({"greedy": greedy, "sampled": sampled, "preempted": watch.preempted})
    Path(output).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
