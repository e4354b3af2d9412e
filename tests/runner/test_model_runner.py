"""ModelRunner from load to close: what a step returns, failures of one sequence, refusals at start, log lines."""

import gc
import json
import logging
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from step_driver import BLOCK_SIZE, Driver, load_runner
from tiny_checkpoints import VOCAB_SIZE, tiny_qwen2

from quire.core.batch import Batch, StepResult
from quire.core.params import SamplingParams
from quire.errors import CheckpointError, ConfigError, MemoryPlanError, UnsupportedModel
from quire.runner.model_runner import ModelRunner
from quire.weights import loader

GREEDY = SamplingParams(temperature=0.0)
POISON = 77  # a token whose embedding the tests fill with NaN
PROMPT = list(range(10, 50))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen2(tmp_path_factory.mktemp("model"))


@pytest.fixture
def runner(folder: Path) -> Iterator[ModelRunner]:
    runner = load_runner(folder)
    yield runner
    runner.close()


def test_a_chunk_gives_nothing_and_the_last_one_a_token(runner: ModelRunner) -> None:
    driver = Driver(runner)
    line = driver.line(PROMPT, GREEDY)
    [result] = driver.step([(line, 30)])
    assert (result.token_ids, result.error, result.logprobs, result.prompt_logprobs) == ([], None, None, None)
    [result] = driver.step([(line, 10)])
    assert len(result.token_ids) == 1 and result.logprobs is None


def test_a_batch_that_schedules_nothing_still_removes(runner: ModelRunner) -> None:
    driver = Driver(runner)
    line = driver.line(PROMPT, GREEDY)
    driver.step([(line, 40)])
    assert len(runner.table) == 1
    assert runner.execute(Batch([], removed=[line.seq_id])) == StepResult([])
    assert len(runner.table) == 0


@pytest.mark.parametrize("chunk", [1, 7, BLOCK_SIZE, 100])
@pytest.mark.parametrize("slice_rows", [3, 64])
def test_prompt_logprobs_come_once_for_every_position_but_the_first(
    runner: ModelRunner, chunk: int, slice_rows: int
) -> None:
    driver = Driver(runner)
    params = SamplingParams(temperature=0.0, prompt_logprobs=2)
    whole, chunked = driver.line(PROMPT, params), driver.line(PROMPT, params)
    driver.run(whole, 1)
    runner.prompt_logprobs.slice_rows = slice_rows
    driver.run(chunked, 3, chunk)
    assert [entry.token_ids[0] for entry in chunked.prompt_logprobs] == PROMPT[1:]
    assert all(len(entry.token_ids) == 3 for entry in chunked.prompt_logprobs)
    assert chunked.prompt_logprobs == whole.prompt_logprobs


def test_only_the_first_of_n_sequences_reports_prompt_logprobs(runner: ModelRunner) -> None:
    driver = Driver(runner)
    params = SamplingParams(n=2, prompt_logprobs=0, seed=1)
    lines = [driver.line(PROMPT, params, index=i) for i in range(2)]
    driver.step([(line, 40) for line in lines])
    assert len(lines[0].prompt_logprobs) == 39
    assert lines[1].prompt_logprobs == []
    assert lines[0].generated != lines[1].generated or lines[0].tokens[:-1] == PROMPT


def test_n_sequences_draw_differently_and_a_seed_repeats(runner: ModelRunner) -> None:
    driver = Driver(runner)
    params = SamplingParams(n=8, seed=5, temperature=2.0)
    lines = [driver.line(PROMPT, params, index=i) for i in range(8)]
    again = [driver.line(PROMPT, params, index=i) for i in range(8)]
    for line in lines + again:
        driver.run(line, 4)
    assert len({tuple(line.generated) for line in lines}) > 4
    assert [line.generated for line in lines] == [line.generated for line in again]


def poison(runner: ModelRunner) -> None:
    runner.model.model.embed_tokens.weight[POISON] = float("nan")


@pytest.mark.parametrize("place", [0, 5, 39], ids=["first", "middle", "last"])
def test_a_sequence_whose_states_are_not_finite_fails_alone(runner: ModelRunner, place: int) -> None:
    driver = Driver(runner)
    expected = driver.line(PROMPT, GREEDY)
    driver.run(expected, 3)
    poison(runner)
    sick_prompt = [*PROMPT[:place], POISON, *PROMPT[place + 1 :]]
    params = SamplingParams(temperature=0.0, logprobs=1, prompt_logprobs=1)
    sick, well = driver.line(sick_prompt, params), driver.line(PROMPT, GREEDY)
    [result, _] = driver.step([(sick, 40), (well, 40)])
    assert result.error == "the logits of this request became NaN or infinite"
    assert (result.token_ids, result.logprobs, result.prompt_logprobs) == ([], None, None)
    driver.run(well, 3)
    assert well.generated == expected.generated and well.errors == []


@pytest.mark.parametrize("place", [0, 70, 149], ids=["first", "middle", "last"])
def test_it_fails_alone_too_where_only_last_rows_are_computed(folder: Path, place: int) -> None:
    runner = load_runner(folder, max_num_batched_tokens=512)
    driver, prompt = Driver(runner), PROMPT * 4
    expected, decoding = driver.line(prompt, GREEDY), driver.line(PROMPT, GREEDY)
    driver.run(expected, 2)
    driver.run(decoding, 1)
    poison(runner)
    sick = driver.line([*prompt[:place], POISON, *prompt[place + 1 : 150]], GREEDY)
    well = driver.line(prompt, GREEDY)
    results = driver.step([(decoding, 1), (sick, 150), (well, len(prompt))])
    assert [result.error is None for result in results] == [True, False, True]
    assert all(layer.isfinite().all() for layer in runner.kv_cache.layers)
    driver.run(well, 2)
    assert well.generated == expected.generated
    runner.close()


