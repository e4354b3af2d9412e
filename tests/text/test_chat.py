"""Chat templates: what transformers renders, we render; what they refuse, the caller alone hears of."""

import datetime
import itertools
import json
from pathlib import Path

import pytest
from tokenizer_kinds import qwen2

from quire.errors import CheckpointError, ConfigError, InvalidRequest
from quire.text.chat import ChatTemplate, ChatTemplates, render

ROOT = Path(__file__).resolve().parents[2]
CHATML_FILE = ROOT / "examples" / "template_chatml.jinja"

# Short equivalents of the kinds of template that checkpoints carry.
CHATML = CHATML_FILE.read_text()
QWEN25 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are helpful.' }}
    {%- endif %}
    {{- "\\n# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' and message.tool_calls %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- elif not (tools and loop.first and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
LLAMA3 = """{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start|>' + message['role'] + \
'<|end|>\n\n' + message['content'] | trim + '<|eot|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}\
{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"""
MISTRAL = """{{ bos_token }}
{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if message['role'] == 'user' %}
{{ ' [INST] ' + message['content'] + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
{{ ' ' + message['content'] + eos_token }}
    {% else %}
        {{ raise_exception('Only user and assistant roles are supported!') }}
    {% endif %}
{% endfor %}
"""
PARTS = """{% for message in messages %}<{{ message.role }}>{% if message.content is string %}{{ message.content }}\
{% else %}{% for part in message.content %}{% if part.type == 'text' %}[{{ part.text }}]{% endif %}{% endfor %}{% endif %}\
{% if loop.index > 30 %}{% break %}{% endif %}{% endfor %}"""
PARTS_ALONE = (
    "{% for m in messages %}{{ m.role }}:{% for p in m['content'] %}{{ p['text'] }}{% endfor %}|{% endfor %}{{ 1 }}"
)
GENERATION = """{% for m in messages %}{% set x = 'outer' %}{% if m.role == 'assistant' %}{% generation %}{% set x = 'inner' %}\
{{ m.content }}{% endgeneration %}{% else %}{{ m.role ~ m.content }}{% endif %}{{ x }}{% endfor %}"""
JSON = """{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ strftime_now('%Y') }}{{ undefined_name }}{{ tools }}{{ documents }}\
{%- set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% if m.role == 'x' %}{% continue %}{% endif %}{% endfor %}{{ ns.n }}"""
TEMPLATES = {
    "chatml": CHATML, "qwen2.5": QWEN25, "llama3": LLAMA3, "mistral": MISTRAL, "parts": PARTS,
    "generation": GENERATION, "json": JSON,
}  # fmt: skip

USER = {"role": "user", "content": "  Hi <b>&'\" 你好 😀 {{ 1 }} \n"}
CHATS = [
    [USER],
    [USER, {"role": "assistant", "content": " Hello. "}, {"role": "user", "content": "Bye"}],
    [USER, {"role": "assistant", "content": " Once upon a time, "}],
    [{"role": "system", "content": "Be brief."}, USER],
    [{"role": "assistant", "content": "first"}, {"role": "assistant", "content": ""}],
]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"city": {"type": "string", "d": "城市"}}}}
TOOL_CHAT = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "杭州"}}}]},
    {"role": "tool", "content": "sunny", "tool_call_id": "1"},
]  # fmt: skip
SPECIAL = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(qwen2(tmp_path_factory.mktemp("hf")))
    tokenizer.add_special_tokens({"bos_token": "<|im_start|>"})
    return tokenizer


def outcome(call, *args, **options):
    try:
        return call(*args, **options)
    except Exception as error:
        return type(error).__name__ if isinstance(error, InvalidRequest) else "InvalidRequest"


@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_as_transformers_does(name, hf):
    template = ChatTemplate(TEMPLATES[name], {**SPECIAL, "bos_token": "<|im_start|>"})
    options = [
        {"add_generation_prompt": True},
        {"add_generation_prompt": False},
        {"add_generation_prompt": False, "continue_final_message": True},
        {"add_generation_prompt": True, "tools": [WEATHER]},
    ]
    num_rendered = 0
    for chat, option in itertools.product([*CHATS, TOOL_CHAT], options):
        if chat is TOOL_CHAT and (name != "qwen2.5" or "continue_final_message" in option):
            continue  # a content of null: templates that know no tool calls get "" from us
        if name == "json" and "continue_final_message" in option:
            continue  # it writes the message twice; transformers leaves its mark in the first, we refuse
        expected = outcome(hf.apply_chat_template, chat, chat_template=TEMPLATES[name], tokenize=False, **option)
        assert outcome(template.render, chat, **option) == expected, (chat, option)
        num_rendered += expected != "InvalidRequest"
    assert num_rendered >= 5


