"""Where compiled kernels are kept."""

from pathlib import Path

from quire.backends.cuda import _nvrtc


def test_kernels_are_kept_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _nvrtc.cache_folder() == tmp_path / "quire" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert _nvrtc.cache_folder() == tmp_path / ".cache" / "quire" / "kernels"


def test_users_without_a_home_have_kernels_compiled_and_not_kept(monkeypatch, tmp_path):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    folder = _nvrtc.cache_folder()
    assert folder.is_absolute() and not folder.exists()
