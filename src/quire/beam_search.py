"""Beam search on top of single steps: each step asks the engine for the likeliest next tokens of every live hypothesis, whose
common beginnings the prefix cache keeps. Pure decisions: no engine, no torch.

The rules are transformers' with early_stopping=False (generation/utils.py, _beam_search): of the best (1 + number of EOS ids) *
beam_width continuations, those with EOS among the first beam_width are finished, the best beam_width others live on; it ends when
no live one can beat the worst finished one at the present length. Scores: sum of log-probabilities / generated tokens **
length_penalty, EOS counted.
"""

import math
from dataclasses import dataclass, field

from quire.core.params import BeamSearchParams, SamplingParams
from quire.engine.frontend import Frontend
from quire.errors import InvalidRequest
from quire.outputs import BeamSearchOutput, BeamSearchSequence, Logprob, RequestOutput, SampleLogprobs


@dataclass(frozen=True)
class Hypothesis:
    """A continuation: its tokens, the sum of their log-probabilities, and what was known at each of them."""

    token_ids: tuple[int, ...] = ()
    logprob: float = 0.0
    entries: SampleLogprobs = field(default_factory=list)
    stop_id: int | None = None

    def extended(self, token_id: int, entry: dict[int, Logprob], stops: bool) -> "Hypothesis":
        """With one more token."""
        logprob = self.logprob + entry[token_id].logprob
        return Hypothesis(
            (*self.token_ids, token_id), logprob, [*self.entries, entry], token_id if stops else self.stop_id
        )

    def score(self, length_penalty: float) -> float:
        """What hypotheses are compared by when they are finished."""
        return self.logprob / math.pow(len(self.token_ids), length_penalty)


class PromptBeams:
    """The search of one prompt. max_tokens  at most so many are generated; eos_ids  end a hypothesis."""

    def __init__(
        self, prompt_token_ids: list[int], params: BeamSearchParams, max_tokens: int, eos_ids: set[int]
    ) -> None:
        self.prompt_token_ids = prompt_token_ids
        self._params = params
        self._max_tokens = max_tokens
        self._eos_ids = eos_ids
        self.live = [Hypothesis()]
        self.finished: list[Hypothesis] = []

    def take(self, entries: list[dict[int, Logprob]]) -> None:
        """One step: what may come next after each live hypothesis, in their order."""
        width = self._params.beam_width
        grown = [
            hypothesis.extended(token_id, entry, token_id in self._eos_ids)
            for hypothesis, entry in zip(self.live, entries, strict=True)
            for token_id in entry
        ]
        best = sorted(grown, key=lambda h: h.logprob, reverse=True)[: max(2, 1 + len(self._eos_ids)) * width]
        last = len(best[0].token_ids) == self._max_tokens
        self.live = [] if last else [h for h in best if h.stop_id is None][:width]
        self._finish([h for h in best[:width] if last or h.stop_id is not None])
        if not self._can_improve():
            self.live = []

    def _finish(self, hypotheses: list[Hypothesis]) -> None:
        ranked = sorted([*self.finished, *hypotheses], key=self._score, reverse=True)
        self.finished = ranked[: self._params.beam_width]

    def _can_improve(self) -> bool:
        if not self.live or len(self.finished) < self._params.beam_width:
            return bool(self.live)
        return self._score(self.live[0]) > self._score(self.finished[-1])

    def _score(self, hypothesis: Hypothesis) -> float:
        return hypothesis.score(self._params.length_penalty)


class BeamSearch:
    """All prompts of one call, in step. Use: while next_steps(): take(outputs of these). Then outputs().

    prompts  token ids, checked
    Raises InvalidRequest for a temperature that would change scores.
    """

    def __init__(self, frontend: Frontend, params: BeamSearchParams, prompts: list[list[int]]) -> None:
        if not isinstance(params, BeamSearchParams):
            raise InvalidRequest(f"beam_search takes BeamSearchParams, not {type(params).__name__}", "params")
        if params.temperature not in (0.0, 1.0):
            raise InvalidRequest(
                f"temperature {params.temperature} is not for beam search, which samples nothing; leave it out",
                "temperature",
            )
        eos_ids = set() if params.ignore_eos else set(frontend.generation.eos_token_ids)
        self._frontend = frontend
        self._params = params
        self._beams = [
            PromptBeams(ids, params, min(params.max_tokens, frontend.max_model_len - len(ids)), eos_ids)
            for ids in prompts
        ]
        num_candidates = max(2, 1 + len(eos_ids)) * params.beam_width
        self.step_params = SamplingParams(
            temperature=0.0, max_tokens=1, ignore_eos=True, logprobs=min(num_candidates, frontend.vocab_size)
        )

    def next_steps(self) -> list[list[int]]:
        """Token ids of every live hypothesis, to be given one step each; empty when the search is over."""
        return [[*beams.prompt_token_ids, *live.token_ids] for beams in self._beams for live in beams.live]

    def take(self, outputs: list[RequestOutput]) -> None:
        """What those steps gave, in the same order."""
        entries = iter([self._entry(output) for output in outputs])
        for beams in self._beams:
            if beams.live:
                beams.take([next(entries) for _ in beams.live])

    def outputs(self) -> list[BeamSearchOutput]:
        """The finished hypotheses of each prompt, best first."""
        return [BeamSearchOutput([self._sequence(beams, h) for h in beams.finished]) for beams in self._beams]

    @staticmethod
    def _entry(output: RequestOutput) -> dict[int, Logprob]:
        (completion,) = output.outputs
        if not completion.logprobs:
            raise InvalidRequest(f"a step of the beam search failed: {completion.error}")
        return completion.logprobs[0]

    def _sequence(self, beams: PromptBeams, hypothesis: Hypothesis) -> BeamSearchSequence:
        generated = hypothesis.token_ids
        if hypothesis.stop_id is not None and not self._params.include_stop_str_in_output:
            generated = generated[:-1]
        tokens = [*beams.prompt_token_ids, *generated]
        tokenizer = self._frontend.tokenizer
        return BeamSearchSequence(
            tokens=tokens,
            cum_logprob=hypothesis.logprob,
            score=hypothesis.score(self._params.length_penalty),
            logprobs=hypothesis.entries,
            text=tokenizer.decode(tokens) if tokenizer else None,
            finish_reason="length" if hypothesis.stop_id is None else "stop",
            stop_reason=hypothesis.stop_id,
        )
