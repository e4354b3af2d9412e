"""Measures one engine on one shape, in a process of its own: versus_peers.py starts it, and reads a RESULT line a workload.

python benchmarks/versus_child.py ENGINE SHAPE --workloads decode_b1,chat [--serving] [--tiny] [--options JSON]
"""

import argparse
import json
import tempfile
import time
import traceback

import shapes
from versus_engines import ENGINES, versions
from versus_workloads import FULL, TINY, WORKLOADS, Bench, first_token

# Engines go on preparing after their first token, for later steps; workloads begin when that is over, for all engines alike.
SETTLE_SECONDS = 5.0


def say(figures: dict[str, object]) -> None:
    print("RESULT " + json.dumps(figures), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("shape", choices=shapes.SHAPES)
    parser.add_argument("--workloads", default="", help="comma-separated; none = the start alone")
    parser.add_argument("--serving", action="store_true", help="set up as for a server")
    parser.add_argument("--tiny", action="store_true", help="small workloads, for tests")
    parser.add_argument("--options", type=json.loads, default={}, help="JSON of further engine options")
    parser.add_argument(
        "--spawned", type=float, default=time.time(), help="when this process was started, seconds of time.time()"
    )
    options = parser.parse_args()
    scale = TINY if options.tiny else FULL
    vocab = min(150_000, shapes.SHAPES[options.shape]["vocab_size"])
    folder = shapes.write_config(options.shape, tempfile.mkdtemp())
    engine = ENGINES[options.engine](folder, scale.max_model_len, options.serving, options.options)
    bench = Bench(engine, scale, vocab, shapes.np.random.default_rng(0))
    if not (options.serving and options.engine == "quire"):  # which has no call for a whole batch then
        first_token(bench)
        say({"start": time.time() - options.spawned, "versions": versions()})
        bench.run(bench.prompts(1, min(128, scale.max_model_len // 4)), [4])
    names = list(filter(None, options.workloads.split(",")))
    if names and not options.tiny:
        time.sleep(SETTLE_SECONDS)
    for name in names:
        begin = time.perf_counter()
        try:
            figures = WORKLOADS[name](bench)
        except Exception:  # one workload's failure leaves the others their figures
            traceback.print_exc()
            figures = {"failed": name}
        say({**figures, "took_s": round(time.perf_counter() - begin, 2)})
    engine.close()


if __name__ == "__main__":
    main()