def test_a_chunk_that_is_not_finite_fails_before_it_samples(runner: ModelRunner) -> None:
    poison(runner)
    driver = Driver(runner)
    sick = driver.line([POISON, *PROMPT], GREEDY)
    [result] = driver.step([(sick, BLOCK_SIZE)])
    assert result.error is not None


def test_what_a_failed_sequence_wrote_is_wiped(runner: ModelRunner) -> None:
    poison(runner)
    driver = Driver(runner)
    driver.step([(driver.line([POISON, *PROMPT], GREEDY), 41)])
    assert all(layer.isfinite().all() for layer in runner.kv_cache.layers)


def test_a_sequence_that_may_choose_nothing_says_why(runner: ModelRunner) -> None:
    driver = Driver(runner)
    params = SamplingParams(temperature=0.0, allowed_token_ids=[3], min_tokens=2)
    [result] = driver.step([(driver.line(PROMPT, params, eos_token_ids=(3,)), 40)])
    assert result.error is not None and "allowed_token_ids" in result.error


def test_params_of_an_earlier_sequence_do_not_stay_in_its_row(folder: Path) -> None:
    runner = load_runner(folder, max_num_seqs=1)
    driver = Driver(runner)
    plain = driver.line(PROMPT, GREEDY)
    driver.run(plain, 3)
    driver.forget(plain)
    heavy = SamplingParams(
        seed=3, temperature=2.0, top_k=2, top_p=0.5, min_p=0.1, repetition_penalty=2.0, presence_penalty=1.0,
        frequency_penalty=1.0, logprobs=3, prompt_logprobs=2, logit_bias={4: 50.0}, allowed_token_ids=[4, 5],
    )  # fmt: skip
    line = driver.line(PROMPT, heavy)
    driver.run(line, 3)
    driver.forget(line)
    again = driver.line(PROMPT, GREEDY)
    driver.run(again, 3)
    assert again.generated == plain.generated
    assert again.logprobs == again.prompt_logprobs == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_agrees_with_fp32_where_it_is_clear(folder: Path, dtype: str) -> None:
    params = SamplingParams(temperature=0.0, prompt_logprobs=-1)
    entries = []
    for kind in ("float32", dtype):
        driver = Driver(load_runner(folder, dtype=kind))
        line = driver.line(PROMPT, params)
        driver.run(line, 1)
        entries.append(line.prompt_logprobs)
    differences = [
        abs(dict(zip(a.token_ids, a.logprobs, strict=True))[t] - lp)
        for a, b in zip(*entries, strict=True)
        for t, lp in zip(b.token_ids, b.logprobs, strict=True)
        if lp > -3
    ]
    assert len(differences) > 20 and sum(differences) / len(differences) < 0.1 and max(differences) < 0.6


def test_the_lines_that_users_look_for_are_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "quire"):
        load_runner(folder, max_model_len=512, num_gpu_blocks_override=129)
    for text in (
        "Loading weights took ",
        "Model loading took 0.00 GiB and ",
        "CPU KV cache size: 2,048 tokens",
        "Maximum concurrency for 512 tokens per request: 4.00x",
    ):
        assert text in caplog.text


def test_close_frees_the_model_and_the_cache(folder: Path) -> None:
    runner = load_runner(folder)
    watched = [weakref.ref(runner.model), weakref.ref(runner.kv_cache), weakref.ref(runner.table)]
    runner.close()
    runner.close()
    gc.collect()
    assert [ref() for ref in watched] == [None, None, None]


def rewritten(folder: Path, target: Path, **changes: object) -> Path:
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    values = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**values, **changes}))
    return target


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, UnsupportedModel, "implemented are"),
        ({"quantization_config": {"quant_method": "awq"}}, UnsupportedModel, "'awq'"),
        ({"hidden_act": "gelu"}, UnsupportedModel, "hidden_act"),
        ({"vocab_size": VOCAB_SIZE + 1}, CheckpointError, "embed_tokens"),
        ({"num_hidden_layers": 3}, CheckpointError, r"layers\.2"),
        ({"num_hidden_layers": 1}, CheckpointError, "have no place"),
    ],
    ids=str,
)
def test_what_cannot_run_is_refused_at_start(
    folder: Path, tmp_path: Path, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_runner(rewritten(folder, tmp_path, **changes))


def test_memory_is_planned_before_it_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_allocate", lambda *_: pytest.fail("allocated before the plan"))
    with pytest.raises(MemoryPlanError, match="--num-gpu-blocks-override"):
        load_runner(folder, num_gpu_blocks_override=10**9)


def test_an_unknown_backend_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no backend named 'fastest'"):
        load_runner(folder, backends=("fastest",))


def test_config_overrides_reach_the_model(folder: Path) -> None:
    with pytest.raises(UnsupportedModel, match="hidden_act"):
        load_runner(folder, hf_overrides={"hidden_act": "gelu"})


def test_a_runner_without_grammars_does_without_their_library() -> None:
    code = "import sys; import quire.runner.model_runner, quire.engine.frontend; print('llguidance' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr
