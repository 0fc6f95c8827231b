#!/usr/bin/env bash
# Everything that needs a GPU, in one go and within ten minutes: tests, memory checks, kernel times, networks against
# PyTorch, a short run on CIFAR-10. For a machine with an NVIDIA GPU (Ampere or later), CuPy and PyTorch; no network.
#
#   bash benchmarks/gpu.sh [--dry-run] [OUT]
#
# OUT (default: gpu-results) receives log.txt, *.json and gpu.md, the table for benchmarks/gpu.md. A step that fails or
# runs out of time is noted there and the next one starts. MINIGRAD_CIFAR10 names a folder with CIFAR-10's binary files.
set -uo pipefail
cd "$(dirname "$0")/.."

dry_run=false
if [ "${1:-}" = --dry-run ]; then
    dry_run=true
    shift
fi
out=${1:-gpu-results}
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE OPENBLAS_NUM_THREADS
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# step NAME SECONDS COMMAND...: run it with a time limit, note its exit status and seconds in steps.tsv.
step() {
    local name=$1 limit=$2 begin=$SECONDS status
    shift 2
    if $dry_run; then
        echo "$name (at most $limit s): $*"
        return
    fi
    echo "=== $name" | tee -a "$out/log.txt"
    timeout --kill-after=10 "$limit" "$@" 2>&1 | tee -a "$out/log.txt" | tail -n 15
    status=${PIPESTATUS[0]}
    printf '%s\t%s\t%s\n' "$name" "$status" "$((SECONDS - begin))" >>"$out/steps.tsv"
}

if ! $dry_run; then
    mkdir -p "$out"
    rm -f "$out"/steps.tsv "$out"/log.txt "$out"/*.json "$out"/*.jsonl
fi

step environment 10 "$python" benchmarks/gpu_kernels.py --environment "$out/environment.json"
step tests 70 "$python" -m pytest -m cuda -p no:cacheprovider tests/minigrad/fast
# torch.compile and cuDNN's search for algorithms come before the first timed step.
for network in resnext29_8x64d:160 resnext29_4x16d:120; do
    step "bench-${network%:*}" "${network#*:}" "$python" -m train.bench --device cuda --model "${network%:*}" \
        --batch-size 128 --dtype bfloat16 --versus torch --rounds 5 --patience 50 --json "$out/${network%:*}.json"
done
step kernels 70 "$python" benchmarks/gpu_kernels.py --json "$out/kernels.json"
if [ -n "${MINIGRAD_CIFAR10:-}" ]; then
    step cifar10 45 "$python" -m train.cifar --device cuda --dtype bfloat16 --model resnext29_4x16d \
        --data "$MINIGRAD_CIFAR10" --epochs 5 --out "$scratch/run"
    $dry_run || cp "$scratch/run/metrics.jsonl" "$out/cifar10.jsonl" 2>/dev/null
fi
# CuPy's own kernels are compiled here, too, at their first use.
step suite 55 "$python" -m pytest -m cuda -p no:cacheprovider tests --ignore tests/minigrad/fast
# Only the small cases, which the tests mark: under the sanitizer a kernel runs a hundred times slower.
if command -v compute-sanitizer >/dev/null || $dry_run; then
    step memcheck 35 compute-sanitizer --tool memcheck --error-exitcode 9 \
        "$python" -m pytest -m memcheck -p no:cacheprovider tests/minigrad/fast
    step racecheck 25 compute-sanitizer --tool racecheck --error-exitcode 9 \
        "$python" -m pytest -m racecheck -p no:cacheprovider tests/minigrad/fast
fi
step report 10 "$python" benchmarks/gpu_report.py "$out"