def test_extra_variables_reach_the_template(hf):
    for value in (True, False):
        expected = hf.apply_chat_template(
            [USER], chat_template=QWEN25, tokenize=False, add_generation_prompt=True, enable_thinking=value
        )
        template = ChatTemplate(QWEN25)
        assert template.render([USER], template_kwargs={"enable_thinking": value}) == expected
    assert "<think>" in ChatTemplate(QWEN25).render([USER], template_kwargs={"enable_thinking": False})


@pytest.mark.parametrize(
    "kwargs",
    [
        {"messages": []},
        {"chat_template": "x"},
        {"tokenize": True},
        {"bos_token": "x"},
        {"f": print},
        [1],
        {"a": {1, 2}},
    ],
)
def test_variables_that_must_not_be_replaced(kwargs):
    with pytest.raises(InvalidRequest, match="chat_template_kwargs"):
        ChatTemplate(CHATML).render([USER], template_kwargs=kwargs)


def test_parts_become_a_string_where_the_template_wants_one():
    parts = [{"type": "text", "text": "one"}, {"type": "input_text", "text": "two"}, "three"]
    chat = [{"role": "user", "content": parts}]
    assert not ChatTemplate(CHATML).reads_parts
    assert render(chat, CHATML, add_generation_prompt=False) == "<|im_start|>user\none\ntwo\nthree<|im_end|>\n"
    assert ChatTemplate(PARTS).reads_parts
    assert render(chat, PARTS) == "<user>[one][two][three]"
    assert render([{"role": "user", "content": "one"}], PARTS) == "<user>one"


def test_a_string_becomes_a_part_where_the_template_knows_nothing_else():
    assert render([{"role": "user", "content": "one"}], PARTS_ALONE) == "user:one|1"
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b "}]
    text = render(chat, PARTS_ALONE, add_generation_prompt=False, continue_final_message=True)
    assert text == "user:a|assistant:b "


@pytest.mark.parametrize(
    "part", [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text"}, {"type": 3}, 7, None, {"text": ["a"]}]
)
def test_parts_that_are_no_text_are_refused(part):
    with pytest.raises(InvalidRequest, match=r"messages\[0\].content\[0\]"):
        render([{"role": "user", "content": [part]}], CHATML)


def test_developer_is_system_where_the_template_knows_no_developer():
    chat = [{"role": "developer", "content": "Be brief."}, USER]
    assert render(chat, CHATML).startswith("<|im_start|>system\nBe brief.")
    assert render(chat, "{# developer #}" + CHATML).startswith("<|im_start|>developer\nBe brief.")
    assert chat[0]["role"] == "developer"  # the caller's own messages stay as they are


def test_tool_call_arguments_come_as_json_text_too():
    chat = json.loads(json.dumps(TOOL_CHAT))
    chat[1]["tool_calls"][0]["function"]["arguments"] = '{"city": "杭州"}'
    assert render(chat, QWEN25) == render(TOOL_CHAT, QWEN25)
    assert '"arguments": {"city": "杭州"}' in render(chat, QWEN25)
    chat[1]["tool_calls"][0]["function"]["arguments"] = '{"city"'
    with pytest.raises(InvalidRequest, match="no valid JSON"):
        render(chat, QWEN25)


def test_null_content_is_empty_for_templates_without_tool_calls():
    chat = [USER, {"role": "assistant", "content": None}, USER]
    assert "<|im_start|>assistant\n<|im_end|>" in render(chat, CHATML)


@pytest.mark.parametrize(
    "messages",
    [None, [], "hi", {"role": "user"}, ["hi"], [{"content": "x"}], [{"role": 3, "content": "x"}], [None],
     [{"role": "user", "content": 3}], [{"role": "user", "content": object()}], [{"role": "user", "tool_calls": 3}],
     [{"role": "user", "content": "x", "f": len}]],
)  # fmt: skip
def test_bad_messages_are_refused(messages):
    with pytest.raises(InvalidRequest):
        render(messages, CHATML)


def test_deep_nesting_is_refused():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        render([{"role": "user", "content": deep}], CHATML)


def test_what_the_template_raises_is_the_callers_error():
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        render([USER, USER], MISTRAL)
    for template in (
        "{{ messages[5].content }}",
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
        "{{ none.x.y }}",
        "{{ 'x' * 9 ** 99 }}",
    ):
        with pytest.raises(InvalidRequest, match="template"):
            render([USER], template)


def test_continue_final_message_needs_a_template_that_writes_it():
    options = {"add_generation_prompt": False, "continue_final_message": True}
    assert render([USER], CHATML, **options) == "<|im_start|>user\n" + USER["content"]
    with pytest.raises(InvalidRequest, match="continue_final_message"):
        render([USER], "{{ messages[0].role }}", **options)
    with pytest.raises(InvalidRequest, match="continue_final_message"):
        render([USER], JSON, **options)
    with pytest.raises(InvalidRequest, match="exclude each other"):
        render([USER], CHATML, add_generation_prompt=True, continue_final_message=True)


def test_output_is_bounded():
    assert len(render([USER], "{{ 'x' * 100 }}", max_chars=100)) == 100
    with pytest.raises(InvalidRequest, match="more than 100 characters"):
        render([USER], "{% for i in range(90000) %}xxxxxxxxxx{% endfor %}", max_chars=100)


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__ }}",
    "{{ raise_exception.__globals__['__builtins__'] }}",
    "{{ strftime_now.__globals__ }}",
    "{{ ''|attr('__class__') }}",
    "{{ self.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ range(10 ** 9) | list }}",
    "{% for i in range(10 ** 8) %}{% endfor %}",
    "{{ '%s' | format(messages.__class__) }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_the_sandbox_holds(template):
    text = outcome(render, [dict(USER)], template)
    assert text == "InvalidRequest" or ("class" not in text and "<built-in" not in text and "module" not in text), text


