"""A model as a graph of operators, and where it could not be made one."""

from __future__ import annotations

import contextlib
import io
import linecache
import logging
import re
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from infer_kit.errors import InferKitError
from infer_kit.training.symmetry.calling import (
    arguments_of,
    evaluating,
    outputs_of,
    state_of,
)


def exported(model: nn.Module, x: Any) -> ExportedProgram:
    """The graph of a model in eval mode on an example.

    Raises:
        InferKitError: the model does not run on the example; or names the operator, and the module
            and line that called it.
    """
    if not isinstance(model, nn.Module):
        raise InferKitError(
            f"A {type(model).__name__} is given where a model is expected.",
            "Give the module itself, not its state.",
        )
    args, kwargs = arguments_of(x)
    said = io.StringIO()
    try:
        with _quiet(said), evaluating(model), torch.no_grad():
            return torch.export.export(model, args, kwargs, strict=False)
    except Exception as error:
        outputs_of(model, x, state_of(model))  # says so if it does not run at all
        why = str(error).partition("\n\n")[0].replace("\n", " ")
        raise InferKitError(
            f"{type(model).__name__} cannot be exported, so all of it stays frozen. It stopped"
            f"{_operator(said.getvalue() + str(error))}{_line(model, error)}: "
            f"{type(error).__name__}: {why[:300]}",
            "torch.export must be able to trace the model on this example: no branch on the values "
            "of a tensor, a fake implementation for each custom operator (its register_fake), "
            "tensors and plain containers as outputs. Trace a part of the model, or change the "
            "part that it names.",
        ) from error


@contextlib.contextmanager
def _quiet(said: io.StringIO) -> Any:
    """What torch tells of a failing export goes where it can be read from, not to the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            yield
    finally:
        logging.disable(before)


def _operator(text: str) -> str:
    found = re.findall(r"torch\.ops\.(\w+\.\w+)", text) or [
        f"{space}.{name}" for space, name in re.findall(r"\b(\w+)::(\w+)", text)
    ]
    return f" at the operator {found[-1]}" if found else ""


def _line(model: nn.Module, error: BaseException) -> str:
    """The innermost of the model's modules that was running, and its line."""
    names = {id(module): name for name, module in model.named_modules()}
    found = ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if isinstance(owner, nn.Module) and id(owner) in names:
            file = code.co_filename
            place = f"{type(owner).__name__} {names[id(owner)]!r}".replace(" ''", "")
            line = linecache.getline(file, number).strip()
            found = f" in {place}, {Path(file).name} line {number} ({line})"
    return found
