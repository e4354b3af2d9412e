"""Request: what one caller asked for, already tokenised and validated. Frozen; the engine accepts nothing else."""

from dataclasses import dataclass

from quire.core.params import SamplingParams


@dataclass(frozen=True)
class Request:
    """One prompt and how to continue it; `params.n` sequences grow from it.

    id                   unique within the engine's life; made by us, never the client's
    prompt_token_ids     at least one token, each in [0, vocab_size)
    params               max_tokens and seed are already filled in (never None), so that a replay is exact
    eos_token_ids        end a sequence unless params.ignore_eos; min_tokens forbids them at first
    bad_words_token_ids  token sequences that must not be completed
    priority             lower runs first; equal ones in order of arrival
    cache_salt           requests share prefix-cache blocks only when it is equal
    emitted_token_ids    for a replay after an engine died: tokens of each sequence that its client already has;
                         generation goes on after them. Empty for a new request
    grammar              what the output must match, in llguidance's form; "" = anything
    think_token_ids      (begin, end): the marks around the reasoning that params.thinking_token_budget bounds; begin -1 = the prompt
                         has begun it. Empty = no budget
    """

    id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    eos_token_ids: tuple[int, ...] = ()
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    priority: int = 0
    cache_salt: str = ""
    emitted_token_ids: tuple[tuple[int, ...], ...] = ()
    grammar: str = ""
    think_token_ids: tuple[int, ...] = ()
