"""What is to be run, checked before any model is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infer_kit.errors import InferKitError
from infer_kit.evaluation.answering import (
    ENSEMBLES,
    SCORING,
    Asking,
    check_method,
    check_samples,
    named_models_of,
)
from infer_kit.evaluation.few_shot import check_own_shots, shots_from
from infer_kit.evaluation.identity import (
    commit,
    data_identity,
    folder_identity,
    model_identity,
    versions,
)
from infer_kit.evaluation.samples import Sample, Shot, read_samples
from infer_kit.evaluation.tasks import Task, task_identity, task_named
from infer_kit.methods.named import MODELS

_FEW, _MANY = 8, 1000  # samples of a batch, on transformers and on vLLM


@dataclass(frozen=True)
class Evaluation:
    """What is to be run.

    Attributes:
        model: see `load_model`. backend, model_arguments, processor_arguments, device: its
            arguments.
        task: of `TASKS`, or a file with one. data: a file of samples.
        method: of `METHODS`. options: its arguments.
        limit: the first so many samples, or None.
        demonstrations: a file of samples; shots, shot_seed: how many are drawn, and the seed.
        instruction: in place of the task's. system: a turn before all others.
        chat_template: a Jinja file, or "plain" for bare texts.
        generation: keywords of `generate` beside the task's length.
        batch_size: samples answered together; None: 8, and 1,000 on vLLM. Where so many fail
            together (memory), halves of them are tried. seed: of sampling.
        trace: keep each answer's trace in its line.
        max_errors: so many samples may be without an answer.
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
        config: what decides the answers, which the folder is named by.
        paths: as they were given. versions, commit: of what is running now.
    """

    evaluation: Evaluation
    method: str
    task: Task
    samples: list[Sample]
    asking: Asking
    config: dict[str, Any]
    paths: dict[str, Any]
    versions: dict[str, str]
    commit: str | None

    @property
    def batch_size(self) -> int:
        """Samples answered together."""
        size: int = self.config["batch_size"]
        return size

    @property
    def name(self) -> str:
        """Of the folder, without the hash."""
        data = self.evaluation.data.resolve()
        return f"{data.parent.name}-{data.stem}-{self.method}"


def prepare(evaluation: Evaluation) -> Prepared:
    """Check everything that can be checked without the model.

    Raises:
        InferKitError: what was given cannot work; names it.
    """
    e = evaluation
    _check_numbers(e)
    task = task_named(e.task)
    method = check_method(e.method, e.options)
    _check_backend(e.backend, method, task)
    samples = read_samples(e.data)[: e.limit]
    task.check(samples, str(e.data))
    pool, shots = _demonstrations(e, samples)
    check_samples(method, samples, shots)
    check_own_shots(samples, str(e.data))
    asking = Asking(
        instruction=task.instruction if e.instruction is None else e.instruction,
        system=e.system,
        shots=shots,
        chat_template=_template(e.chat_template),
        generation=_generation(e, task),
        trace=e.trace,
        pictured=next((sample.id for sample in samples if sample.pictures), None),
    )
    revision = e.model_arguments.get("revision")
    trusted = bool(e.model_arguments.get("trust_remote_code"))
    config = {
        "model": model_identity(e.model, revision, trusted),
        "backend": e.backend,
        "model_arguments": dict(e.model_arguments),
        "processor_arguments": dict(e.processor_arguments),
        "task": task_identity(e.task),
        "data": data_identity(e.data, samples),
        "limit": e.limit,
        "method": method,
        "options": _identities(method, e.options),
        "demonstrations": None
        if e.demonstrations is None
        else [data_identity(e.demonstrations, pool), e.shots, e.shot_seed],
        "instruction": asking.instruction,
        "system": asking.system,
        "chat_template": asking.chat_template,
        "generation": dict(asking.generation),
        "batch_size": e.batch_size or (_MANY if e.backend == "vllm" else _FEW),
        "seed": e.seed,
        "trace": e.trace,
    }
    paths = {
        "model": e.model,
        "task": e.task,
        "data": str(e.data),
        "demonstrations": None if e.demonstrations is None else str(e.demonstrations),
        "options": {key: str(value) for key, value in e.options.items()},
    }
    found = versions(_device(e), e.backend)
    return Prepared(e, method, task, samples, asking, config, paths, found, commit())


def _check_numbers(e: Evaluation) -> None:
    for what, number, least in (
        ("--limit", e.limit, 1),
        ("--batch-size", e.batch_size, 1),
        ("--max-errors", e.max_errors, 0),
    ):
        if number is not None and number < least:
            raise InferKitError(f"{what} is a number from {least} on, got {number}.")
    if e.shots is not None and e.demonstrations is None:
        raise InferKitError("--shots draws from --demonstrations, which are not given.")


def _check_backend(backend: str, method: str, task: Task) -> None:
    if backend not in ("transformers", "vllm"):
        raise InferKitError(f"Unknown backend {backend!r}: use transformers or vllm.")
    if task.is_scored and method not in SCORING:
        raise InferKitError(
            f"The method {method!r} answers questions; texts are scored by {', '.join(SCORING)}."
        )
    if backend == "vllm" and (method in (*MODELS, *ENSEMBLES) or task.is_scored):
        raise InferKitError(
            f"The {'task ' + task.name if task.is_scored else 'method ' + method} runs on "
            "transformers here.",
            hint="Leave out --backend vllm. On vLLM several models are one composite, which an "
            "engine is started with: docs/vllm.md.",
        )


def _demonstrations(
    e: Evaluation, samples: Sequence[Sample]
) -> tuple[list[Sample], tuple[Shot, ...]]:
    if e.demonstrations is None:
        return [], ()
    pool = read_samples(e.demonstrations)
    return pool, shots_from(pool, samples, e.shots, e.shot_seed, str(e.demonstrations))


def _generation(e: Evaluation, task: Task) -> dict[str, Any]:
    """Keywords of `generate`; none where nothing is written."""
    if task.is_scored:
        if e.generation:
            raise InferKitError(
                f"Texts are scored, not written: {sorted(e.generation)} have no effect."
            )
        return {}
    generation = {"max_new_tokens": task.max_new_tokens, "do_sample": False, **e.generation}
    most = generation["max_new_tokens"]
    if isinstance(most, int) and most < 1:
        raise InferKitError(f"--max-new-tokens is a number from 1 on, got {most}.")
    if generation.get("num_return_sequences", 1) != 1:
        raise InferKitError("An evaluation takes one answer a sample: num_return_sequences=1.")
    return generation


def _identities(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, models and rewards among them by their content."""
    out = dict(options)
    for key, names in named_models_of(method, options).items():
        out[key] = [
            folder_identity(Path(name)) if key == "reward" else model_identity(name)
            for name in names
        ]
    return out


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


def _device(e: Evaluation) -> str:
    if e.device is not None or e.backend == "vllm":
        return e.device or "vllm"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
