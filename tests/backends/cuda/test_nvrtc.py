"""Where compiled kernels are kept, and from where they are taken."""

import pytest
import torch

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


@pytest.mark.parametrize(
    ("found", "least", "below", "reasons"),
    [
        ((8, 0), (8, 0), None, []),
        ((12, 0), (8, 0), None, []),
        ((7, 5), (8, 0), None, ["compute capability is 7.5; it is made for 8.0 and above"]),
        ((9, 0), (9, 0), (10, 0), []),
        ((8, 9), (9, 0), (10, 0), ["compute capability is 8.9; it is made for 9.0"]),
        ((10, 0), (9, 0), (10, 0), ["compute capability is 10.0; it is made for 9.0"]),
    ],
)
def test_why_kernels_cannot_run_here(monkeypatch, found, least, below, reasons):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: found)
    monkeypatch.setattr(_nvrtc, "library_path", lambda: "libnvrtc.so")
    assert _nvrtc.why_not(least, below) == reasons
    monkeypatch.setattr(_nvrtc, "library_path", lambda: None)
    assert _nvrtc.why_not(least, below) == (reasons or ["NVRTC, CUDA's run-time compiler, is not installed"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _nvrtc.why_not(least, below) == ["no CUDA device is visible"]
