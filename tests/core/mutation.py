"""Do the tests notice? Breaks the core one line at a time and runs its tests on each broken copy.

    python tests/core/mutation.py [--only N]

For each mutant two scores: caught by the property tests (random walks, then the small-scope model), and caught by any test. A mutant
that lives is printed with its line; those known to change speed or order alone are not in the list.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = Path("tests/core")

MUTANTS: tuple[tuple[str, str, str], ...] = (
    ("stop", "position > self.min_tokens", "position >= self.min_tokens"),
    ("stop", "position >= self.max_tokens", "position > self.max_tokens"),
    ("stop", "if not params.ignore_eos:", "if True:"),
    ("stop", "start=num_generated + 1", "start=num_generated"),
    ("stop", "min(params.max_tokens, room)", "params.max_tokens"),
    ("block_pool", "FreeList(num_blocks - 1)", "FreeList(num_blocks)"),
    ("block_pool", "self._ref_counts[block_id] += 1", "self._ref_counts[block_id] = 1"),
    ("block_pool", "                self._free.remove(block_id)", "                pass"),
    ("block_pool", "for block_id in reversed(block_ids):", "for block_id in block_ids:"),
    ("block_pool", "                self._cache.forget(block_id)", "                pass"),
    ("block_pool", "self._free.prepend(block_id)", "self._free.extend([block_id])"),
    ("prefix_cache", "self.key(parent, token_ids, index))\n            if", "self.key(root, token_ids, index))\n            if"),
    ("prefix_cache", "            parent = entry.prefix_id\n", ""),
    ("prefix_cache", "self.key(chain.parent, token_ids, index)", "self.key(chain.root, token_ids, index)"),
    ("prefix_cache", "self._by_key.get(key) or self._insert(block_ids[index], key)", "self._insert(block_ids[index], key)"),
    ("prefix_cache", "            chain.parent = entry.prefix_id\n", ""),
    ("prefix_cache", "        chain.num_blocks = num_blocks\n", ""),
    ("prefix_cache", "            self.parent = found[-1].prefix_id", "            pass"),
    ("prefix_cache", "            self.num_blocks = len(found)", "            pass"),
    ("prefix_cache", "        self.num_blocks = 0\n", "        self.num_blocks = getattr(self, 'num_blocks', 0)\n"),
    ("prefix_cache", "        self._next_prefix_id += 1\n", ""),
    ("prefix_cache", "            del self._by_key[entry.key]", "            pass"),
    ("prefix_cache", "        self._by_key.clear()\n", ""),
    ("policy", "return (sequence.request.priority, sequence.seq_id)", "return (0, sequence.seq_id)"),
    ("policy", "return (0, sequence.seq_id)", "return (0, -sequence.seq_id)"),
    ("policy", "if entry[1].status is Status.WAITING]", "]"),
    ("policy", "            heapq.heappop(self._heap)\n", "            break\n"),
    ("policy", "        if sequence.index == 0:", "        if True:"),
    ("sequence", "        self.block_ids = []\n        self.num_computed_tokens = self.num_confirmed_tokens = 0\n", "        self.block_ids = []\n"),
    ("sequence", "        self.prefix.restart()\n", ""),
    ("sequence", "            self.prompt_logprobs = []\n", "            pass\n"),
    ("sequence", "+ self.stop.max_tokens - 1", "+ 1"),
    ("sequence", "index == 0 and not emitted", "not emitted"),
    ("sequence", "token_ids=self.token_ids[:]", "token_ids=self.token_ids"),
    ("admission", "if num_prompt >= config.max_model_len:", "if num_prompt > config.max_model_len:"),
    ("admission", "if needed > usable:", "if needed > usable + 1:"),
    ("scheduler", "sequence.num_computed_tokens < len(sequence.block_ids) * block_size", "True"),
    ("scheduler", "num_new and sequence.status is Status.RUNNING", "num_new"),
    ("scheduler", "            step.take_back(victim.seq_id)\n", ""),
    ("step", "            self.budget += row.num_new_tokens", "            pass"),
    ("scheduler", "if s.num_preemptions < MAX_PREEMPTIONS", "if True"),
    ("scheduler", "return max((", "return min(("),
    ("scheduler", "            step.preempted = True\n", ""),
    ("scheduler", "        sequence.num_preemptions += 1\n", ""),
    ("scheduler", "if pinned else len(sequence.token_ids)", "if False else len(sequence.token_ids)"),
    ("scheduler", "if len(self._running) + len(passed) >= self.config.max_num_seqs:", "if False:"),
    ("scheduler", "while step.budget and num_looked_up", "while num_looked_up"),
    ("kv_manager", "- self.pool.num_free_among(block_ids) <", "<"),
    ("scheduler", "return self.pool.num_free - self._num_spare()", "return self.pool.num_free"),
    ("scheduler", "return (len(self._running) + 1) // 2", "return 0"),
    ("scheduler", "self._room() <= self._stuck[1]", "True"),
    ("scheduler", "self._room() <= self._stuck[1]", "False"),
    ("kv_manager", "        self.pool.share(block_ids)\n", ""),
    ("kv_manager", "(len(sequence.token_ids) - 1) // self", "len(sequence.token_ids) // self"),
    ("kv_manager", "self.cache is None or sequence.prompt_logprobs is not None:", "self.cache is None:"),
    ("kv_manager", "if num_blocks > self.pool.num_free:", "if False:"),
    ("kv_manager", "        sequence.block_ids += new_block_ids\n", ""),
    ("kv_manager", "if sum(need for need in needs if need > 0) > self.pool.num_free:", "if False:"),
    ("kv_manager", "num_new + num_spare:", "num_new:"),
    ("kv_manager", "        sequence.prefix.advance(found)\n", ""),
    ("kv_manager", "min(sequence.num_computed_tokens, sequence.num_prompt_tokens)", "sequence.num_computed_tokens"),
    ("kv_manager", "if sequence.num_cached_tokens is None:", "if True:"),
    ("kv_manager", "if self.cache is not None and sequence.prompt_logprobs is None:", "if self.cache is not None:"),
    ("scheduler", "may_overlap and all(self._running[seq_id].goes_unattended for seq_id in step.rows)", "may_overlap"),
    ("scheduler", " and all(s.goes_unattended for s in running)", ""),
    ("sequence", "return self.runs_alone and self.prompt_logprobs is None", "return self.runs_alone"),
    ("decode_steps", "if not all(s.num_computed_tokens >= len(s.token_ids) for s in sequences):", "if False:"),
    ("decode_steps", "min(max_steps - 1, s.num_left)", "max_steps - 1"),
    ("decode_steps", "(s, min(config.max_decode_steps, s.num_left))", "(s, config.max_decode_steps)"),
    ("decode_steps", "row.new_block_ids + block_ids", "block_ids"),
    ("decode_steps", "            sequence.num_computed_tokens += count\n", "            pass\n"),
    ("decode_steps", "for row in batch.scheduled]\n    return", "for row in batch.scheduled if row.seq_id in rows]\n    return"),
    ("decode_steps", "config.padded_rows(num_live) < config.padded_rows(len(sequences))", "False"),
    ("scheduler", "one_token_each = len(step.rows) == self._num_step_tokens", "one_token_each = True"),
    ("scheduler", "needs <= self.pool.num_free and ", ""),
    ("scheduler", "return sequence.goes_unattended and not under_way", "return sequence.goes_unattended"),
    ("scheduler", "return sequence.goes_unattended and not under_way", "return not under_way"),
    ("scheduler", " or (self._in_flight and not self._joins_ahead(sequence))", ""),
    ("scheduler", "                sequence.num_confirmed_tokens += row.num_new_tokens\n", ""),
    ("scheduler", "        if not batch.follows:  # a runner is told of the others later\n", "        if True:\n"),
    ("scheduler", "if len(self._in_flight) != 1 or not self", "if not self"),
    ("admission", "return 0 if whole else budget", "return budget"),
    ("kv_manager", "self.cache.key(parent, sequence.token_ids, index) in begun", "False"),
    ("kv_manager", "s.num_confirmed_tokens < min(s.num_computed_tokens, len(s.token_ids) - 1)", "False"),
    ("scheduler", "            self._prompt_goes_alone = True\n", ""),
    ("scheduler", "            self._prompt_goes_alone = False\n", ""),
    ("scheduler", "            self._removed = []\n        return", "            pass\n        return"),
    ("scheduler", "        self._removed.append(sequence.seq_id)\n", ""),
    ("scheduler", "if sequence is not None:  # else", "if True:  # else"),
    ("scheduler", "        self.kv.file(sequence)\n        prompt_logprobs", "        prompt_logprobs"),
    ("kv_manager", "min(sequence.num_confirmed_tokens, len(sequence.token_ids) - 1)", "sequence.num_confirmed_tokens"),
    ("kv_manager", "min(sequence.num_confirmed_tokens, len", "min(sequence.num_computed_tokens, len"),
    ("kv_manager", "min(sequence.num_confirmed_tokens, len(sequence.token_ids) - 1)", "(len(sequence.token_ids) - 1)"),
    ("kv_manager", "                self.cache.forget(block_id)", "                pass"),
    ("scheduler", "token_ids = result.token_ids[: cut.num_kept]", "token_ids = result.token_ids"),
    ("scheduler", "sequence.prompt_logprobs = sequence.prompt_logprobs, None", "_ = sequence.prompt_logprobs, None"),
    ("scheduler", "if stop.cut(0, emitted).finish_reason is None:", "if True:"),
    ("scheduler", "            self._release_siblings(sequence)\n        return", "            pass\n        return"),
    ("scheduler", "        if status is not Status.HELD:\n", "        if False:\n"),
    ("scheduler", "            self._held[request_id].remove(sequence)", "            pass"),
    ("scheduler", "            self._waiting.discard(sequence)", "            pass"),
    ("scheduler", "        self.pool.free(sequence.block_ids)", "        pass"),
    ("scheduler", "            del self._requests[request_id]", "            pass"),
    ("scheduler", "self._removed = [*batch.removed, *self._removed]", "pass"),
    ("scheduler", "before = sequence.num_computed_tokens - row.num_new_tokens", "before = sequence.num_computed_tokens"),
    ("scheduler", "if self._waiting.num_requests >= limit + num_seats", "if self._waiting.num_requests >= limit"),
)  # fmt: skip

PROPERTY = (
    [sys.executable, str(TESTS / "random_walks.py"), "--operations", "40000"],
    [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", str(TESTS / "test_small_scope.py")],
)
UNITS = (
    [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    + [str(TESTS / f"test_{name}.py") for name in ("stop", "block_pool", "prefix_cache", "scheduler", "decode_steps")],
)  # fmt: skip


def caught(commands: tuple[list[str], ...], source: Path) -> bool:
    """True if one of the commands fails with this source tree; a test that never ends counts as failed."""
    environment = {**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
    for command in commands:
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=120, check=False)
        except subprocess.TimeoutExpired:
            return True
        if done.returncode != 0:
            return True
    return False


def mutate(source: Path, name: str, old: str, new: str) -> None:
    """Writes a fresh copy of the tree with one change."""
    shutil.copytree(ROOT / "src", source, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "_builtin"))
    path = source / "quire" / "core" / f"{name}.py"
    text = path.read_text()
    if old not in text:
        raise SystemExit(f"{name}.py no longer has: {old!r}")
    path.write_text(text.replace(old, new, 1))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", type=int, nargs="*", help="numbers of mutants; all when left out")
    options = parser.parse_args()
    numbers = options.only or range(len(MUTANTS))
    num_property = num_any = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            name, old, new = MUTANTS[number]
            mutate(Path(folder), name, old, new)
            by_property = caught(PROPERTY, Path(folder))
            by_any = by_property or caught(UNITS, Path(folder))
            num_property += by_property
            num_any += by_any
            if not by_property:
                print(
                    f"{number}: {'unit tests alone' if by_any else 'LIVES'}: {name}.py {old!r} -> {new!r}", flush=True
                )
    print(f"{len(numbers)} mutants: {num_property} caught by property tests, {num_any} by any test")
    return int(num_any < len(numbers))


if __name__ == "__main__":
    sys.exit(main())
