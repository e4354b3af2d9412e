"""What the engine reports of a sequence after a step. Plain data: crosses the process border as it is."""

from dataclasses import dataclass

from quire.core.batch import LogprobColumns, TokenLogprobs

# Errors of a sequence whose kind matters to the caller.
NOT_FINITE_ERROR = "the logits of this request became NaN or infinite"
NO_TOKEN_ALLOWED_ERROR = (
    "allowed_token_ids, bad_words, min_tokens and structured_outputs together leave no token to choose"
)


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """New tokens of one sequence, and its end if it ended.

    index            which of the request's n sequences
    token_ids        new since the last output of this sequence; may be empty (an end without a token, an error)
    logprobs         one entry a token of token_ids, when asked for
    prompt_logprobs  with the first output only: one entry a prompt position from 1 on, when asked for (index 0 only)
    finish_reason    None while it runs; "stop", "length", "abort" or "error"
    stop_reason      the stop token id that ended it; None for eos
    num_cached_tokens  prompt tokens found in the prefix cache
    error            message for the caller when finish_reason is "error"
    """

    request_id: str
    index: int
    token_ids: list[int]
    logprobs: LogprobColumns | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    num_cached_tokens: int = 0
    error: str | None = None
