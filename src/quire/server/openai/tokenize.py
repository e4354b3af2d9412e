"""POST /tokenize and /detokenize, in vLLM's shapes: the token ids that a prompt or a chat would have here."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field, WithJsonSchema
from starlette.responses import Response

from quire.core.bounds import BOOLEAN, STRING, TOKEN_IDS
from quire.core.bounds import Field as Bound
from quire.engine.prompts import check_token_ids, integer_ids
from quire.errors import InvalidRequest
from quire.server.body import off_loop, read_object
from quire.server.openai.conversation import prepare
from quire.server.openai.endpoint import ignored_headers, json_response, request_body
from quire.server.openai.fields import CHAT, GENERATE, check_unhonoured
from quire.server.openai.schemas import MAX_MESSAGES, Body, ChatCompletionRequest, ChatPromptFields, Message, parse
from quire.server.serving import Serving
from quire.text.tokenizer import Tokenizer

router = APIRouter()
TOKENIZE: dict[str, Bound] = {
    **{name: {**GENERATE, **CHAT}[name] for name in ("model", "messages", *ChatPromptFields.model_fields)},
    "prompt": Bound(STRING, "a text; this or messages"),
    "add_special_tokens": Bound(BOOLEAN, "put bos and eos where the tokenizer does", default="true of a prompt, false of messages"),
    "return_token_strs": Bound(BOOLEAN, "the tokens as the vocabulary spells them", default="false"),
}  # fmt: skip
DETOKENIZE: dict[str, Bound] = {"model": GENERATE["model"], "tokens": Bound(TOKEN_IDS, "the token ids of a text")}


class TokenizeRequest(Body, ChatPromptFields):
    """A prompt, or messages with what else a chat's prompt depends on. add_special_tokens: default true for a prompt, false for messages."""

    bounds = TOKENIZE
    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message] | None, Field(max_length=MAX_MESSAGES)] = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Body):
    """Token ids."""

    bounds = DETOKENIZE
    model: str | None = None
    tokens: Annotated[list[Any], WithJsonSchema({"type": "array", "items": {"type": "integer"}})]


@router.post("/tokenize", openapi_extra=request_body(TokenizeRequest), response_model=None)
async def tokenize(http: Request) -> Response:
    """Token ids of a prompt, or of the prompt that a chat template makes of messages."""
    serving: Serving = http.app.state.serving
    body = await read_object(http)
    return await off_loop(body.num_bytes, lambda: _tokenized(parse(TokenizeRequest, body.fields), serving))


@router.post("/detokenize", openapi_extra=request_body(DetokenizeRequest), response_model=None)
async def detokenize(http: Request) -> Response:
    """The text of token ids, special tokens included."""
    serving: Serving = http.app.state.serving
    body = await read_object(http)
    return await off_loop(body.num_bytes, lambda: _detokenized(parse(DetokenizeRequest, body.fields), serving))


def _tokenized(request: TokenizeRequest, serving: Serving) -> Response:
    serving.name_for(request.model)
    if (request.prompt is None) == (request.messages is None):
        raise InvalidRequest("give either prompt or messages", "prompt")
    of_chats = [name for name in ChatPromptFields.model_fields if getattr(request, name) is not None]
    if request.prompt is not None and of_chats:
        raise InvalidRequest(f"{of_chats[0]} has a meaning for messages alone, not for a prompt", of_chats[0])
    text = _chat_text(request, serving) if request.prompt is None else request.prompt
    special = request.prompt is not None if request.add_special_tokens is None else request.add_special_tokens
    ids = serving.frontend.tokenize(text, special)
    pieces = [_tokenizer(serving).piece(token_id) for token_id in ids] if request.return_token_strs else None
    answer = {"count": len(ids), "max_model_len": serving.frontend.max_model_len, "tokens": ids, "token_strs": pieces}
    return _response(answer, request, serving)


def _chat_text(request: TokenizeRequest, serving: Serving) -> str:
    """The prompt that a chat with these fields has."""
    fields = {name: getattr(request, name) for name in ChatPromptFields.model_fields}
    return prepare(ChatCompletionRequest(messages=request.messages or [], **fields), serving).prompt


def _detokenized(request: DetokenizeRequest, serving: Serving) -> Response:
    serving.name_for(request.model)
    tokenizer = _tokenizer(serving)
    ids = integer_ids(request.tokens, "tokens")
    check_token_ids(ids, tokenizer.vocab_size, "tokens")
    return _response({"prompt": tokenizer.decode(ids, skip_special_tokens=False)}, request, serving)


def _tokenizer(serving: Serving) -> Tokenizer:
    if serving.frontend.tokenizer is None:
        raise InvalidRequest("there is no tokenizer (--skip-tokenizer-init)")
    return serving.frontend.tokenizer


def _response(answer: dict[str, Any], request: Body, serving: Serving) -> Response:
    return json_response(answer, ignored_headers(check_unhonoured(request.model_extra or {}), serving))
