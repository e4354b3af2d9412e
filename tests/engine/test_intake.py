"""Requests of one call on their way to the engine, on a platform whose graphs run the captured work again: what is made when, and mistakes."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from recording_platform import RecordingPlatform
from tiny_checkpoints import VOCAB_SIZE, tiny_qwen2

from quire import LLM, SamplingParams
from quire.engine.engine import Engine
from quire.engine.frontend import Frontend
from quire.engine.intake import MANY_OBJECTS, collect_garbage
from quire.errors import InvalidRequest
from quire.runner.model_runner import ModelRunner

STEP_TOKENS = 16
PROMPTS = [[i % VOCAB_SIZE, 7, 3 * i % VOCAB_SIZE] for i in range(150)]  # three to six times what the first steps take
GREEDY = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen2(tmp_path_factory.mktemp("model"))


def make(folder: Path, **changes: Any) -> LLM:
    settings = {"max_num_batched_tokens": STEP_TOKENS, "max_num_seqs": 8, "max_model_len": 128, "block_size": 4}
    return LLM(str(folder), **{**settings, **changes})


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[Any]:
    """Of a CPU, which does one step at a time."""
    with make(folder) as llm:
        return [output.outputs for output in llm.generate(PROMPTS, GREEDY, use_tqdm=False)]


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are loaded onto that platform."""
    platform = RecordingPlatform()
    for place in ("quire.setup", "quire.engine.engine"):
        monkeypatch.setattr(f"{place}.select_platform", lambda device: platform)


