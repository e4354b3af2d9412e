"""LLM as its users call it, on a tiny random model: forms, order, outputs, streaming, failures, lifetimes."""

import gc
import json
import random
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
from tiny_checkpoints import EOS, VOCAB_SIZE, tiny_qwen2

import quire
from quire import LLM, RequestOutput, RequestOutputKind, SamplingParams
from quire.errors import ConfigError, ContextLengthExceeded, EngineUnavailable, InvalidRequest, QuireError, SetupError

SRC = Path(__file__).resolve().parents[1] / "src"
EOS_ID = VOCAB_SIZE - 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_qwen2(tmp_path_factory.mktemp("tiny") / "model")


def make(folder, **kwargs):
    return LLM(str(folder), **{"num_gpu_blocks_override": 300, "max_model_len": 256, **kwargs})


@pytest.fixture(scope="module")
def llm(folder):
    with make(folder) as llm:
        yield llm


def greedy(max_tokens=8, **params):
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, **{"ignore_eos": True, **params})


def everything_is_back(llm):
    engine = llm.llm_engine.engine
    engine.scheduler.check()
    stats = llm.llm_engine.stats()
    return (stats.running, stats.waiting, stats.kv_cache_usage) == (
        0,
        0,
        0.0,
    ) and not llm.llm_engine.has_unfinished_requests()


def test_outputs_have_the_names_and_shapes_users_know(llm):
    (output,) = llm.generate("hello the", greedy(logprobs=2, prompt_logprobs=1))
    assert isinstance(output, RequestOutput)
    assert output.prompt == "hello the" and output.prompt_token_ids == llm.llm_engine.frontend.tokenize("hello the")
    completion = output.outputs[-1]
    assert str(completion.token_ids).startswith("[") and len(completion.token_ids) == 8
    assert completion.finish_reason == "length" and completion.stop_reason is None and completion.finished()
    assert completion.text == llm.llm_engine.frontend.tokenizer.decode(completion.token_ids)
    assert completion.cumulative_logprob == pytest.approx(
        sum(entry[i].logprob for i, entry in zip(completion.token_ids, completion.logprobs, strict=True))
    )
    assert [len(entry) for entry in completion.logprobs] == [2] * 8
    assert output.prompt_logprobs[0] is None and len(output.prompt_logprobs) == len(output.prompt_token_ids)
    assert output.finished and output.num_cached_tokens == 0
    assert output.metrics.arrival_time <= output.metrics.first_token_time <= output.metrics.finished_time


def test_every_form_of_prompt_gives_the_same(llm):
    ids = llm.llm_engine.frontend.tokenize("hello")
    forms = ["hello", ["hello"], ids, [ids], {"prompt": "hello"}, [{"prompt_token_ids": ids}], ("hello",)]
    results = [llm.generate(form, sampling_params=greedy()) for form in forms]
    assert all(len(result) == 1 for result in results)
    assert len({tuple(result[0].outputs[0].token_ids) for result in results}) == 1
    assert llm.generate([]) == []


def test_order_and_one_params_for_each(llm):
    prompts = [f"number {i}" for i in range(20)]
    lengths = [1 + (7 * i) % 12 for i in range(20)]
    outputs = llm.generate(prompts, [greedy(n) for n in lengths])
    assert [o.prompt for o in outputs] == prompts
    assert [len(o.outputs[0].token_ids) for o in outputs] == lengths
    ids = [int(o.request_id) for o in outputs]
    assert ids == list(range(ids[0], ids[0] + 20))


def test_the_eos_token_is_kept_and_its_text_is_not(llm):
    params = SamplingParams(max_tokens=10, logit_bias={EOS_ID: 100.0}, seed=1)
    completion = llm.generate("hello", params)[0].outputs[0]
    assert (completion.token_ids, completion.text, completion.finish_reason) == ([EOS_ID], "", "stop")
    shown = llm.generate("hello", params.clone(skip_special_tokens=False, include_stop_str_in_output=True))[0].outputs[
        0
    ]
    assert shown.text == EOS


