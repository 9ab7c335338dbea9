"""The `transformers` library, imported without what language models do not need."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


def import_transformers() -> ModuleType:
    """The library. It is kept from importing torchvision: one built for another torch than this one breaks every model.

    `mup` for instance pulls torchvision in, and a CPU build of torch finds none that it can load.
    """
    hidden = "torchvision" not in sys.modules
    if hidden:
        sys.modules["torchvision"] = None  # type: ignore[assignment]  # how Python marks what may not be imported
    try:
        import transformers
        from transformers.utils.import_utils import is_torchvision_available

        is_torchvision_available()  # it remembers what it found
    finally:
        if hidden:
            del sys.modules["torchvision"]
    return transformers


@contextmanager
def silence() -> Iterator[None]:
    """The library's warnings are off: what they warn of we check, and say in the words of a study file."""
    logging = import_transformers().utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
