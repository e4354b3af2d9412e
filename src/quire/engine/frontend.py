"""Frontend: the caller's prompt and params -> a validated Request with its way back. No torch, no engine: LLM, AsyncLLM and the
HTTP process all use this one, so that a check made here is made everywhere.
"""

import functools
import random
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from quire.config import EngineArgs, EngineConfig
from quire.core.params import SamplingParams
from quire.core.request import Request
from quire.engine.prompts import ParsedPrompt, check_param_ids, check_token_ids, parse_prompt
from quire.engine.stream import RequestStream
from quire.errors import CheckpointError, ContextLengthExceeded, InvalidRequest
from quire.hf_config import HfConfig
from quire.text.chat import ChatTemplates
from quire.text.generation_config import GenerationConfig, read_generation_config
from quire.text.grammar import MAX_CLOSING, GrammarChecker, GrammarCompiler, after_reasoning
from quire.text.isolated_grammar import IsolatedChecker
from quire.text.reasoning import think
from quire.text.tokenizer import Tokenizer

# No vocabulary in use spends more bytes on a token over a whole prompt; longer texts are refused before they are tokenised.
MAX_BYTES_A_TOKEN = 16
MAX_SALT_BYTES = 256
TAIL_TOKENS = 8  # of a prompt, enough to see whether it ends with a mark and whitespace


