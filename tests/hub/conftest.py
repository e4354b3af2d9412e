import pytest

VARIABLES = (
    "HF_ENDPOINT HF_HOME HF_HUB_CACHE HF_HUB_OFFLINE TRANSFORMERS_OFFLINE HF_TOKEN HF_HUB_DISABLE_XET XDG_CACHE_HOME "
    "QUIRE_USE_MODELSCOPE VLLM_USE_MODELSCOPE MODELSCOPE_ENDPOINT MODELSCOPE_CACHE MODELSCOPE_API_TOKEN"
).split()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No variable of the machine counts, and every download lands in the test's own folder."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.chdir(tmp_path)
