#!/bin/bash
# Runs the GPU tests and benchmarks, every part even when an earlier one fails; prints a summary last.
#   scripts/gpu-check.sh [OUT_DIR [PART...]]     parts: tests ops sweep smoke; default: tests ops
# Logs and JSON go to OUT_DIR (default: $OUT, else results-local).
cd "$(dirname "$0")/.." || exit 1
out=${1:-${OUT:-results-local}}
parts=${*:2}
mkdir -p "$out"
export PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
python=${PYTHON:-python3}
failed=0

part() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 start=$SECONDS status=0
    shift 2
    timeout "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
    [ $status = 0 ] || failed=1
    echo "$name: exit $status after $((SECONDS - start)) s" >>"$out/summary"
}

rm -f "$out/summary"
for name in ${parts:-tests ops}; do
    case $name in
        tests) part tests 420 "$python" -m pytest tests/gpu -p no:cacheprovider --timeout 300 -rfEs --durations 8 ;;
        ops) part ops 180 "$python" benchmarks/gpu_ops.py --out "$out/gpu_ops.json" ;;
        sweep) part sweep 240 "$python" benchmarks/gpu_ops.py --sweep --out "$out/gpu_ops.json" ;;
        smoke) part smoke 420 "$python" benchmarks/gpu_smoke.py --out "$out/gpu_smoke.json" ;;
        *) echo "no part named $name" && exit 2 ;;
    esac
done
for name in ${parts:-tests ops}; do
    echo "== $name"
    case $name in
        tests) grep -vE '^[.sFEx]+ +\[|^$' "$out/tests.log" | cut -c1-220 | tail -n 45 ;;
        *) cut -c1-180 "$out/$name.log" | tail -n 130 ;;
    esac
done
echo "== summary"
cat "$out/summary"
exit $failed