class Frontend:
    """Makes requests for one model.

    tokenizer      None: prompts must be token ids, and outputs have no text
    vocab_size     width of the model's logits; may be above the tokenizer's
    max_model_len  longest prompt and output together, in tokens
    seed           requests without a seed draw theirs from it; None: from the system's entropy
    load_templates reads the chat templates, with another in their place if one is named; called when first needed
    isolated_in    the tokenizer's folder: grammars are compiled in a process that they may end, as those of strangers are
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        *,
        vocab_size: int,
        max_model_len: int,
        generation: GenerationConfig | None = None,
        seed: int | None = None,
        load_templates: Callable[[str | None], ChatTemplates] | None = None,
        isolated_in: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.max_model_len = max_model_len
        self.generation = generation or GenerationConfig()
        self._isolated_in = isolated_in
        self._grammars = functools.lru_cache(maxsize=1)(self._make_checker)
        self._seeds = random.SystemRandom() if seed is None else random.Random(seed)
        self._templates = functools.lru_cache(maxsize=4)(load_templates or (lambda override: ChatTemplates({})))

    @classmethod
    def load(cls, args: EngineArgs, config: EngineConfig, *, for_strangers: bool = False) -> "Frontend":
        """Reads tokenizer and sampling defaults of the checkpoint. for_strangers: requests come from others than whoever runs
        this process. Raises SetupError types."""
        folder = config.tokenizer_dir or config.model_dir
        tokenizer = None if args.skip_tokenizer_init else Tokenizer.from_dir(folder)
        generation = read_generation_config(
            config.model_dir,
            args.generation_config,
            args.override_generation_config,
            tokenizer.eos_token_id if tokenizer else None,
        )
        frontend = cls(
            tokenizer,
            vocab_size=HfConfig.from_dir(config.model_dir, config.hf_overrides).int("vocab_size"),
            max_model_len=config.max_model_len,
            generation=generation,
            seed=config.seed,
            load_templates=lambda override: ChatTemplates.load(
                folder, override or args.chat_template, tokenizer.special_tokens_map if tokenizer else None
            ),
            isolated_in=folder if for_strangers else None,
        )
        frontend.default_params()
        if args.chat_template is not None:
            frontend.templates()
        return frontend

    def templates(self, override: str | None = None) -> ChatTemplates:
        """The model's chat templates; `override` (a file or Jinja text) in their place. Raises ConfigError, CheckpointError."""
        return self._templates(override)

    def chat_prompt(self, messages: Any, *, template: str | None = None, **options: Any) -> str:
        """The prompt text of one conversation; options as ChatTemplate.render. Raises InvalidRequest."""
        options.setdefault("max_chars", self.max_model_len * MAX_BYTES_A_TOKEN)
        return self.templates(template).render(messages, **options)

    def default_params(self) -> SamplingParams:
        """Params of a request that names none: the checkpoint's generation_config.json over SamplingParams()."""
        try:
            return SamplingParams(**self.generation.sampling)
        except InvalidRequest as error:
            raise CheckpointError(f"generation_config.json: {error}; give --generation-config vllm") from None

    def open(
        self,
        prompt: Any,
        params: SamplingParams | None = None,
        *,
        label: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
        add_special_tokens: bool = True,
        cap_max_tokens: bool = True,
        truncate_prompt_tokens: int | None = None,
        truncation_side: str = "left",
        reasons: bool = False,
    ) -> RequestStream:
        """Validates, tokenises and fills in what was left open; hand `.request` to an engine and its outputs to `.push`.

        prompt          text, token ids, or a dict (see prompts.py)
        label           the caller's name for the request; the engine's own id is random
        cap_max_tokens  max_tokens beyond the model length is cut to what fits; False: it is refused
        truncate_prompt_tokens  longer prompts are cut to so many tokens, at truncation_side; -1 = to what max_tokens leaves
        reasons         the model may reason before an output of a given form; see can_reason_first
        Raises InvalidRequest, ContextLengthExceeded.
        """
        parsed = parse_prompt(prompt)
        params = self._own_copy(params)
        token_ids = self._token_ids(parsed, add_special_tokens)
        if truncate_prompt_tokens is not None:
            whole = len(token_ids)
            token_ids = self._cut(token_ids, truncate_prompt_tokens, truncation_side, params.max_tokens)
            parsed = parsed if len(token_ids) == whole else replace(parsed, text=None)
        self._check_ids(token_ids)
        self._complete(params, len(token_ids), cap_max_tokens)
        request = Request(
            id=secrets.token_hex(16),
            prompt_token_ids=token_ids,
            params=params,
            eos_token_ids=self.generation.eos_token_ids,
            bad_words_token_ids=self._bad_words_ids(params),
            priority=priority,
            cache_salt=_checked_salt(parsed.cache_salt or cache_salt),
            grammar=self._grammar(params, token_ids, reasons),
            think_token_ids=self._think_ids(params, token_ids, reasons),
        )
        return RequestStream(request, self.tokenizer, label=label, prompt=parsed.text)

    def _token_ids(self, parsed: ParsedPrompt, add_special_tokens: bool) -> list[int]:
        ids = parsed.token_ids
        if ids is None:
            ids = self.tokenize(parsed.text or "", add_special_tokens)
        if not ids:
            raise InvalidRequest("the prompt is empty; it needs at least one token", "prompt")
        return ids

    def _cut(self, ids: list[int], num_kept: int, side: str, max_tokens: int | None) -> list[int]:
        num_kept = max(1, self.max_model_len - (max_tokens or 1)) if num_kept < 0 else num_kept
        return ids[-num_kept:] if side == "left" else ids[:num_kept]

    def _check_ids(self, ids: list[int]) -> None:
        check_token_ids(ids, self.vocab_size, "prompt")
        if len(ids) >= self.max_model_len:
            raise ContextLengthExceeded(
                f"the prompt has {len(ids)} tokens and the model length is {self.max_model_len}, which must hold at least one "
                f"token of output too; shorten the prompt or raise max_model_len",
                "prompt",
            )

    def tokenize(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a prompt. A text that already begins with BOS (a chat template wrote it) does not get a second one."""
        tokenizer = self._need_tokenizer("a text prompt")
        if len(text) > self.max_model_len * MAX_BYTES_A_TOKEN:
            raise ContextLengthExceeded(
                f"the prompt has {len(text)} characters, too many for the model length of {self.max_model_len} tokens",
                "prompt",
            )
        ids = tokenizer.encode(text, add_special_tokens, max_bytes=self.max_model_len * MAX_BYTES_A_TOKEN)
        bos = tokenizer.bos_token_id
        return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids

    def _own_copy(self, params: SamplingParams | None) -> SamplingParams:
        """A validated copy: fields may have been assigned since the caller's object was made."""
        if params is None:
            return self.default_params()
        if not isinstance(params, SamplingParams):
            raise InvalidRequest(
                f"sampling_params must be SamplingParams, not {type(params).__name__}", "sampling_params"
            )
        copy = params.clone()
        check_param_ids(copy, self.vocab_size)
        if copy.stop_strings:
            self._need_tokenizer("stop")
        return copy

    def _complete(self, params: SamplingParams, num_prompt_tokens: int, cap: bool) -> None:
        """Fills in max_tokens and seed, so that a replay of the request is exact."""
        room = self.max_model_len - num_prompt_tokens
        wanted = room if params.max_tokens is None else params.max_tokens
        name, needed = ("min_tokens", params.min_tokens) if cap else ("max_tokens", wanted)
        if needed > room:
            raise ContextLengthExceeded(
                f"the prompt has {num_prompt_tokens} tokens and {name} is {needed}: together {num_prompt_tokens + needed}, "
                f"above the model length of {self.max_model_len}",
                name,
            )
        params.max_tokens = min(wanted, room)
        if params.seed is None:
            params.seed = self._seeds.getrandbits(64)

    def can_reason_first(self) -> bool:
        """Whether reasoning is between marks that are tokens, so that a grammar can begin after them."""
        return self.tokenizer is not None and None not in map(self.tokenizer.token_to_id, think.MARKS)

    def _grammar(self, params: SamplingParams, token_ids: list[int], reasons: bool) -> str:
        """The grammar of what the output must look like, known to compile; "" = anything. reasons: it may begin after reasoning."""
        if params.structured_outputs is None:
            return ""
        grammar = self._grammars().checked(params.structured_outputs)
        begin, end, tail = self._marks(token_ids, "structured_outputs") if reasons else (None, None, "")
        begun = think.has_begun(tail)
        needed = MAX_CLOSING + 1 if grammar.num_closing is None else grammar.num_closing + begun
        is_json = params.structured_outputs.kind in ("json", "json_object")
        if is_json and needed > (params.max_tokens or 0):
            about = f"more than {MAX_CLOSING}" if needed > MAX_CLOSING else f"about {needed}"
            raise InvalidRequest(
                f"max_tokens is {params.max_tokens}, and the JSON that is asked for takes {about}", "max_tokens"
            )
        # A template that is told not to reason ends the reasoning itself.
        if begin is None or end is None or tail.rstrip().endswith(think.END):
            return grammar.text
        return after_reasoning(grammar.text, -1 if begun else begin, end)

    def _make_checker(self) -> GrammarChecker:
        tokenizer = self._need_tokenizer("structured_outputs")
        eos_token_ids = self.generation.eos_token_ids
        if not eos_token_ids:
            raise InvalidRequest(
                "this model names no token that ends a text, so no output can be constrained", "structured_outputs"
            )
        if self._isolated_in is not None:
            return IsolatedChecker(self._isolated_in, self.vocab_size, eos_token_ids)
        return GrammarCompiler(tokenizer, self.vocab_size, eos_token_ids)

    def _think_ids(self, params: SamplingParams, token_ids: list[int], reasons: bool) -> tuple[int, ...]:
        """The marks around reasoning whose length the params bound."""
        if params.thinking_token_budget is None:
            return ()
        if params.structured_outputs is not None and not reasons:
            raise InvalidRequest(
                "an output of a given form has no reasoning before it; leave out thinking_token_budget",
                "thinking_token_budget",
            )
        begin, end, tail = self._marks(token_ids, "thinking_token_budget")
        if end is None:
            raise InvalidRequest(
                f"this model has no token {think.END} that could end its reasoning", "thinking_token_budget"
            )
        return (-1 if begin is None or think.has_begun(tail) else begin, end)

    def _marks(self, token_ids: list[int], what: str) -> tuple[int | None, int | None, str]:
        """The tokens that begin and end reasoning, None = there is none, and the text that a prompt ends with."""
        tokenizer = self._need_tokenizer(what)
        begin, end = map(tokenizer.token_to_id, think.MARKS)
        return begin, end, tokenizer.decode(token_ids[-TAIL_TOKENS:], skip_special_tokens=False)

    def _bad_words_ids(self, params: SamplingParams) -> tuple[tuple[int, ...], ...]:
        found: list[tuple[int, ...]] = []
        for word in params.bad_words:
            found += self._spellings(word)
        return tuple(dict.fromkeys(found))

    def _spellings(self, word: str) -> list[tuple[int, ...]]:
        """Token sequences of a word at the start of a line and after a space."""
        tokenizer = self._need_tokenizer("bad_words")
        bare = word.lstrip() or word
        spelled = [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in (bare, " " + bare)]
        return [ids for ids in spelled if ids]

    def _need_tokenizer(self, what: str) -> Tokenizer:
        if self.tokenizer is None:
            raise InvalidRequest(f"{what} needs a tokenizer, and there is none (skip_tokenizer_init); use token ids")
        return self.tokenizer


def _checked_salt(salt: str) -> str:
    if len(salt.encode("utf-8", "surrogatepass")) > MAX_SALT_BYTES:
        raise InvalidRequest(f"cache_salt has more than {MAX_SALT_BYTES} bytes", "cache_salt")
    return salt
