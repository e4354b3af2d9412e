"""One start, timed: run by quire.bench.startup as `python -m quire.bench.startup_child SPAWNED OPTIONS`, prints its phases as JSON."""

import importlib
import json
import logging
import sys
import time
from typing import Any

from quire.config import EngineArgs
from quire.head_start import head_start

PROMPT_TOKENS = 16


class PhaseHandler(logging.Handler):
    """Collects what log lines say of phases: records with `phase` and `seconds`."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.phases: dict[str, float] = {}

    @classmethod
    def listening(cls) -> "PhaseHandler":
        """To all of quire."""
        made, logger = cls(), logging.getLogger("quire")
        logger.addHandler(made)
        logger.setLevel(logging.INFO)
        return made

    def emit(self, record: logging.LogRecord) -> None:
        phase, seconds = getattr(record, "phase", None), getattr(record, "seconds", 0.0)
        if phase is not None:
            name = f"  {phase}"
            self.phases[name] = self.phases.get(name, 0.0) + seconds


class Stopwatch:
    """Names the time since the last name."""

    def __init__(self, begun: float) -> None:
        self.phases: dict[str, float] = {}
        self._begun = self._last = begun

    def lap(self, phase: str, parts: dict[str, float] | None = None) -> None:
        """`parts` go below the phase."""
        now = time.time()
        self.phases[phase] = now - self._last
        self.phases |= parts or {}
        self._last = now

    def total(self, phase: str) -> None:
        """All of it."""
        self.phases[phase] = time.time() - self._begun


def main(spawned: float, args: EngineArgs) -> dict[str, float]:
    """Phases of a start with these options, in seconds, in order."""
    watch = Stopwatch(spawned)
    watch.lap("Python and its command line")
    with head_start(args.device):  # as LLM() has it, around more
        model = _load(watch, args)
    handler = PhaseHandler.listening()
    prompt = {"prompt_token_ids": [i % model.llm_engine.frontend.vocab_size for i in range(1, 1 + PROMPT_TOKENS)]}
    params = importlib.import_module("quire.core.params").SamplingParams
    model.generate(prompt, params(max_tokens=1, temperature=0.0, ignore_eos=True, detokenize=False), use_tqdm=False)
    watch.lap("first step", handler.phases)
    watch.total("first token after")
    model.llm_engine.close()
    return watch.phases


def _load(watch: Stopwatch, args: EngineArgs) -> Any:
    """The LLM."""
    importlib.import_module("torch")
    watch.lap("import torch")
    importlib.import_module("quire.engine.llm_engine")
    llm = importlib.import_module("quire.llm")
    watch.lap("import quire's engine")
    importlib.import_module("quire.platform").select_platform(args.device).facts()
    watch.lap("device context")
    handler = PhaseHandler.listening()
    model = llm.LLM.from_engine_args(args)
    watch.lap("LLM(): config, weights, KV cache", handler.phases)
    return model


if __name__ == "__main__":
    print(json.dumps(main(float(sys.argv[1]), EngineArgs(**json.loads(sys.argv[2])))))
