"""One Ray for the whole session: starting one takes five seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from foretune.runners.environment import prepare_environment

prepare_environment("local")  # before anything imports ray, which reads its settings once


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[None]:
    """A running Ray, which runners made by a test join and leave alone."""
    import ray

    from foretune.runners.raytune import start_ray

    start_ray()
    yield
    ray.shutdown()
