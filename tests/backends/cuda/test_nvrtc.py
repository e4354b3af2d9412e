"""Where compiled kernels are kept, and from where they are taken."""

import pytest

from quire import caches
from quire.backends.cuda import _nvrtc


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """How often something was compiled, without a compiler."""
    done = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_nvrtc, "_version", lambda: (13, 0))
    monkeypatch.setattr(_nvrtc, "_compile", lambda name, *_: done.append(name) or b"machine code")
    caches._warn.cache_clear()
    yield done
    caches._warn.cache_clear()


def compile_one():
    return _nvrtc.compile_kernel("product.cu", {"WGS": 1}, "sm_90a")


def test_kernels_are_kept_in_the_users_cache(compiled, tmp_path):
    assert compile_one() == compile_one() == b"machine code" and compiled == ["product.cu"]
    (kept,) = (tmp_path / "quire" / "kernels").iterdir()
    kept.write_bytes(b"what is there")
    assert compile_one() == b"what is there"


def test_kernels_that_others_could_have_put_there_are_not_run(compiled, tmp_path, caplog):
    compile_one()
    folder = tmp_path / "quire" / "kernels"
    (kept,) = folder.iterdir()
    kept.write_bytes(b"planted")
    folder.chmod(0o777)
    assert compile_one() == compile_one() == b"machine code" and len(compiled) == 3
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert str(folder) in record.getMessage() and "XDG_CACHE_HOME" in record.getMessage()
    assert kept.read_bytes() == b"planted", "nothing is kept there either"
    folder.chmod(0o700)
    kept.chmod(0o666)
    assert compile_one() == b"machine code" == compile_one() and len(compiled) == 4, "the file is made anew"


def test_a_cache_that_cannot_be_made_costs_a_compilation(compiled, tmp_path):
    (tmp_path / "quire").write_text("a file where a folder should be")
    assert compile_one() == compile_one() == b"machine code" and len(compiled) == 2
