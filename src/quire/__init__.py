"""quire: an LLM inference and serving engine.

Names are loaded when first used, so that `import quire` costs milliseconds, brings no torch and touches no GPU:
CUDA_VISIBLE_DEVICES set after the import still counts.
"""

import importlib
from typing import TYPE_CHECKING, Any

from quire.version import __version__

if TYPE_CHECKING:
    from quire.async_llm import AsyncLLM as AsyncLLM
    from quire.config import EngineArgs as EngineArgs
    from quire.core.params import BeamSearchParams as BeamSearchParams
    from quire.core.params import RequestOutputKind as RequestOutputKind
    from quire.core.params import SamplingParams as SamplingParams
    from quire.core.structured import StructuredOutputsParams as StructuredOutputsParams
    from quire.engine.llm_engine import LLMEngine as LLMEngine
    from quire.llm import LLM as LLM
    from quire.outputs import BeamSearchOutput as BeamSearchOutput
    from quire.outputs import BeamSearchSequence as BeamSearchSequence
    from quire.outputs import CompletionOutput as CompletionOutput
    from quire.outputs import Logprob as Logprob
    from quire.outputs import RequestOutput as RequestOutput

_HOMES = {
    "AsyncLLM": "quire.async_llm",
    "BeamSearchOutput": "quire.outputs",
    "BeamSearchParams": "quire.core.params",
    "BeamSearchSequence": "quire.outputs",
    "CompletionOutput": "quire.outputs",
    "EngineArgs": "quire.config",
    "LLM": "quire.llm",
    "LLMEngine": "quire.engine.llm_engine",
    "Logprob": "quire.outputs",
    "RequestOutput": "quire.outputs",
    "RequestOutputKind": "quire.core.params",
    "SamplingParams": "quire.core.params",
    "StructuredOutputsParams": "quire.core.structured",
}
__all__ = [
    "AsyncLLM",
    "BeamSearchOutput",
    "BeamSearchParams",
    "BeamSearchSequence",
    "CompletionOutput",
    "EngineArgs",
    "LLM",
    "LLMEngine",
    "Logprob",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "StructuredOutputsParams",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'quire' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
