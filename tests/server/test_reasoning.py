"""Reasoning over HTTP: split out, counted, bounded by a budget under both its names, whole and streamed alike."""

import json

import httpx
import pytest
from servers import Server
from tiny_checkpoints import VOCAB_SIZE, thinking_qwen2

END = VOCAB_SIZE + 1
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def http(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reasoning")
    with Server(folder / "log", thinking_qwen2(folder / "m"), dtype="float32") as server:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            yield client


def ask(http, **fields):
    body = {"messages": MESSAGES, "max_tokens": 40, "seed": 1, "ignore_eos": True, "return_token_ids": True, **fields}
    response = http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response


def streamed(http, **fields):
    response = ask(http, stream=True, stream_options={"include_usage": True}, **fields)
    chunks = [json.loads(line[6:]) for line in response.text.split("\n\n") if line.startswith("data: {")]
    texts = {"reasoning": "", "content": ""}
    for chunk in chunks:
        for choice in chunk["choices"]:
            for name in texts:
                texts[name] += choice["delta"].get(name) or ""
    return texts, chunks[-1]["usage"]


@pytest.mark.parametrize("name", ["thinking_token_budget", "thinking_budget"])
@pytest.mark.parametrize("budget", [0, 5, 12])
def test_a_budget_ends_the_reasoning(http, name, budget):
    fields = {name: budget, "logit_bias": {str(END): -100}}
    answer = ask(http, **fields).json()
    message, usage = answer["choices"][0]["message"], answer["usage"]
    assert answer["choices"][0]["token_ids"].index(END) == budget
    assert usage["completion_tokens_details"] == {"reasoning_tokens": budget + 1} and usage["completion_tokens"] == 40
    assert message["content"] and message.get("reasoning") == message.get("reasoning_content")
    texts, streamed_usage = streamed(http, **fields)
    assert texts == {"reasoning": message.get("reasoning", ""), "content": message["content"]}
    assert streamed_usage["completion_tokens_details"] == usage["completion_tokens_details"]


def test_without_a_budget_all_of_it_may_be_reasoning(http):
    answer = ask(http, logit_bias={str(END): -100}).json()
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 40
    assert answer["choices"][0]["message"]["content"] == ""


def test_each_answer_keeps_the_budget(http):
    answer = ask(http, thinking_token_budget=4, n=3, temperature=1.0).json()
    assert all(END in choice["token_ids"][:5] for choice in answer["choices"])
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] <= 15
    hidden = ask(http, thinking_token_budget=4, include_reasoning=False).json()
    assert "reasoning" not in hidden["choices"][0]["message"]
    assert hidden["usage"]["completion_tokens_details"]["reasoning_tokens"] <= 5


def test_where_nothing_is_thought_there_is_nothing_to_bound(http):
    forced = ask(http, thinking_token_budget=4, structured_outputs={"regex": "[ab]{5}"}, ignore_eos=False).json()
    assert len(forced["choices"][0]["message"]["content"]) == 5
    body = {"prompt": "hello", "max_tokens": 9, "seed": 1, "ignore_eos": True}
    plain = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert http.post("/v1/completions", json={**body, "thinking_token_budget": 3}).json()["choices"][0]["text"] == plain
    thinking = {**body, "prompt": "hello<think>", "thinking_token_budget": 3, "return_token_ids": True}
    assert END in http.post("/v1/completions", json=thinking).json()["choices"][0]["token_ids"][:4]


PERSON = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"], "additionalProperties": False}  # fmt: skip
SCHEMA = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
PLAIN = {"ignore_eos": False, "temperature": 0.0, "max_tokens": 80}
NO_MARKS = {str(token_id): -100 for token_id in range(VOCAB_SIZE - 4, VOCAB_SIZE + 1)}
ASCII = [
    *range(ord("~") - ord("!") + 1),
    VOCAB_SIZE - 4,
    END,
]  # a model with random weights takes to bytes that are no text


