"""The "Processed prompts" bar of LLM.generate, with speeds in the words that users of vLLM know."""

from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from quire.outputs import RequestOutput


class Progress:
    """A bar over requests; without one when `use_tqdm` is false.

    use_tqdm  True, False, or a function to make the bar with, called as tqdm is
    """

    def __init__(self, num_requests: int, use_tqdm: bool | Callable[..., Any]) -> None:
        make = use_tqdm if callable(use_tqdm) else tqdm
        self._bar: Any = None
        self._num_input_tokens = 0
        self._num_output_tokens = 0
        if use_tqdm:
            self._bar = make(
                total=num_requests, desc="Processed prompts", dynamic_ncols=True, postfix=self._speeds(0.0, 0.0)
            )

    def finished(self, output: RequestOutput) -> None:
        """One more request is done."""
        if self._bar is None:
            return
        self._num_input_tokens += len(output.prompt_token_ids) * len(output.outputs)
        self._num_output_tokens += sum(len(completion.token_ids) for completion in output.outputs)
        elapsed_s = self._bar.format_dict["elapsed"] or 1e-9
        self._bar.postfix = self._speeds(self._num_input_tokens / elapsed_s, self._num_output_tokens / elapsed_s)
        self._bar.update(1)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    @staticmethod
    def _speeds(input_rate: float, output_rate: float) -> str:
        return f"est. speed input: {input_rate:.2f} toks/s, output: {output_rate:.2f} toks/s"
