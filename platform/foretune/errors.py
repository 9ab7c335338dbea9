"""Errors that a user can act on: each says where, the rule, the value it got, and what to try."""

from __future__ import annotations


class ForetuneError(Exception):
    """The work could not be done (exit code 1)."""


class InputError(ForetuneError):
    """The input was wrong (exit code 2); raised before any compute is spent."""


class RunnerInterruption(ForetuneError):
    """The executor broke down while runs were unfinished; the ledger holds what had finished, so plan again."""
