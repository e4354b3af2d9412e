"""Models are found by architecture without importing the others; what is not there, and what is broken, are told apart."""

import subprocess
import sys
from pathlib import Path

import pytest

import quire.models
from quire.errors import UnsupportedModel
from quire.hf_config import HfConfig
from quire.models import registry

NAMES = ("LlamaForCausalLM", "MistralForCausalLM", "OPTForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def test_every_architecture_is_listed_with_its_module() -> None:
    found = registry.architectures()
    assert set(NAMES) <= set(found)
    assert found["Qwen2ForCausalLM"] == "qwen2"


def test_the_first_known_architecture_is_taken() -> None:
    module = registry.find_model(HfConfig({"architectures": ["SomethingNew", "LlamaForCausalLM"]}))
    assert module.__name__ == "quire.models.llama"


@pytest.mark.parametrize(
    "values", [{"architectures": ["GPT2LMHeadModel"]}, {}, {"architectures": None}, {"architectures": [3]}]
)
def test_an_unknown_architecture_is_refused_with_the_list(values: dict[str, object]) -> None:
    with pytest.raises(UnsupportedModel, match="implemented are LlamaForCausalLM, MistralForCausalLM, OPTForCausalLM"):
        registry.find_model(HfConfig(values))


def test_a_model_that_fails_to_import_is_not_taken_for_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text('import no_such_package\nARCHITECTURES = ("BrokenForCausalLM",)\n')
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "registry.py"))
    monkeypatch.setattr(quire.models, "__path__", [str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        registry.find_model(HfConfig({"architectures": ["BrokenForCausalLM"]}))


def test_listing_imports_no_model() -> None:
    code = (
        "import sys; from quire.models import registry; registry.architectures();"
        "print([m for m in sys.modules if m.startswith('quire.models.') and m != 'quire.models.registry'])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
