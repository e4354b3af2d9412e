#!/bin/bash
# Runs the GPU tests and benchmarks, every part even when an earlier one fails; prints the ends of the logs and a summary last.
#   scripts/gpu-check.sh [OUT_DIR [PART...]]     parts: parity engine ops sweep splits profile smoke; default: parity engine ops
# Logs and JSON go to OUT_DIR (default: $OUT, else results-local).
cd "$(dirname "$0")/.." || exit 1
out=${1:-${OUT:-results-local}}
parts=${*:2}
parts=${parts:-parity engine ops}
mkdir -p "$out"
export PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
python=${PYTHON:-python3}
pytest="$python -m pytest -p no:cacheprovider --timeout 300 -rfE --durations 5"
failed=0

part() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 start=$SECONDS status=0
    shift 2
    timeout "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
    [ $status = 0 ] || failed=1
    echo "$name: exit $status after $((SECONDS - start)) s" >>"$out/summary"
}

workers() { # kernels compile on as many cores as there are, where pytest can be spread
    "$python" -c "import xdist" 2>/dev/null && echo "-n 8"
}

rm -f "$out/summary"
for name in $parts; do
    case $name in
        parity) part parity 300 $pytest $(workers) tests/gpu/test_gpu_ops.py tests/gpu/test_gpu_graphs.py ;;
        engine) part engine 400 $pytest tests/gpu/test_gpu_models.py tests/gpu/test_gpu_engine.py ;;
        ops) part ops 240 "$python" benchmarks/gpu_ops.py --out "$out/gpu_ops.json" ;;
        sweep) part sweep 240 "$python" benchmarks/gpu_ops.py --sweep --out "$out/gpu_sweep.json" ;;
        splits) part splits 60 "$python" benchmarks/gpu_ops.py --splits ;;
        profile) part profile 200 "$python" benchmarks/gpu_profile.py ${QUIRE_PROFILE_SHAPES:-0.5b 7b} ;;
        smoke) part smoke 420 "$python" benchmarks/gpu_smoke.py ${QUIRE_SMOKE_SHAPES:-0.5b 1.5b 7b} --out "$out/gpu_smoke.json" ;;
        *) echo "no part named $name" && exit 2 ;;
    esac
done
for name in $parts; do
    echo "== $name"
    case $name in
        parity | engine) grep -E '^(FAILED|ERROR|E  )|measured|: |passed|failed' "$out/$name.log" | cut -c1-240 | tail -n 40 ;;
        smoke) grep -vE '^(INFO|RESULT)' "$out/smoke.log" | cut -c1-200 | tail -n 60 ;;
        sweep) cut -c1-160 "$out/sweep.log" | tail -n 40 ;;
        *) cut -c1-110 "$out/$name.log" | tail -n 150 ;;
    esac
done
echo "== summary"
cat "$out/summary"
exit $failed
