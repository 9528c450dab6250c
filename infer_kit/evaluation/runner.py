"""The loop: every method, backend and task; resumable, and the same with many processes."""

import contextlib
import os
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from infer_kit.errors import InferKitError
from infer_kit.evaluation.answering import Answer, Rationales, Score, answerer_for, scorer_for
from infer_kit.evaluation.batches import plan
from infer_kit.evaluation.identity import surroundings
from infer_kit.evaluation.preparation import Evaluation, Prepared
from infer_kit.evaluation.results import results_of
from infer_kit.evaluation.run_folder import Line, RunFolder, ShardWriter
from infer_kit.evaluation.samples import Sample
from infer_kit.named_models import NamedModel, load_model

Answered = Callable[[Sequence[Sample]], Sequence[Answer | Score]]


def run(
    prepared: Prepared,
    out: str | Path,
    loaded: Callable[[], NamedModel] | None = None,
    rationales: Rationales | None = None,
) -> tuple[RunFolder, dict[str, Any] | None]:
    """Answer the samples that have no answer yet, and write the figures when all have.

    Under torchrun every process answers its share of the batches; the last to finish writes the
    figures. A run that was finished before is returned as it is.

    Args:
        prepared: by `prepare`. out: the folder of runs.
        loaded: gives the model; default: loads it. Not called where nothing is left to do.
        rationales: shared by runs on the same samples and model, so that each is written once.

    Returns:
        The folder, and the figures; None where other processes are not done yet.

    Raises:
        InferKitError: the folder is another run's or cannot be written; a sample that cannot be
            answered, by id.
    """
    rank, world = _rank()
    folder = RunFolder.open(out, prepared.name, prepared.config, prepared.paths)
    batches = plan(prepared.samples, prepared.batch_size)[rank::world]

    def left() -> list[list[int]]:
        done = folder.lines()
        return [b for b in batches if any(prepared.samples[n].id not in done for n in b)]

    if left():
        folder.begin(prepared.versions, prepared.commit)
        evaluation = prepared.evaluation
        model = load(evaluation) if loaded is None else loaded()
        ask = (prepared.method, model, evaluation.options, prepared.asking)
        if prepared.task.is_scored:
            answered: Answered = scorer_for(*ask).score
        else:
            answered = answerer_for(*ask, rationales).answer
        with folder.writer(rank) as writer:
            # what is left is asked anew: another process may have ended since
            _Loop(prepared, answered, writer, folder).run(left(), sum(map(len, batches)), rank)
    elif folder.is_finished:
        return folder, folder.results
    return folder, _finished(prepared, folder)


def load(evaluation: Evaluation) -> NamedModel:
    """The model; under torchrun on this process's GPU."""
    device = evaluation.device
    local = os.environ.get("LOCAL_RANK")
    if evaluation.backend == "transformers" and device is None and local is not None:
        import torch

        if torch.cuda.is_available():
            device = f"cuda:{int(local) % torch.cuda.device_count()}"
    return load_model(
        evaluation.model,
        evaluation.backend,
        device,
        evaluation.processor_arguments,
        **evaluation.model_arguments,
    )


def _finished(prepared: Prepared, folder: RunFolder) -> dict[str, Any] | None:
    """Write and return the figures if every sample has its line or has failed, else None."""
    lines, failures = folder.lines(), folder.failures()
    missing = {s.id for s in prepared.samples} - set(lines) - {line["id"] for line in failures}
    if missing:
        return None
    begun = folder.config
    results = {
        "config": prepared.config,
        "paths": begun["paths"],
        **results_of(prepared.task, prepared.samples, lines),
        "errors": len(failures),
        "versions": begun["versions"],
        "git": begun["commits"],
        **surroundings(),
    }
    folder.finish(results)
    return results


class _Loop:
    """Answers batches and writes their lines."""

    def __init__(
        self, prepared: Prepared, answered: Answered, writer: ShardWriter, folder: RunFolder
    ) -> None:
        self.prepared, self.answered = prepared, answered
        self.writer, self.folder = writer, folder
        self.done = set(folder.lines())

    def run(self, batches: Sequence[Sequence[int]], total: int, rank: int) -> None:
        begun = total - sum(len(batch) for batch in batches)
        with tqdm(total=total, initial=begun, disable=rank > 0, desc=self.prepared.method) as bar:
            for batch in batches:
                samples = [self.prepared.samples[n] for n in batch]
                lines = self._lines(samples)
                self.writer.write([line for line in lines if line["id"] not in self.done])
                bar.update(len(batch))

    def _lines(self, samples: Sequence[Sample]) -> list[Line]:
        """The whole batch is answered, even if some of its lines are there: its answers are those
        of the batch."""
        started = time.perf_counter()
        try:
            answered = self._answered(samples)
            seconds = (time.perf_counter() - started) / len(samples)
            pairs = zip(samples, answered, strict=True)
            return [self._line(sample, each, seconds) for sample, each in pairs]
        except Exception as error:
            if len(samples) == 1:
                return [self._failed(samples[0], error)]
            # names the sample itself, once it is found
            said = None if isinstance(error, InferKitError) else _said(error)
        # Out of the handler: what failed, and its memory, are let go.
        self._let_go()
        if said is not None:
            _tell(
                f"{len(samples)} samples from {samples[0].id!r} on failed together, and are "
                f"answered in halves: {said}"
            )
        middle = len(samples) // 2
        return [*self._lines(samples[:middle]), *self._lines(samples[middle:])]

    def _answered(self, samples: Sequence[Sample]) -> Sequence[Answer | Score]:
        import torch

        # The batch's own seed: the same whoever answers it, and after whatever.
        torch.manual_seed(hash_of(f"{self.prepared.evaluation.seed} {samples[0].id}"))
        return self.answered(samples)

    def _let_go(self) -> None:
        import torch

        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()

    def _failed(self, sample: Sample, error: Exception) -> Line:
        """The line of a failure, if the run may have one more; of all processes and starts."""
        failed = {line["id"] for line in self.folder.failures()} | {sample.id}
        if len(failed) > self.prepared.evaluation.max_errors:
            if isinstance(error, InferKitError):
                raise InferKitError(
                    f"Sample {sample.id!r}: {error}",
                    hint=error.hint or "--max-errors N goes on past N such samples.",
                ) from error
            raise InferKitError(
                f"Sample {sample.id!r} failed: {_said(error)}",
                hint="--debug shows the traceback; --max-errors N goes on past N such samples.",
            ) from error
        _tell(f"Sample {sample.id!r} failed and is left out: {_said(error)}")
        return {"id": sample.id, "error": _said(error)}

    def _line(self, sample: Sample, each: Answer | Score, seconds: float) -> Line:
        line: Line = {"id": sample.id}
        if isinstance(each, Score):
            size = len((sample.passage or "").encode())
            return line | {
                "logprob": [each.low, each.high],
                "bytes": size,
                "seconds": round(seconds, 4),
            }
        task = self.prepared.task
        target = list(sample.answers)
        line |= {
            "question": sample.asked(),
            "prediction": each.text,
            "target": target[0] if len(target) == 1 else target,
            "correct": None if task.score is None else task.score(each.text, sample),
        }
        if sample.choices:
            line["choices"] = list(sample.choices)
        if sample.category is not None:
            line["category"] = sample.category
        if each.rationale is not None:
            line["rationale"] = each.rationale
        if each.trace is not None:
            line["trace"] = each.trace
        return line | {"tokens": each.tokens, "seconds": round(seconds + each.seconds, 4)}


def hash_of(text: str) -> int:
    """A seed from a text, the same on every machine."""
    return zlib.crc32(text.encode())


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _tell(text: str) -> None:
    """Above the bar, and not among the figures."""
    tqdm.write(text, file=sys.stderr)


def _rank() -> tuple[int, int]:
    """This process among those of torchrun."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
