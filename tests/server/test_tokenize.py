"""/tokenize of messages counts what /v1/chat/completions computes, whatever shapes the prompt, and what transformers makes of it."""

import json

import httpx
import pytest
from servers import Server, fake_model
from tiny_checkpoints import VOCAB_SIZE, thinking_tokenizer

# Reads all that a request can say to a template.
READS_ALL = """{%- if tools %}<tools>{{ tools | tojson }}</tools>
{% endif %}{% for document in documents or [] %}<doc>{{ document.text }}</doc>
{% endfor %}{% if reasoning_effort is defined %}<effort>{{ reasoning_effort }}</effort>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>
{% endif %}{% if message.content %}{{ message.content }}{% endif %}{% for call in message.tool_calls or [] %}<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}{% if not loop.last or add_generation_prompt %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""
FUNCTION = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
TOOLS = [{"type": "function", "function": FUNCTION}]
USER = {"role": "user", "content": "How is it in Oslo?"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "How is it"}, {"type": "text", "text": "in Oslo?"}]}
THOUGHT = {"role": "assistant", "content": "It is", "reasoning_content": "hm"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}]}  # fmt: skip
RESULT = {"role": "tool", "content": "sunny", "tool_call_id": "1"}
OLD_CALL = {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
OLD_RESULT = {"role": "function", "name": "weather", "content": "sunny"}

# What transformers knows too.
COMMON = [
    {},
    {"add_generation_prompt": False},
    {"add_generation_prompt": False, "continue_final_message": True, "messages": [USER, THOUGHT]},
    {"messages": [USER, THOUGHT, USER]},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"chat_template_kwargs": {"enable_thinking": True, "reasoning_effort": "low"}},
    {"tools": TOOLS},
    {"tools": TOOLS, "messages": [USER, CALL, RESULT]},
    {"documents": [{"title": "a", "text": "It rains."}]},
]
OURS = [
    {"continue_final_message": True, "messages": [USER, THOUGHT]},
    {"messages": [PARTS]},
    {"tools": []},
    {"tools": TOOLS, "tool_choice": "none"},
    {"tools": TOOLS, "tool_choice": "required"},
    {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "weather"}}},
    {"functions": [FUNCTION], "messages": [USER, OLD_CALL, OLD_RESULT]},
    {"functions": [FUNCTION], "function_call": "none"},
    {"reasoning_effort": "low"},
    {"reasoning_effort": "none"},
    {"add_special_tokens": True},
]


def folder_of(root, template):
    thinking_tokenizer(fake_model(root, vocab_size=VOCAB_SIZE + 2))
    config = json.loads((root / "tokenizer_config.json").read_text())
    (root / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    return root


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    """A server whose template reads everything, and the tokenizer's folder."""
    folder = folder_of(tmp_path_factory.mktemp("reading") / "m", READS_ALL)
    with (
        Server(folder.parent / "log", folder, fake=True) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        yield http, folder  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A server whose template knows no tools: they are described in words."""
    root = tmp_path_factory.mktemp("plain")
    with Server(root / "log", fake_model(root / "m", vocab_size=VOCAB_SIZE), fake=True) as server:
        with httpx.Client(base_url=server.url, timeout=60) as http:
            yield http


def tokens_of(http, fields):
    """What /tokenize says, after the chat's usage and its own token ids have said the same."""
    body = {"messages": [USER], **fields}
    tokenized, chat = (
        http.post(path, json={**body, **more})
        for path, more in (
            ("/tokenize", {}),
            ("/v1/chat/completions", {"max_tokens": 100, "return_token_ids": True}),
        )
    )
    assert (tokenized.status_code, chat.status_code) == (200, 200), (tokenized.text, chat.text)
    assert "x-quire-ignored" not in tokenized.headers
    found = tokenized.json()
    assert found["tokens"] == chat.json()["prompt_token_ids"]
    assert found["count"] == chat.json()["usage"]["prompt_tokens"] == len(found["tokens"])
    return found["tokens"]


def name_of(fields):
    return "-".join(fields) or "nothing"


@pytest.mark.parametrize("fields", [*COMMON, *OURS], ids=name_of)
def test_the_prompt_is_the_chats(reading, plain, fields):
    tokens_of(reading[0], fields)
    if not {"documents"} & set(fields):  # refused where the template reads none
        tokens_of(plain, fields)


@pytest.mark.parametrize("fields", COMMON, ids=name_of)
def test_the_prompt_is_that_of_transformers(reading, fields):
    from transformers import AutoTokenizer

    http, folder = reading
    options = {"add_generation_prompt": True, **fields}
    options |= options.pop("chat_template_kwargs", {})
    messages = json.loads(json.dumps(options.pop("messages", [USER])))
    for call in (call for message in messages for call in message.get("tool_calls", ())):
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokens_of(http, fields) == tokenizer.apply_chat_template(messages, return_dict=False, **options)


def test_every_option_counts(reading):
    """Otherwise the comparisons above would not say much."""
    usual = tokens_of(reading[0], {})
    same = [fields for fields in [*COMMON, *OURS] if tokens_of(reading[0], fields) == usual]
    none = {"tools": TOOLS, "tool_choice": "none"}, {"functions": [FUNCTION], "function_call": "none"}
    assert same == [{}, {"tools": []}, *none, {"add_special_tokens": True}]


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"documents": [{"text": "a"}]}, "documents"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"functions": [FUNCTION], "tools": TOOLS}, "functions"),
        ({"messages": []}, "messages"),
    ],
)
def test_what_a_chat_refuses_is_refused_alike(plain, fields, param):
    answers = [plain.post(path, json={"messages": [USER], **fields}) for path in ("/tokenize", "/v1/chat/completions")]
    assert [answer.status_code for answer in answers] == [400, 400]
    assert answers[0].json() == answers[1].json() and answers[0].json()["error"]["param"] == param


@pytest.mark.parametrize("field", ["tools", "add_generation_prompt", "chat_template_kwargs", "documents"])
def test_what_is_of_chats_is_refused_beside_a_prompt(plain, field):
    value = {"add_generation_prompt": False, "chat_template_kwargs": {}}.get(field, [])
    answer = plain.post("/tokenize", json={"prompt": "hello", field: value})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == field, answer.text
