"""AsyncLLM: streams in event loops, an engine on its own thread that sleeps when idle, aborts when nobody listens any more."""

import asyncio
import gc
import threading
import time

import pytest
from tiny_checkpoints import tiny_qwen2

from quire import LLM, AsyncLLM, EngineArgs, RequestOutputKind, SamplingParams
from quire.errors import ContextLengthExceeded, EngineUnavailable, InvalidRequest, QueueFull, QuireError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_qwen2(tmp_path_factory.mktemp("async") / "model", max_len=4096)


def make(folder, **kwargs):
    return AsyncLLM.from_engine_args(EngineArgs(model=str(folder), **{"num_gpu_blocks_override": 600, **kwargs}))


@pytest.fixture(scope="module")
def llm(folder):
    with make(folder) as llm:
        yield llm


def greedy(max_tokens=10, **params):
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, **params)


async def last(iterator):
    async for output in iterator:  # noqa: B007
        pass
    return output


def scheduler_of(llm):
    return llm._thread._engine.scheduler


async def until_idle(llm, seconds=60.0):
    deadline = time.monotonic() + seconds
    while scheduler_of(llm).has_work() or llm._thread._mailboxes or llm._live:
        assert time.monotonic() < deadline, "the engine goes on for nobody"
        await asyncio.sleep(0.01)
    scheduler_of(llm).check()
    stats = scheduler_of(llm).stats()
    assert (stats.running, stats.waiting, stats.kv_cache_usage) == (0, 0, 0.0)


def test_many_streams_at_once_give_what_each_gives_alone(folder, llm):
    prompts = [f"prompt {i}" for i in range(40)]
    with LLM(str(folder), num_gpu_blocks_override=600) as alone:
        expected = [o.outputs[0] for o in alone.generate(prompts, greedy(logprobs=1), use_tqdm=False)]

    async def main():
        outputs = await asyncio.gather(*(last(llm.generate(p, greedy(logprobs=1), f"id {p}")) for p in prompts))
        await until_idle(llm)
        return outputs

    outputs = asyncio.run(main())
    assert [o.outputs[0] for o in outputs] == expected
    assert [o.request_id for o in outputs] == [f"id {p}" for p in prompts]


@pytest.mark.parametrize("kind", list(RequestOutputKind))
def test_kinds_of_output(llm, kind):
    async def main():
        return [o async for o in llm.generate("hello", greedy(12, output_kind=kind))]

    seen = asyncio.run(main())
    tokens = [o.outputs[0].token_ids for o in seen]
    whole = asyncio.run(last(llm.generate("hello", greedy(12)))).outputs[0]
    assert seen[-1].finished and not any(o.finished for o in seen[:-1])
    if kind is RequestOutputKind.DELTA:
        assert sum(tokens, []) == whole.token_ids and "".join(o.outputs[0].text for o in seen) == whole.text
    else:
        assert tokens[-1] == whole.token_ids and seen[-1].outputs[0].text == whole.text
    assert kind is not RequestOutputKind.FINAL_ONLY or len(seen) == 1


def test_leaving_or_cancelling_ends_the_request(llm):
    async def main():
        async for _ in (left := llm.generate("hello", greedy(4000))):
            break
        await left.aclose()
        task = asyncio.create_task(last(llm.generate("hello", greedy(4000))))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_idle(llm)

    asyncio.run(main())


def test_abort_by_name_ends_the_stream_with_what_it_has(llm):
    async def main():
        task = asyncio.create_task(last(llm.generate("hello", greedy(4000), "mine")))
        other = asyncio.create_task(last(llm.generate("hello", greedy(30), "other")))
        await asyncio.sleep(0.05)
        await llm.abort("unknown")
        await llm.abort("mine")
        output = await task
        assert output.finished and output.outputs[0].finish_reason == "abort" and output.request_id == "mine"
        assert (await other).outputs[0].finish_reason == "length"
        await until_idle(llm)

    asyncio.run(main())


def test_a_stop_string_ends_it_in_the_engine_too(llm):
    async def main():
        text = (await last(llm.generate("abc", greedy(40)))).outputs[0].text
        stopped = (await last(llm.generate("abc", greedy(4000, stop=[text[10:13]])))).outputs[0]
        assert (stopped.text, stopped.finish_reason) == (text[: text.find(text[10:13])], "stop")
        await until_idle(llm)

    asyncio.run(main())


