"""Tune small, predict large: from a study file to a ledger of runs to a forecast.

    study = foretune.load_study("studies/lr_width_transfer")
    with foretune.open_ledger("foretune.db") as ledger:
        frame = ledger.runs(study="lr_width_transfer")

Names are loaded when first used, so that `import foretune` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from foretune.errors import ForetuneError, InputError
    from foretune.ledger import open_ledger
    from foretune.query import answer_study, predict_target
    from foretune.study import Study, load_study

_HOMES = {
    "ForetuneError": "errors",
    "InputError": "errors",
    "Study": "study",
    "answer_study": "query",
    "load_study": "study",
    "open_ledger": "ledger",
    "predict_target": "query",
}

__all__ = ["ForetuneError", "InputError", "Study", "answer_study", "load_study", "open_ledger", "predict_target"]


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module 'foretune' has no attribute {name!r}; it has {', '.join(__all__)}")
    import importlib

    return getattr(importlib.import_module(f"foretune.{_HOMES[name]}"), name)
