#!/usr/bin/env bash
# The first run on a GPU, step by step: each ends within ten minutes, can be run by itself, and leaves its figures.
#
#   loadtest/gpu_first_run.sh            every step, one after the other
#   loadtest/gpu_first_run.sh 3 4        only these
#   loadtest/gpu_first_run.sh --list     what they are
#
# Figures go to $RESULTS (dist/gpu): a text as printed and a JSON file for each step. PYTHON is the interpreter, WEIGHTS a
# checkpoint in diffusers' layout (random weights without one), TUNING what steps 5 to 9 run with, as JSON: set it to
# what step 4 found. A step that fails is told and does not end the others. What was compiled stays in $RESULTS/compiled.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-.venv/bin/python}
RESULTS=${RESULTS:-dist/gpu}
SECONDS_EACH=${SECONDS_EACH:-590}
TUNING=${TUNING:-}
UNCOMPILED='{"channels_last": true, "fused_qkv": true}'
COMMON=(${WEIGHTS:+--weights "$WEIGHTS"} ${BENCH_OPTIONS:-})

steps=(
  "0 the card, and what its attentions take"
  "1 ours untuned: a step and decoding, unguided and guided"
  "2 each part of the tuning by itself, none compiled"
  "3 compiled: default and reduce-overhead"
  "4 compiled: max-autotune with all parts, then lossy"
  "5 all sides compared: fal-ai/fast-svd-lcm, with a profile"
  "6 all sides compared: fal-ai/svd"
  "7 all sides compared: fal-ai/stable-video, with a profile"
  "8 batches for each size, uncompiled"
  "9 one, two and four models on the GPU"
  "10 cold and warm start"
  "11 the tests for GPUs"
)

bench() {  # NAME COMMAND OPTIONS...
  local name=$1
  shift
  timeout "$SECONDS_EACH" "$PYTHON" -m loadtest.gpu_bench "$@" "${COMMON[@]}" \
    --compile-cache "${CACHE:-$RESULTS/compiled}" --json "$RESULTS/$name.json"
}

tuned() {  # the same with the tuning that was found
  bench "$@" ${TUNING:+--tuning "$TUNING"}
}

step() {
  case $1 in
    0) if command -v nvidia-smi >/dev/null; then nvidia-smi; fi
       bench 0-attention attention --rounds 20 ;;
    1) bench 1-untuned ablate --parts nothing --endpoints fal-ai/fast-svd-lcm
       bench 1-untuned-guided ablate --parts nothing --endpoints fal-ai/svd ;;
    2) bench 2-parts ablate --endpoints fal-ai/fast-svd-lcm --parts nothing channels_last fused_qkv flat_time \
         "attention cudnn" "attention flash" float16 "decode_chunk 25" ;;
    3) bench 3-compiled ablate --endpoints fal-ai/fast-svd-lcm \
         --parts nothing "compile default" "compile reduce-overhead" ;;
    4) bench 4-all ablate --endpoints fal-ai/fast-svd-lcm --parts "compile max-autotune" all \
         "all, deep_every 2 (lossy)" "all, deep_every 3 (lossy)" ;;
    5) tuned 5-fast-svd-lcm compare --endpoints fal-ai/fast-svd-lcm --profile "$RESULTS/profile" ;;
    6) tuned 6-svd compare --endpoints fal-ai/svd --rounds 1 ;;
    7) tuned 7-stable-video compare --endpoints fal-ai/stable-video --rounds 1 --profile "$RESULTS/profile" ;;
    8) bench 8-batches batches --all-sizes --rounds 2 --endpoints fal-ai/fast-svd-lcm \
         --tuning "$UNCOMPILED" ;;
    9) tuned 9-fractions fractions --endpoints fal-ai/fast-svd-lcm ;;
    10) rm -rf "$RESULTS/started"
        CACHE=$RESULTS/started tuned 10-start start --endpoints fal-ai/fast-svd-lcm ;;
    11) timeout "$SECONDS_EACH" "$PYTHON" -m pytest -q tests/inference/test_device.py tests/models/test_tuning.py ;;
    *) echo "there is no step $1; --list tells them" >&2; return 2 ;;
  esac
}

if [[ ${1:-} == --list ]]; then
  printf '%s\n' "${steps[@]}"
  exit
fi
mkdir -p "$RESULTS"
failed=()
(($#)) || set -- "${!steps[@]}"
for each; do
  echo "== step $each"
  step "$each" 2>&1 | tee "$RESULTS/$each.txt"
  ((PIPESTATUS[0] == 0)) || failed+=("$each")
done
echo "figures are in $RESULTS; failed: ${failed[*]:-none}"
((${#failed[@]} == 0))