def test_stop_strings_cut_the_text_and_free_the_sequence(llm):
    whole = llm.generate("abc", greedy(40))[0].outputs[0].text
    stop = next(whole[i : i + 2] for i in range(8, len(whole)) if whole.find(whole[i : i + 2]) == i)
    for include in (False, True):
        completion = llm.generate("abc", greedy(40, stop=[stop], include_stop_str_in_output=include))[0].outputs[0]
        assert completion.text == whole[: whole.find(stop) + (2 if include else 0)]
        assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)
    assert everything_is_back(llm)


def test_no_params_means_the_checkpoints_defaults(folder, tmp_path):
    model = tiny_qwen2(tmp_path / "model")
    (model / "generation_config.json").write_text(json.dumps({"temperature": 0.0, "max_new_tokens": 5}))
    with make(model) as llm:
        assert llm.get_default_sampling_params() == SamplingParams(temperature=0.0, max_tokens=5)
        assert len(llm.generate("hello")[0].outputs[0].token_ids) <= 5
    with make(model, generation_config="vllm") as llm:
        assert llm.get_default_sampling_params() == SamplingParams()


def test_seeded_sampling_repeats_and_n_sequences_differ(llm):
    params = SamplingParams(n=4, max_tokens=12, seed=3, ignore_eos=True)
    first, second = (llm.generate(["hello", "abc"], params) for _ in range(2))
    tokens = [[c.token_ids for c in output.outputs] for output in first]
    assert tokens == [[c.token_ids for c in output.outputs] for output in second]
    assert [c.index for c in first[0].outputs] == [0, 1, 2, 3]
    assert len({tuple(t) for t in tokens[0]}) == 4
    unseeded = SamplingParams(max_tokens=12, ignore_eos=True)
    assert (
        llm.generate("abc", unseeded)[0].outputs[0].token_ids != llm.generate("abc", unseeded)[0].outputs[0].token_ids
    )


def test_an_engine_with_the_same_seed_draws_the_same(folder):
    def draw(seed):
        with make(folder, seed=seed) as llm:
            return [o.outputs[0].token_ids for o in llm.generate(["a", "b"], SamplingParams(max_tokens=8))]

    assert draw(1) == draw(1) != draw(2)


@pytest.mark.parametrize("kind", [RequestOutputKind.CUMULATIVE, RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY])
def test_streams_add_up(llm, kind):
    prompts = ["hello", "abc", "the the the"]
    whole = llm.generate(prompts, greedy(20, logprobs=1))
    first = int(whole[-1].request_id) + 1
    seen = {}
    for output in llm.generate(prompts, greedy(20, logprobs=1, output_kind=kind), stream=True):
        seen.setdefault(int(output.request_id) - first, []).append(output.outputs[0])
    for i, expected in enumerate(o.outputs[0] for o in whole):
        if kind is RequestOutputKind.DELTA:
            assert "".join(d.text for d in seen[i]) == expected.text
            assert [t for d in seen[i] for t in d.token_ids] == expected.token_ids
            assert [t for d in seen[i] for t in d.logprobs] == expected.logprobs
        else:
            assert seen[i][-1] == expected
            assert len(seen[i]) == (1 if kind is RequestOutputKind.FINAL_ONLY else 20)
    assert everything_is_back(llm)


def test_a_sequence_that_meets_its_stop_string_leaves_while_its_siblings_go_on(llm):
    params = SamplingParams(n=3, max_tokens=60, seed=3, ignore_eos=True)
    texts = [c.text for c in llm.generate("hello", params)[0].outputs]
    stop = next(s for s in (texts[0][i : i + 2] for i in range(5, 40)) if s not in texts[1] + texts[2])
    num_running, last = [], None
    for output in llm.generate("hello", params.clone(stop=stop), stream=True):
        num_running.append(llm.llm_engine.stats().running)
        last = output
    assert [c.text for c in last.outputs] == [text.split(stop)[0] for text in texts]
    assert num_running.count(1) + num_running.count(2) > 30, "the others run on without it"
    assert everything_is_back(llm)


def test_streams_can_be_read_side_by_side_and_left_early(llm):
    expected = [llm.generate(p, greedy(15))[0].outputs[0].token_ids for p in ("hello", "abc")]
    one, two = (llm.generate(p, greedy(15), stream=True) for p in ("hello", "abc"))
    last = [None, None]
    for _ in range(15):
        last = [next(one), next(two)]
    assert [output.outputs[0].token_ids for output in last] == expected
    left = llm.generate(["hello"] * 5, greedy(100), stream=True)
    next(left)
    left.close()
    assert everything_is_back(llm)
    with pytest.raises(InvalidRequest):
        llm.generate("", stream=True)  # before anything is read


def test_threads_may_share_one(llm):
    prompts = [f"thread {i}" for i in range(6)]
    alone = [llm.generate(p, greedy(10))[0].outputs[0].token_ids for p in prompts]
    got = {}

    def work(i):
        got[i] = [o.outputs[0].token_ids for o in llm.generate([prompts[i]] * 4, greedy(10), use_tqdm=False)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {i: [alone[i]] * 4 for i in range(6)}
    assert everything_is_back(llm)


def test_chat_renders_the_template(llm):
    conversation = [{"role": "user", "content": "hi"}]
    rendered = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    (answer,) = llm.chat(conversation, greedy())
    assert answer.prompt == rendered
    assert answer.outputs == llm.generate(rendered, greedy())[0].outputs
    several = llm.chat([conversation, [*conversation, {"role": "assistant", "content": "yes"}]], greedy())
    assert len(several) == 2 and several[0].outputs == answer.outputs
    own = llm.chat(conversation, greedy(), chat_template="{{ messages[0].content }}!", use_tqdm=False)
    assert own[0].prompt == "hi!"
    assert [o.finished for o in llm.chat(conversation, greedy(3), stream=True)] == [False, False, True]
    for wrong in ("hi", [], [{"role": "user"}, 5], [{"content": "no role"}]):
        with pytest.raises(InvalidRequest):
            llm.chat(wrong, greedy())
    with pytest.raises(InvalidRequest, match="content_format"):
        llm.chat(conversation, chat_template_content_format="openai")


def test_a_prompt_of_the_same_conversation_finds_its_beginning_cached(llm):
    prompt = "once upon a time there was a hello and the hello said the"
    first = llm.generate(prompt, greedy(20))[0]
    again = llm.generate(first.prompt_token_ids + first.outputs[0].token_ids, greedy(4))[0]
    assert again.num_cached_tokens > 0 and again.num_cached_tokens % 16 == 0
    llm.reset_prefix_cache()
    afresh = llm.generate(again.prompt_token_ids, greedy(4))[0]
    assert afresh.num_cached_tokens == 0 and afresh.outputs == again.outputs


def test_mistakes_are_found_before_anything_runs(llm):
    for prompts, params, error in (
        (["fine", ""], greedy(), InvalidRequest),
        (["fine", [VOCAB_SIZE]], greedy(), InvalidRequest),
        (["fine", [1] * 256], greedy(), ContextLengthExceeded),
        (["fine", "fine"], [greedy()], InvalidRequest),
        (["fine"], {"temperature": 0}, InvalidRequest),
    ):
        with pytest.raises(error):
            llm.generate(prompts, params)
        assert everything_is_back(llm)
    with pytest.raises(InvalidRequest, match="LoRA"):
        llm.generate("fine", lora_request=object())
    for name in ("encode", "embed", "classify", "score", "reward"):
        with pytest.raises(InvalidRequest, match="The model does not support Embeddings API"):
            getattr(llm, name)("text")


def test_a_request_without_a_choice_fails_alone(llm):
    params = [greedy(), greedy(allowed_token_ids=[7], bad_words=["x"]), greedy()]
    token = llm.llm_engine.frontend.tokenize("x")[0]
    params[1] = greedy(allowed_token_ids=[token], bad_words=["x"])
    alone = llm.generate("hello", greedy())[0].outputs[0]
    outputs = [o.outputs[0] for o in llm.generate(["hello"] * 3, params)]
    assert outputs[0] == outputs[2] == alone
    assert (outputs[1].finish_reason, outputs[1].token_ids) == ("error", []) and "no token" in outputs[1].error
    assert everything_is_back(llm)


@pytest.mark.parametrize("where", ["_forward", "_advance", "_add_logprobs"])
def test_a_failing_step_harms_its_cause_alone(folder, where):
    """Wherever in the step it fails, also when the runner has written down some of the step's results already."""
    with make(folder, max_num_batched_tokens=16, max_num_seqs=8) as llm:
        prompts = ["hello", "abc", "poison", "the the", "a longer prompt that is computed in chunks"]
        params = [
            greedy(20),
            greedy(20, logprobs=1),
            greedy(20),
            SamplingParams(max_tokens=20, seed=1, n=2),
            greedy(20),
        ]
        expected = [o.outputs for o in llm.generate(prompts, params)]
        poison = llm.llm_engine.frontend.tokenize("poison")
        runner = llm.llm_engine.engine.runner
        forward, method, present = runner._forward, getattr(runner, where), []

        def watching(step):
            present[:] = [row for row in step.rows if runner.table.token_ids[row, : len(poison)].tolist() == poison]
            return forward(step)

        def failing(*args):
            result = watching(*args) if where == "_forward" else method(*args)
            if present:
                raise RuntimeError("kernel launch failed")
            return result

        runner._forward = watching
        setattr(runner, where, failing)
        outputs = [o.outputs for o in llm.generate(prompts, params)]
        assert [o for i, o in enumerate(outputs) if i != 2] == [o for i, o in enumerate(expected) if i != 2]
        assert outputs[2][0].finish_reason == "error" and outputs[2][0].error
        runner._forward = forward
        setattr(runner, where, method)
        assert [o.outputs for o in llm.generate(prompts, params)] == expected
        assert everything_is_back(llm)


def test_a_lost_device_fails_everyone_and_says_so(folder):
    with make(folder) as llm:
        runner = llm.llm_engine.engine.runner

        def lost(*_):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        runner._forward = runner.platform.synchronize = lost
        with pytest.raises(EngineUnavailable, match="illegal memory access"):
            llm.generate(["hello", "abc"], greedy())
        with pytest.raises(EngineUnavailable, match="has failed"):
            llm.generate("hello")


def test_ctrl_c_leaves_an_engine_that_works(folder):
    with make(folder) as llm:
        expected = llm.generate("hello", greedy(10))[0].outputs
        runner = llm.llm_engine.engine.runner
        forward = runner._forward
        steps = iter(range(100))

        def interrupted(step):
            if next(steps) == 3:
                raise KeyboardInterrupt
            return forward(step)

        runner._forward = interrupted
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["hello", "abc"], greedy(10))
        assert everything_is_back(llm)
        assert llm.generate("hello", greedy(10))[0].outputs == expected