def test_a_form_is_asked_of_the_answer_and_not_of_the_reasoning(http):
    fields = {**PLAIN, "logit_bias": NO_MARKS, "thinking_token_budget": 8, "allowed_token_ids": ASCII}
    free = ask(http, **fields).json()["choices"][0]
    formed = ask(http, **fields, response_format=SCHEMA).json()
    choice, usage = formed["choices"][0], formed["usage"]
    assert choice["token_ids"][:9] == free["token_ids"][:9] and END in choice["token_ids"][:9]
    assert choice["message"]["reasoning"] == free["message"]["reasoning"] != ""
    assert set(json.loads(choice["message"]["content"])) == {"age"}
    assert usage["completion_tokens_details"]["reasoning_tokens"] == choice["token_ids"].index(END) + 1
    texts, _ = streamed(http, **fields, response_format=SCHEMA)
    assert texts == {name: choice["message"][name] for name in texts}


def test_json_is_closed_within_its_tokens_though_the_reasoning_would_take_them_all(http):
    choice = ask(http, **PLAIN, logit_bias={**NO_MARKS, str(END): -100}, response_format=SCHEMA).json()["choices"][0]
    assert set(json.loads(choice["message"]["content"])) == {"age"} and choice["message"]["reasoning"]
    assert len(choice["token_ids"]) <= 80


def test_a_forced_call_comes_after_the_reasoning(http):
    tools = [{"type": "function", "function": {"name": "note", "parameters": PERSON}}]
    choice = ask(http, **PLAIN, thinking_token_budget=5, tools=tools, tool_choice="required").json()["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "note" and set(json.loads(call["function"]["arguments"])) == {"age"}
    assert choice["message"]["reasoning"] and choice["finish_reason"] == "tool_calls"
    assert choice["token_ids"].index(END) <= 5


@pytest.mark.parametrize("budget", range(14))
def test_a_budget_that_is_spent_within_a_character_ends_the_reasoning_after_it(http, budget):
    """What the model of random weights writes has characters of several tokens; a grammar knows text alone."""
    fields = {**PLAIN, "logit_bias": NO_MARKS, "thinking_token_budget": budget, "response_format": SCHEMA}
    choice = ask(http, **fields).json()["choices"][0]
    assert set(json.loads(choice["message"]["content"])) == {"age"}
    assert budget <= choice["token_ids"].index(END) <= budget + 3
    assert "\ufffd" not in choice["message"].get("reasoning", "")


def test_marks_that_are_special_tokens_are_seen_though_those_are_left_out(tmp_path):
    folder = thinking_qwen2(tmp_path / "m")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["special"] = True
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with (
        Server(tmp_path / "log", folder, dtype="float32") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        fields = {**PLAIN, "logit_bias": NO_MARKS, "thinking_token_budget": 4, "response_format": SCHEMA}
        messages = [ask(client, **fields, **more).json()["choices"][0]["message"] for more in ({}, {"skip_special_tokens": True})]  # fmt: skip
    assert (
        messages[0] == messages[1] and set(json.loads(messages[0]["content"])) == {"age"} and messages[0]["reasoning"]
    )


def test_reasoning_that_the_prompt_has_ended_does_not_begin_again(http):
    ended = {
        "messages": [*MESSAGES, {"role": "assistant", "content": "<think>\n\n</think>\n\n"}],
        "continue_final_message": True,
    }
    choice = ask(http, **PLAIN, **ended, structured_outputs={"regex": "[ab]{5}"}).json()["choices"][0]
    assert set(choice["message"]["content"]) <= {"a", "b"} and len(choice["message"]["content"]) == 5
    assert "reasoning" not in choice["message"] and len(choice["token_ids"]) <= 6


def test_tokens_for_the_end_of_the_reasoning_count(http):
    body = {"messages": MESSAGES, "response_format": SCHEMA}
    answers = [http.post("/v1/chat/completions", json={**body, "max_tokens": k}) for k in range(1, 12)]
    refused = [answer.status_code for answer in answers].count(400)
    assert 1 < refused < 11 and "takes about" in answers[0].json()["error"]["message"]
    content = [answer.json()["choices"][0]["message"]["content"] for answer in answers[refused:]]
    assert all(set(json.loads(text)) == {"age"} for text in content)
