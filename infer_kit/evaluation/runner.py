"""The loop: every method, backend and task; resumable, and the same with many processes."""

import os
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from infer_kit.errors import InferKitError
from infer_kit.evaluation.answering import (
    SCORING,
    Answer,
    Asking,
    Rationales,
    Score,
    answerer_for,
    check_method,
    check_samples,
    scorer_for,
)
from infer_kit.evaluation.batches import plan
from infer_kit.evaluation.few_shot import shots_from
from infer_kit.evaluation.results import results_of
from infer_kit.evaluation.run_folder import Line, RunFolder, ShardWriter
from infer_kit.evaluation.samples import Sample, read_samples
from infer_kit.evaluation.tasks import Task, task_named
from infer_kit.evaluation.versions import data_identity, model_identity, surroundings, versions
from infer_kit.named_models import NamedModel, load_model

Answered = Callable[[Sequence[Sample]], Sequence[Answer | Score]]
_FEW, _MANY = 8, 1000  # samples of a batch, on transformers and on vLLM


@dataclass(frozen=True)
class Evaluation:
    """What is to be run.

    Attributes:
        model: see `load_model`. backend, model_arguments, processor_arguments, device: its
            arguments.
        task: of `TASKS`. data: a file of samples.
        method: of `METHODS`. options: its arguments.
        limit: the first so many samples, or None.
        demonstrations: a file of samples; shots, shot_seed: how many are drawn, and the seed.
        instruction: in place of the task's. system: a turn before all others.
        chat_template: a Jinja file, or "plain" for bare texts.
        generation: keywords of `generate` beside the task's length.
        batch_size: samples answered together; None: 8, and 1,000 on vLLM. Where so many fail
            together (memory), halves of them are tried. seed: of sampling.
        trace: keep each answer's trace in its line.
        max_errors: so many samples may fail.
    """

    model: str
    task: str
    data: Path
    method: str = "direct"
    options: Mapping[str, Any] = field(default_factory=dict)
    backend: str = "transformers"
    model_arguments: Mapping[str, Any] = field(default_factory=dict)
    processor_arguments: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None
    limit: int | None = None
    demonstrations: Path | None = None
    shots: int | None = None
    shot_seed: int = 0
    instruction: str | None = None
    system: str | None = None
    chat_template: str | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int | None = None
    seed: int = 0
    trace: bool = False
    max_errors: int = 0


@dataclass(frozen=True)
class Prepared:
    """A checked evaluation, with its data read and no model loaded.

    Attributes:
        evaluation: what is to be run. method: its canonical name. task, samples, asking: read.
        config: what decides the answers. facts: what else the folder keeps.
    """

    evaluation: Evaluation
    method: str
    task: Task
    samples: list[Sample]
    asking: Asking
    config: dict[str, Any]
    facts: dict[str, Any]

    @property
    def batch_size(self) -> int:
        """Samples answered together."""
        size: int = self.config["batch_size"]
        return size

    @property
    def name(self) -> str:
        """Of the folder, without the hash."""
        data = self.evaluation.data.absolute()
        return f"{data.parent.name}-{data.stem}-{self.method}"


def prepare(evaluation: Evaluation) -> Prepared:
    """Check everything that can be checked without the model.

    Raises:
        InferKitError: what was given cannot work; names it.
    """
    e = evaluation
    for what, number, least in (
        ("--limit", e.limit, 1),
        ("--batch-size", e.batch_size, 1),
        ("--max-errors", e.max_errors, 0),
    ):
        if number is not None and number < least:
            raise InferKitError(f"{what} is a number from {least} on, got {number}.")
    if e.shots is not None and e.demonstrations is None:
        raise InferKitError("--shots draws from --demonstrations, which are not given.")
    task = task_named(e.task)
    method = check_method(e.method, e.options)
    samples = read_samples(e.data)[: e.limit]
    task.check(samples, str(e.data))
    shots: tuple[Any, ...] = ()
    pool: Sequence[Sample] = ()
    if e.demonstrations is not None:
        pool = read_samples(e.demonstrations)
        shots = shots_from(pool, samples, e.shots, e.shot_seed, str(e.demonstrations))
    if task.is_scored and method not in SCORING:
        raise InferKitError(
            f"The method {method!r} answers questions; texts are scored by {', '.join(SCORING)}."
        )
    check_samples(method, samples, shots)
    generation = {} if task.is_scored else {"max_new_tokens": task.max_new_tokens}
    generation |= {"do_sample": False, **e.generation} if not task.is_scored else {}
    returned = (generation.get("num_return_sequences", 1), "num_return_sequences")
    if returned[0] != 1:
        raise InferKitError(f"An evaluation takes one answer a sample: {returned[1]}=1.")
    asking = Asking(
        instruction=task.instruction if e.instruction is None else e.instruction,
        system=e.system,
        shots=shots,
        chat_template=_template(e.chat_template),
        generation=generation,
        trace=e.trace,
    )
    config = {
        "model": model_identity(e.model),
        "backend": e.backend,
        "model_arguments": dict(e.model_arguments),
        "processor_arguments": dict(e.processor_arguments),
        "task": task.name,
        "data": data_identity(e.data, samples),
        "limit": e.limit,
        "method": method,
        "options": {key: _identity(value) for key, value in e.options.items()},
        "demonstrations": None
        if e.demonstrations is None
        else [data_identity(e.demonstrations, pool), e.shots, e.shot_seed],
        "instruction": asking.instruction,
        "system": asking.system,
        "chat_template": asking.chat_template,
        "generation": generation,
        "batch_size": e.batch_size or (_MANY if e.backend == "vllm" else _FEW),
        "seed": e.seed,
        "trace": e.trace,
    }
    facts = {
        "paths": {
            "model": e.model,
            "data": str(e.data),
            "demonstrations": None if e.demonstrations is None else str(e.demonstrations),
            "options": {key: str(value) for key, value in e.options.items()},
        },
        "versions": versions(_device(e), e.backend),
    }
    return Prepared(e, method, task, samples, asking, config, facts)