def test_one_thousand_mixed_requests(folder):
    """None lost, order kept, no foreign text, all blocks back; each request's prompt is its secret."""
    rng = random.Random(5)
    prompts, params = [], []
    for i in range(1000):
        prompts.append([rng.randrange(VOCAB_SIZE) for _ in range(rng.choice([1, 3, 10, 40]))])
        kind = i % 5
        settings = {"max_tokens": rng.randrange(1, 33), "seed": i, "temperature": 0.0 if kind == 0 else 1.0}
        settings |= [{}, {"n": 2}, {"stop": ["e"]}, {"logprobs": 1}, {"top_k": 5, "presence_penalty": 1.0}][kind]
        params.append(SamplingParams(**settings))
    with make(folder, num_gpu_blocks_override=100, block_size=4, max_num_batched_tokens=128) as llm:
        outputs = llm.generate(prompts, params, use_tqdm=False)
        assert llm.llm_engine.stats().num_preemptions > 0, "the cache is small so that sequences lose their blocks"
        assert everything_is_back(llm)
    assert [o.prompt_token_ids for o in outputs] == prompts
    assert all(o.finished and c.finish_reason in ("stop", "length") for o in outputs for c in o.outputs)
    assert [len(o.outputs) for o in outputs] == [p.n for p in params]
    with make(folder) as other:
        for i in rng.sample(range(1000), 60):
            alone = other.generate([prompts[i]], params[i], use_tqdm=False)[0]
            assert alone.outputs == outputs[i].outputs