@pytest.fixture
def llm(folder: Path, recording: None) -> Iterator[LLM]:
    with make(folder) as llm:
        yield llm


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens, in order: requests that are made, and steps that the device is asked for."""
    seen: list[str] = []

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **named: (seen.append(name), call(*args, **named))[1]

    watched = (Frontend, "open"), (Frontend, "chat_prompt"), (ModelRunner, "start"), (ModelRunner, "execute")
    for owner, name in watched:
        monkeypatch.setattr(owner, name, noted(name, getattr(owner, name)))
    return seen


def is_idle(llm: LLM) -> bool:
    llm.llm_engine.engine.scheduler.check()
    stats = llm.llm_engine.stats()
    return not (stats.running or stats.waiting or stats.kv_cache_usage or llm.llm_engine.has_unfinished_requests())


def test_the_first_steps_begin_before_the_last_requests_are_made(llm, events, expected):
    outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert [output.outputs for output in outputs] == expected
    assert [output.request_id for output in outputs] == [str(i) for i in range(len(PROMPTS))]
    at_once = -(-2 * STEP_TOKENS // 3)  # what two steps hold
    assert events.index("start") == at_once
    assert events[at_once : at_once + 3] == ["start", "start", "open"]
    assert events.count("open") == len(PROMPTS)


def test_conversations_are_rendered_while_steps_run(llm, events):
    conversations = [[{"role": "user", "content": f"{i} times"}] for i in range(40)]
    outputs = llm.chat(conversations, GREEDY, use_tqdm=False)
    first = events.index("start")
    assert events.count("chat_prompt") == 40 > events[:first].count("chat_prompt") > 0
    rendered = [llm.llm_engine.frontend.chat_prompt(conversation) for conversation in conversations]
    assert [output.prompt for output in outputs] == rendered
    with pytest.raises(InvalidRequest, match="role"):
        llm.chat([*conversations, [{"content": "of nobody"}]], GREEDY, use_tqdm=False)
    assert is_idle(llm)


def test_prompts_whose_beginning_is_cached_do_not_count(llm, events):
    stem = [5, 6, 7, 8, 9]
    llm.generate([stem], GREEDY, use_tqdm=False)
    events.clear()
    llm.generate([stem + prompt for prompt in PROMPTS], GREEDY, use_tqdm=False)
    assert events.index("start") == len(PROMPTS)


def test_a_device_that_does_one_step_at_a_time_begins_when_all_is_checked(folder, events):
    with make(folder) as llm:
        with pytest.raises(InvalidRequest):
            llm.generate([*PROMPTS, [VOCAB_SIZE]], GREEDY, use_tqdm=False)
        assert set(events) == {"open"}


@pytest.mark.parametrize("place", [0, 60, len(PROMPTS)])
def test_a_mistake_ends_the_call_wherever_it_is(llm, expected, place):
    bad = [*PROMPTS[:place], [1, VOCAB_SIZE], *PROMPTS[place:]]
    with pytest.raises(InvalidRequest, match=f"holds token id {VOCAB_SIZE}"):
        llm.generate(bad, GREEDY, use_tqdm=False)
    assert is_idle(llm)
    assert [output.outputs for output in llm.generate(PROMPTS, GREEDY, use_tqdm=False)] == expected
    assert is_idle(llm)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_so_does_whatever_else_a_prompt_raises(llm, expected, error):
    def broken() -> Iterator[int]:
        yield 1
        raise error("in the middle of a prompt")

    with pytest.raises(error, match="in the middle"):
        llm.generate([*PROMPTS, {"prompt_token_ids": broken()}], GREEDY, use_tqdm=False)
    assert is_idle(llm)
    assert [output.outputs for output in llm.generate(PROMPTS, GREEDY, use_tqdm=False)] == expected


def test_a_stream_of_outputs_finds_mistakes_before_it_begins(llm, events):
    with pytest.raises(InvalidRequest):
        llm.generate([*PROMPTS, [VOCAB_SIZE]], GREEDY, stream=True)
    assert set(events) == {"open"} and is_idle(llm)


def test_of_very_many_requests_all_are_made_first(llm, events, expected, monkeypatch):
    """So that no work is lost by a mistake in the last."""
    monkeypatch.setattr("quire.engine.intake.MOST_UNSEEN", len(PROMPTS) - 1)
    with pytest.raises(InvalidRequest):
        llm.generate([*PROMPTS, [VOCAB_SIZE]], GREEDY, use_tqdm=False)
    assert set(events) == {"open"} and is_idle(llm)
    events.clear()
    assert [output.outputs for output in llm.generate(PROMPTS, GREEDY, use_tqdm=False)] == expected
    assert events.index("start") == len(PROMPTS)


@pytest.mark.parametrize("stream", [False, True])
def test_the_engine_picks_by_priority_among_all_requests(folder, recording, events, monkeypatch, stream):
    admitted: list[list[int]] = []
    take_in = ModelRunner._take_in

    def noted(self: ModelRunner, batch: Any) -> None:
        admitted.extend(new.token_ids.tolist() for new in batch.added)
        take_in(self, batch)

    monkeypatch.setattr(ModelRunner, "_take_in", noted)
    with make(folder, scheduling_policy="priority") as llm:
        list(llm.generate(PROMPTS, GREEDY, use_tqdm=False, stream=stream, priority=[*range(len(PROMPTS), 0, -1)]))
        assert admitted == PROMPTS[::-1]
        events.clear()
        llm.generate(PROMPTS, GREEDY, use_tqdm=False, priority=5)
        assert events.count("open") == len(PROMPTS) > events.index("start")


def test_a_bar_that_cannot_be_made_leaves_no_request(llm, expected):
    def no_bar(**options: Any) -> None:
        raise RuntimeError("no terminal")

    with pytest.raises(RuntimeError, match="no terminal"):
        llm.generate(PROMPTS, GREEDY, use_tqdm=no_bar)
    assert is_idle(llm)


@pytest.mark.parametrize("count", [3, 60])
def test_a_request_that_is_interrupted_on_its_way_is_forgotten(llm, expected, monkeypatch, count):
    """Ctrl-C just after the engine has got it."""
    add, calls = Engine.add, iter(range(len(PROMPTS)))

    def interrupted(self: Engine, request: Any) -> None:
        add(self, request)
        if next(calls) == count:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert is_idle(llm)
    assert [output.outputs for output in llm.generate(PROMPTS, GREEDY, use_tqdm=False)] == expected


def test_a_prompt_that_needs_the_host_at_each_step(llm, expected):
    """Its steps are waited for one by one; the others come all the same."""
    params = [GREEDY.clone(logit_bias={3: 0.0}) if i % 10 == 0 else GREEDY for i in range(len(PROMPTS))]
    assert [output.outputs for output in llm.generate(PROMPTS, params, use_tqdm=False)] == expected


def test_garbage_is_collected_where_there_is_much_unless_the_program_will_have_none(monkeypatch):
    monkeypatch.setattr(gc, "get_count", lambda: (MANY_OBJECTS + 1, 0, 0))
    collected: list[int] = []
    monkeypatch.setattr(gc, "collect", collected.append)
    collect_garbage()
    assert collected == [0]
    monkeypatch.setattr(gc, "isenabled", lambda: False)
    collect_garbage()
    monkeypatch.undo()
    monkeypatch.setattr(gc, "get_count", lambda: (MANY_OBJECTS, 0, 0))
    monkeypatch.setattr(gc, "collect", collected.append)
    collect_garbage()
    assert collected == [0]