def run(
    prepared: Prepared,
    out: str | Path,
    loaded: Callable[[], NamedModel] | None = None,
    rationales: Rationales | None = None,
) -> tuple[RunFolder, dict[str, Any] | None]:
    """Answer the samples that have no answer yet, and write the figures when all have.

    Under torchrun every process answers its share of the batches; the last to finish writes the
    figures.

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
    folder = RunFolder.open(out, prepared.name, prepared.config, prepared.facts)
    torn = folder.repair()
    if torn and rank == 0:
        tqdm.write(f"{torn} torn line(s) of a run that was cut off were taken away.")
    done = set(folder.lines())
    batches = plan(prepared.samples, prepared.batch_size)[rank::world]
    left = [b for b in batches if any(prepared.samples[n].id not in done for n in b)]
    if left:
        evaluation = prepared.evaluation
        model = load(evaluation) if loaded is None else loaded()
        ask = (prepared.method, model, evaluation.options, prepared.asking)
        if prepared.task.is_scored:
            answered: Answered = scorer_for(*ask).score
        else:
            answered = answerer_for(*ask, rationales).answer
        with folder.writer(rank) as writer:
            _Loop(prepared, answered, writer, done).run(left, sum(map(len, batches)), rank)
    return folder, finished(prepared, folder)


def finished(prepared: Prepared, folder: RunFolder) -> dict[str, Any] | None:
    """Write and return the figures if every sample has its line or has failed, else None."""
    lines, failures = folder.lines(), folder.failures()
    missing = {s.id for s in prepared.samples} - set(lines) - {line["id"] for line in failures}
    if missing:
        return None
    figures = results_of(prepared.task, prepared.samples, lines)
    results = {
        "config": prepared.config,
        "paths": prepared.facts["paths"],
        **figures,
        "errors": len(failures),
        "versions": prepared.facts["versions"],
        **surroundings(),
    }
    folder.finish(results)
    return results


class _Loop:
    """Answers batches and writes their lines."""

    def __init__(
        self, prepared: Prepared, answered: Answered, writer: ShardWriter, done: set[str]
    ) -> None:
        self.prepared, self.answered, self.writer, self.done = prepared, answered, writer, done
        self.errors = 0

    def run(self, batches: Sequence[Sequence[int]], total: int, rank: int) -> None:
        here = sum(len(batch) for batch in batches)
        begun = total - here
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
        except Exception as error:
            if len(samples) == 1:
                return [self._failed(samples[0], error)]
            if not isinstance(error, InferKitError):  # that names the sample, once it is found
                tqdm.write(
                    f"{len(samples)} samples from {samples[0].id!r} on failed together, and are "
                    f"answered in halves: {_said(error)}"
                )
            middle = len(samples) // 2
            return [*self._lines(samples[:middle]), *self._lines(samples[middle:])]
        seconds = (time.perf_counter() - started) / len(samples)
        lines = zip(samples, answered, strict=True)
        return [self._line(sample, each, seconds) for sample, each in lines]

    def _answered(self, samples: Sequence[Sample]) -> Sequence[Answer | Score]:
        import torch

        # The batch's own seed: the same whoever answers it, and after whatever.
        torch.manual_seed(hash_of(f"{self.prepared.evaluation.seed} {samples[0].id}"))
        return self.answered(samples)

    def _failed(self, sample: Sample, error: Exception) -> Line:
        self.errors += 1
        if self.errors > self.prepared.evaluation.max_errors:
            if isinstance(error, InferKitError):
                raise InferKitError(f"Sample {sample.id!r}: {error}", hint=error.hint) from error
            raise InferKitError(
                f"Sample {sample.id!r} failed: {_said(error)}",
                hint="--debug shows the traceback; --max-errors N goes on past N such samples.",
            ) from error
        tqdm.write(f"Sample {sample.id!r} failed and is left out: {_said(error)}")
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


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def hash_of(text: str) -> int:
    """A seed from a text, the same on every machine."""
    return zlib.crc32(text.encode())


def _identity(value: Any) -> Any:
    """An option that names a model's folder by what is in it, anything else as it is."""
    if isinstance(value, str) and Path(value).is_dir():
        return model_identity(value)
    return value


def _template(given: str | None) -> str | None:
    if given is None or given == "plain":
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InferKitError(
            f"--chat-template {given!r} cannot be read: {error}",
            hint="It is a Jinja file, or the word plain for bare texts.",
        ) from error


def _rank() -> tuple[int, int]:
    """This process among those of torchrun."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def _device(evaluation: Evaluation) -> str:
    if evaluation.device is not None or evaluation.backend == "vllm":
        return evaluation.device or "vllm"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


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
