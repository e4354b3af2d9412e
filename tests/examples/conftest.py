"""A server of the bundled model, for everything here that talks to one."""

from collections.abc import Iterator

import pytest
from servers import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`quire serve` on a free port."""
    with Server(
        tmp_path_factory.mktemp("server") / "log", None, max_model_len=4096, num_gpu_blocks_override=600
    ) as made:
        yield made
