from functools import cache

import pytest
from tokenizer_kinds import KINDS

from quire.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """folders(kind): a checkpoint folder with that kind of tokenizer, made when first asked for."""
    return cache(lambda kind: KINDS[kind](tmp_path_factory.mktemp(kind)))


@pytest.fixture(scope="session")
def tokenizers(folders):
    """tokenizers(kind): quire's tokenizer of that folder."""
    return cache(lambda kind: Tokenizer.from_dir(folders(kind)))
