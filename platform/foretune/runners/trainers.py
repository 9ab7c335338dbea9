"""Trainers by name: finding one, checking what it returns, naming what it raised."""

from __future__ import annotations

import importlib
import math
import traceback
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from foretune.errors import InputError
from foretune.records import PROXY_TRAINER, RunOutcome, RunSpec, RunStatus
from foretune.runners.interface import Trainer

_PROXY_FUNCTION = "foretune.proxies.train:train_run"
_MESSAGE_LIMIT = 500
"""Characters of an exception's message that a reason keeps: it is read in a table."""


def load_trainer(name: str) -> Trainer:
    """The function behind a trainer's name: the proxies of this package, or `package.module:function`.

    A suffix `#DIGEST`, which tells an edited trainer from the one before, is not looked at. Raises InputError that
    names what was looked for.

    >>> load_trainer("math:sqrt")(9.0)
    3.0
    """
    if name.startswith("replay:"):
        raise InputError(f"trainer {name!r}: replayed runs are looked up, not trained; set runner.kind = 'replay'")
    path, _, _ = name.partition("#")
    module_name, _, function_name = (_PROXY_FUNCTION if path == PROXY_TRAINER else path).partition(":")
    if not module_name or not function_name:
        raise InputError(f"trainer {name!r}: must read package.module:function or {PROXY_TRAINER}")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        hint = "install it, or put its folder on PYTHONPATH"
        raise InputError(f"trainer {name!r}: cannot import {module_name!r} ({error}); {hint}") from error
    trainer = getattr(module, function_name, None)
    if not callable(trainer):
        found = "nothing" if trainer is None else f"{type(trainer).__name__} {trainer!r}"
        raise InputError(f"trainer {name!r}: {module_name!r} must have a function {function_name!r}, found {found}")
    return trainer  # type: ignore[no-any-return]  # any callable; check_outcome holds it to its promise


def check_trainers(specs: Iterable[RunSpec]) -> None:
    """Raise InputError unless every trainer that these runs name can be loaded."""
    for name in sorted({spec.trainer for spec in specs}):
        load_trainer(name)


def check_outcome(outcome: object) -> RunOutcome:
    """The outcome as it is, or a failed one that says how it breaks the promise of a trainer."""
    if not isinstance(outcome, RunOutcome):
        return fail(f"the trainer must return a RunOutcome, got {type(outcome).__name__}")
    if outcome.status is RunStatus.COMPLETED and (outcome.loss is None or not math.isfinite(outcome.loss)):
        return fail(f"a completed run must have a finite loss, got {outcome.loss}; return it as diverged")
    if outcome.status is not RunStatus.COMPLETED and not outcome.reason:
        return outcome.model_copy(update={"reason": f"the trainer gave no reason for {outcome.status.value!r}"})
    try:
        return RunOutcome.model_validate_json(outcome.model_dump_json())  # as a worker sends it; NaN does not survive
    except ValidationError as error:
        return fail(f"the trainer's outcome cannot be written as JSON: {describe_error(error)}")


def fail(reason: str) -> RunOutcome:
    """A failed outcome."""
    return RunOutcome(status=RunStatus.FAILED, reason=reason)


def describe_error(error: BaseException) -> str:
    """Type, message and last frame of an exception, on one line.

    >>> describe_error(ValueError("no such layer"))
    'ValueError: no such layer'
    """
    message = " ".join(str(error).split())
    if len(message) > _MESSAGE_LIMIT:
        message = message[:_MESSAGE_LIMIT] + " ..."
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name})" if frames else ""
    return f"{type(error).__name__}: {message}{where}" if message else f"{type(error).__name__}{where}"