def test_n_sequences_interleave_and_end_once_each(llm):
    async def main():
        params = SamplingParams(n=3, seed=1, max_tokens=9, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
        tokens, ends = {}, []
        async for output in llm.generate("hello", params):
            for completion in output.outputs:
                tokens.setdefault(completion.index, []).extend(completion.token_ids)
                ends += [completion.index] if completion.finished() else []
        assert sorted(ends) == [0, 1, 2] and [len(tokens[i]) for i in range(3)] == [9, 9, 9]

    asyncio.run(main())


def test_errors_reach_the_one_who_asked(folder):
    with make(folder, max_num_queued_reqs=1, max_num_seqs=1, max_num_batched_tokens=64) as llm:

        async def main():
            with pytest.raises(InvalidRequest):
                await last(llm.generate("", greedy()))
            with pytest.raises(ContextLengthExceeded):
                await last(llm.generate([1] * 5000, greedy()))
            tasks = [asyncio.create_task(last(llm.generate("hello", greedy(100)))) for _ in range(6)]
            results = await asyncio.gather(*tasks, return_exceptions=True)
            full = [r for r in results if isinstance(r, QueueFull)]
            assert full and all(r.finished for r in results if not isinstance(r, QueueFull)) and len(full) < 6
            await until_idle(llm)

        asyncio.run(main())


def test_an_idle_engine_sleeps(llm):
    asyncio.run(last(llm.generate("hello", greedy())))

    def used_s() -> float:
        before = time.process_time()
        time.sleep(0.5)
        return time.process_time() - before

    assert any(used_s() < 0.1 for _ in range(20))  # other threads may have something to end first


def test_an_engine_that_fails_tells_everyone_and_takes_no_more(folder):
    with make(folder) as llm:

        def lost():
            raise RuntimeError("illegal memory access")

        async def main():
            tasks = [asyncio.create_task(last(llm.generate("hello", greedy(2000)))) for _ in range(4)]
            await asyncio.sleep(0.05)
            llm._thread._engine.step = lost
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(r, EngineUnavailable) for r in results)
            with pytest.raises(EngineUnavailable, match="illegal memory access"):
                await last(llm.generate("hello", greedy()))

        asyncio.run(main())


def test_closing_ends_live_streams_and_the_thread(folder):
    llm = make(folder)
    thread = llm._thread._thread

    async def main():
        task = asyncio.create_task(last(llm.generate("hello", greedy(4000))))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(llm.close)
        with pytest.raises(EngineUnavailable, match="closed"):
            await task
        with pytest.raises(EngineUnavailable, match="closed"):
            await last(llm.generate("hello"))

    asyncio.run(main())
    llm.close()
    assert not thread.is_alive()


def test_dropping_it_ends_the_thread(folder):
    llm = make(folder)
    thread = llm._thread._thread
    asyncio.run(last(llm.generate("hello", greedy(2))))
    del llm
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()


def test_two_event_loops_in_two_threads_share_one(llm):
    results = {}

    def work(name):
        results[name] = asyncio.run(last(llm.generate("hello", greedy(50)))).outputs[0].token_ids

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3 and len({tuple(tokens) for tokens in results.values()}) == 1


def test_a_storm_of_aborts_leaves_nothing_behind(llm):
    async def main():
        async def one(i):
            iterator = llm.generate(f"storm {i}", greedy(500))
            for _ in range(i % 4):
                await anext(iterator)
            await iterator.aclose()

        await asyncio.gather(*(one(i) for i in range(300)))
        await until_idle(llm)
        assert len((await last(llm.generate("hello", greedy(5)))).outputs[0].token_ids) == 5

    asyncio.run(main())


def test_defaults_and_tokenizer(llm):
    assert llm.get_default_sampling_params() == SamplingParams()
    assert asyncio.run(llm.get_tokenizer())("hello")["input_ids"]
    with pytest.raises(QuireError, match="LoRA"):
        asyncio.run(last(llm.generate("hello", lora_request=object())))
