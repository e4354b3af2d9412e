"""When a sequence ends by itself: eos, stop token ids, lengths. Stop *strings* need text and end in the frontend."""

from typing import NamedTuple

from quire.core.request import Request


class Cut(NamedTuple):
    """How many of the new tokens count, and why the sequence ends there; finish_reason None = it goes on."""

    num_kept: int
    finish_reason: str | None = None
    stop_reason: int | None = None


class StopRule:
    """Where one sequence ends, counted in generated tokens from 1.

        1 ──── min_tokens ──── eos and stop ids end it ──── max_tokens
             they do not                                    "length"

    stop_reasons  token id -> what EngineOutput.stop_reason shall be: None for eos, the id for a stop token
    """

    __slots__ = ("max_tokens", "min_tokens", "stop_reasons")

    def __init__(self, request: Request, max_model_len: int) -> None:
        params = request.params
        room = max_model_len - len(request.prompt_token_ids)
        self.max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
        self.min_tokens = params.min_tokens
        self.stop_reasons: dict[int, int | None] = {token_id: token_id for token_id in params.stop_token_ids or ()}
        if not params.ignore_eos:
            self.stop_reasons.update(dict.fromkeys(request.eos_token_ids))

    def cut(self, num_generated: int, token_ids: list[int]) -> Cut:
        """Keeps new tokens up to and with the first that ends the sequence.

        num_generated  generated before `token_ids`
        The ending token is kept. A token that both stops and is the last allowed one counts as a stop.
        """
        for position, token_id in enumerate(token_ids, start=num_generated + 1):
            if token_id in self.stop_reasons and position > self.min_tokens:
                return Cut(position - num_generated, "stop", self.stop_reasons[token_id])
            if position >= self.max_tokens:
                return Cut(position - num_generated, "length")
        return Cut(len(token_ids))
