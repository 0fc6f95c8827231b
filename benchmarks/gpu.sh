#!/usr/bin/env bash
# Everything that needs a GPU, in one go and within ten minutes: a check of all kernels, networks against PyTorch,
# kernel times, tests, memory checks, a short run on CIFAR-10. For a machine with an NVIDIA GPU and CuPy, and best also
# PyTorch, pytest and compute-sanitizer; no network. The first step says in a sentence each what is missing.
#
#   bash benchmarks/gpu.sh [--dry-run] [OUT]
#
# OUT (default: gpu-results) receives log.txt, *.json and gpu.md, the table for benchmarks/gpu.md, as the figures come. A
# step that fails or runs out of time is noted there and the next one starts. MINIGRAD_CIFAR10 names a folder with
# CIFAR-10's binary files.
set -uo pipefail
cd "$(dirname "$0")/.."

dry_run=false
if [ "${1:-}" = --dry-run ]; then
    dry_run=true
    shift
fi
out=${1:-gpu-results}
out=${out%/}
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1
export MINIGRAD_CHECK=0 # the second step is that check
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE OPENBLAS_NUM_THREADS
scratch=$(mktemp -d)
begun=false
trap finish EXIT

# However this script ends, the figures that it has become a report.
finish() {
    rm -rf "$scratch"
    if $begun; then "$python" benchmarks/gpu_report.py "$out" >/dev/null; fi
}

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
    return "$status"
}

# can PART: whether the first step has found what a part needs; value NAME: what it has chosen for this card.
can() { $dry_run || grep -qx "$1" "$out/parts"; }
value() { sed -n "s/^$1 //p" "$out/parts" 2>/dev/null; }

if ! command -v "$python" >/dev/null; then
    echo "there is no $python: name an interpreter in PYTHON" >&2
    exit 2
fi
if ! $dry_run; then
    if [ -e "$out/environment.json" ]; then
        aside=$out-before-$(date +%Y-%m-%d-%H%M%S)
        mv "$out" "$aside" || exit 2
        echo "$out holds earlier figures, which are kept in $aside"
    fi
    mkdir -p "$out" || exit 2
    rm -f "$out"/steps.tsv "$out"/log.txt "$out"/parts
fi

step preflight 25 "$python" benchmarks/gpu_preflight.py "$out" || exit 2
$dry_run || begun=true
dtype=$(value dtype) batch=$(value batch) versus=()
if can torch; then versus=(--versus torch --patience 50); fi

# Compiles nearly all kernels, CuPy's own too: what follows finds them in CuPy's cache.
step check 60 "$python" -m minigrad.check --device cuda
# torch.compile and cuDNN's search for algorithms come before the first timed step.
for network in resnext29_8x64d:130 resnext29_4x16d:70 resnext29_32x4d:70; do
    step "bench-${network%:*}" "${network#*:}" "$python" -m train.bench --device cuda --model "${network%:*}" \
        --batch-size "${batch:-128}" --dtype "${dtype:-bfloat16}" "${versus[@]}" --rounds 5 \
        --json "$out/${network%:*}.json"
done
if can torch; then
    step kernels 50 "$python" benchmarks/gpu_kernels.py --json "$out/kernels.json"
    step trace 25 "$python" benchmarks/gpu_trace.py resnext29_8x64d resnext29_4x16d resnext29_32x4d \
        --batch-size "${batch:-128}" --dtype "${dtype:-bfloat16}" --json "$out/trace.json"
fi
if can tests; then
    step tests 50 "$python" -m pytest -m cuda -p no:cacheprovider tests/minigrad/fast
fi
if can cifar10; then
    step cifar10 30 "$python" -m train.cifar --device cuda --dtype "${dtype:-bfloat16}" --model resnext29_4x16d \
        --data "${MINIGRAD_CIFAR10:-CIFAR-10}" --epochs 5 --out "$scratch/run"
    $dry_run || cp "$scratch/run/metrics.jsonl" "$out/cifar10.jsonl" 2>/dev/null
fi
if can tests; then
    step suite 35 "$python" -m pytest -m "cuda and not slow" -p no:cacheprovider tests --ignore tests/minigrad/fast
fi
# Under the sanitizer a kernel runs a hundred times slower: small arrays, each in an allocation of its own.
if can sanitizer; then
    step memcheck 25 compute-sanitizer --tool memcheck --error-exitcode 9 "$python" benchmarks/launch_kernels.py
    step racecheck 20 compute-sanitizer --tool racecheck --error-exitcode 9 "$python" benchmarks/launch_kernels.py
fi
step report 10 "$python" benchmarks/gpu_report.py "$out"