def test_templates_of_requests_are_refused_unless_allowed(tmp_path):
    templates = ChatTemplates.load(qwen2(tmp_path), CHATML)
    with pytest.raises(InvalidRequest, match="takes no templates from requests"):
        templates.render([USER], template="{{ 7 * 7 }}")
    assert templates.render([USER], template="{{ 7 * 7 }}", allow_request_template=True) == "49"
    with pytest.raises(InvalidRequest, match="not valid"):
        templates.render([USER], template="{{ 7 * ", allow_request_template=True)


def test_named_templates(tmp_path):
    folder = qwen2(tmp_path)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    entries = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    path.write_text(json.dumps(config | {"chat_template": entries}))
    templates = ChatTemplates.load(folder)
    assert templates.render([USER]) == "plain"
    assert templates.render([USER], tools=[WEATHER]) == "tools"
    assert templates.render([USER], template="tool_use") == "tools"
    assert ChatTemplates.load(folder, "tool_use").render([USER]) == "tools"
    (folder / "chat_template.jinja").write_text("file")
    assert ChatTemplates.load(folder).render([USER], tools=[WEATHER]) == "file"


def test_override_by_file_or_text(tmp_path, monkeypatch):
    folder = qwen2(tmp_path)
    expected = render([USER], CHATML)
    assert ChatTemplates.load(folder, str(CHATML_FILE)).render([USER]) == expected
    monkeypatch.chdir(ROOT)
    assert ChatTemplates.load(folder, "./examples/template_chatml.jinja").render([USER]) == expected
    assert ChatTemplates.load(folder, CHATML).render([USER]) == expected
    with pytest.raises(ConfigError, match="no such file"):
        ChatTemplates.load(folder, "./examples/template_chatm.jinja")
    with pytest.raises(ConfigError, match="not valid"):
        ChatTemplates.load(folder, "{% for %}")


def test_checkpoints_without_or_with_a_broken_template(tmp_path):
    folder = qwen2(tmp_path)
    with pytest.raises(InvalidRequest, match="no chat template"):
        ChatTemplates.load(folder).render([USER])
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(CheckpointError, match="--chat-template"):
        ChatTemplates.load(folder)


def test_special_tokens_of_the_tokenizer_reach_the_template(tokenizers):
    template = ChatTemplate("{{ bos_token }}{{ eos_token }}", tokenizers("llama").special_tokens_map)
    assert template.render([USER]) == "<s></s>"


def test_now_is_now():
    assert render([USER], "{{ strftime_now('%Y-%m') }}") == datetime.datetime.now().strftime("%Y-%m")