def test_the_progress_bar(llm, capsys):
    llm.generate(["hello"] * 3, greedy())
    shown = capsys.readouterr().err
    assert "Processed prompts: 100%" in shown and "3/3" in shown
    assert "est. speed input: " in shown and "toks/s, output: " in shown
    llm.generate("hello", greedy(), use_tqdm=False)
    assert capsys.readouterr().err == ""


def test_close_frees_and_many_may_follow_one_another(folder):
    references = []
    for _ in range(3):
        llm = make(folder)
        llm.generate("hello", greedy(2), use_tqdm=False)
        runner = llm.llm_engine.engine.runner
        references.append(weakref.ref(runner.model))
        del runner
        llm.close()
        llm.close()
        with pytest.raises(EngineUnavailable, match="closed"):
            llm.generate("hello")
    dropped = make(folder)
    references.append(weakref.ref(dropped.llm_engine.engine.runner.model))
    del dropped
    gc.collect()
    assert [reference() for reference in references] == [None] * 4


def test_the_engine_can_be_driven_by_hand(llm):
    engine = llm.llm_engine
    engine.add_request("mine", "hello", greedy(5))
    engine.add_request("other", "abc", greedy(50))
    seen = []
    while engine.has_unfinished_requests():
        for output in engine.step():
            seen.append((output.request_id, output.finished))
            if output.request_id == "mine" and output.finished:
                engine.abort_request("other")
    assert seen.count(("mine", True)) == 1 and ("other", True) not in seen
    assert everything_is_back(llm) and engine.get_num_unfinished_requests() == 0


def test_get_tokenizer_is_the_transformers_one(llm):
    tokenizer = llm.get_tokenizer()
    assert tokenizer("hello")["input_ids"] == llm.llm_engine.frontend.tokenize("hello")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False).startswith("<|im_start|>")


def test_without_a_tokenizer_token_ids_still_work(folder):
    with make(folder, skip_tokenizer_init=True) as llm:
        output = llm.generate([1, 2, 3], greedy(4))[0]
        assert len(output.outputs[0].token_ids) == 4 and output.outputs[0].text == ""
        assert llm.get_tokenizer() is None
        with pytest.raises(InvalidRequest, match="skip_tokenizer_init"):
            llm.generate("text")


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"model": "/no/such/folder"}, SetupError, "no such"),
        ({"max_modl_len": 5}, ConfigError, "did you mean max_model_len"),
        ({"dtype": "int3"}, ConfigError, "one of auto, half"),
        ({"tensor_parallel_size": 2}, ConfigError, "tensor_parallel_size"),
        ({"max_model_len": 100_000}, ConfigError, "max_model_len"),
        ({"num_gpu_blocks_override": 2, "max_model_len": 256}, SetupError, "--num-gpu-blocks-override"),
    ],
)
def test_what_cannot_be_is_refused(folder, kwargs, error, message):
    with pytest.raises(error, match=message) as caught:
        LLM(**{"model": str(folder), **kwargs})
    assert isinstance(caught.value, QuireError)


def test_the_import_takes_less_than_0_3_seconds():
    """Of processor time, the best of three, so that a busy machine does not matter."""
    code = "import time; t = time.process_time(); import quire; quire.LLM; print(time.process_time() - t)"
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(SRC)}) for _ in range(3)]
    assert min(float(run.stdout) for run in runs) < 0.3


def test_every_exported_name_is_there():
    assert sorted(quire.__all__) == quire.__all__ and all(getattr(quire, name) for name in quire.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        quire.nonsense  # noqa: B018


def test_a_script_needs_no_main_guard_and_no_gpu_is_touched_by_the_import(folder):
    script = f"""
import sys
from quire import LLM, SamplingParams
assert "torch" not in sys.modules
import os; os.environ["CUDA_VISIBLE_DEVICES"] = ""
llm = LLM({str(folder)!r}, num_gpu_blocks_override=20, max_model_len=64)
print(len(llm.generate("hello", SamplingParams(max_tokens=3, ignore_eos=True))[0].outputs[0].token_ids))
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={"PYTHONPATH": str(SRC)}
    )
    assert result.stdout.strip() == "3", result.stderr
