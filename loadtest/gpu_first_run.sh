#!/usr/bin/env bash
# The first run on a GPU, step by step, what is worth most first: each is one call of the benchmark that is meant to end
# within ten minutes, can be run by itself, and leaves its figures row by row, so that one cut off has told what it saw.
#
#   loadtest/gpu_first_run.sh            every step, one after the other; none if step 0 finds something missing
#   loadtest/gpu_first_run.sh 3 4        only these
#   loadtest/gpu_first_run.sh --list     what they are
#
# Figures go to $RESULTS (dist/gpu): a text as printed and a JSON file for each step. What was compiled stays in
# $RESULTS/compiled, and clips' latents in float32 (4 MB each) in $RESULTS/references: take both along to another
# machine of the kind, where a step that ran out of time goes on from what it has compiled.
#
# PYTHON is the interpreter, 3.11 or newer: .venv's where there is one, else python3. It has to have torch with CUDA and
# Triton, diffusers, transformers, accelerate, safetensors, numpy, pillow, pydantic, httpx, ssrfguard, ffmpeg-python and
# imageio-ffmpeg, and the machine a C compiler; the last step wants all that `make test` installs. Without the program
# ffmpeg the encoded file is missing in all figures. WEIGHTS is a checkpoint in diffusers' layout (random ones without
# it), TUNING what all that is compared and served runs with, as JSON: what the steps before have found. Steps 3 and 4
# compile what goes without saying; another tuning is compiled by the first step that has it. No step has run on a GPU
# yet, so nobody knows how long one takes.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1

[[ -x .venv/bin/python ]] && found=.venv/bin/python || found=python3
PYTHON=${PYTHON:-$found}
RESULTS=${RESULTS:-dist/gpu}
SECONDS_EACH=${SECONDS_EACH:-590}
TUNING=${TUNING:-}
UNCOMPILED='{"channels_last": true, "fused_qkv": true}'
COMMON=(${WEIGHTS:+--weights "$WEIGHTS"} ${BENCH_OPTIONS:-})
LCM=(--endpoints fal-ai/fast-svd-lcm)
# A step is a step whatever comes after it; six of them are whole rounds of deep_every 2 and 3.
GUIDED=(--endpoints fal-ai/svd --steps 6 --rounds 1 --references "$RESULTS/references")

steps=(
  "0 what is needed is there: modules, GPU, C compiler, ffmpeg"
  "1 each part of the tuning by itself, a guided step and decoding, none compiled"
  "2 compiled: default"
  "3 compiled: max-autotune with all parts; it fills the cache for steps 7, 8, 12 and 13"
  "4 the same without guidance, for steps 5, 14 and 15"
  "5 stock eager and ours: fal-ai/fast-svd-lcm, with a profile"
  "6 decoding alone, by precision and chunk"
  "7 stock eager and ours: fal-ai/svd"
  "8 stock eager and ours: fal-ai/stable-video, with a profile"
  "9 lossy: deep_every 2"
  "10 cold start"
  "11 warm start"
  "12 one and two models on the GPU: fal-ai/stable-video"
  "13 four models on the GPU: fal-ai/stable-video"
  "14 one and two models on the GPU: fal-ai/fast-svd-lcm"
  "15 four models on the GPU: fal-ai/fast-svd-lcm"
  "16 stock compiled: fal-ai/fast-svd-lcm"
  "17 stock compiled: fal-ai/svd"
  "18 batches for each size, uncompiled"
  "19 torch's attentions, by level"
  "20 compiled: reduce-overhead"
  "21 compiled: max-autotune alone"
  "22 lossy: deep_every 3"
  "23 the tests for GPUs"
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

compare() {  # NAME OPTIONS...
  tuned "$1" compare --rounds 1 --references "$RESULTS/references" "${@:2}"
}

check() {
  command -v nvidia-smi && nvidia-smi
  command -v ffmpeg || echo "no ffmpeg: the encoded file will be missing in all figures"
  command -v "${CC:-gcc}" || command -v cc || command -v clang || { echo "no C compiler"; return 1; }
  "$PYTHON" -c 'import importlib.util, sys
wanted = "torch triton diffusers transformers accelerate safetensors numpy PIL pydantic httpx ssrfguard ffmpeg"
if missing := [name for name in (wanted + " imageio_ffmpeg").split() if not importlib.util.find_spec(name)]:
    sys.exit("missing in " + sys.executable + ": " + " ".join(missing))
import torch
import loadtest.gpu_bench
torch.cuda.is_available() or sys.exit("torch " + torch.__version__ + " finds no GPU")
print("torch", torch.__version__, torch.cuda.get_device_name())'
}

step() {
  case $1 in
    0) check ;;
    1) bench 1-parts ablate "${GUIDED[@]}" --parts nothing channels_last fused_qkv flat_time cudnn_benchmark \
         "attention cudnn" "attention flash" float16 ;;
    2) bench 2-default ablate "${GUIDED[@]}" --parts "compile default" ;;
    3) bench 3-all ablate "${GUIDED[@]}" --parts all ;;
    4) bench 4-all-unguided ablate "${LCM[@]}" --rounds 1 --references "$RESULTS/references" --parts all ;;
    5) compare 5-fast-svd-lcm "${LCM[@]}" --sides "stock eager" "ours untuned" ours --profile "$RESULTS/profile" ;;
    6) bench 6-decode decode --rounds 1 ;;
    7) compare 7-svd --endpoints fal-ai/svd --sides "stock eager" ours ;;
    8) compare 8-stable-video --endpoints fal-ai/stable-video --sides "stock eager" ours --profile "$RESULTS/profile" ;;
    9) bench 9-deep-every-2 ablate "${GUIDED[@]}" --parts "all, deep_every 2 (lossy)" ;;
    10) rm -rf "$RESULTS/started"
        CACHE=$RESULTS/started tuned 10-cold start "${LCM[@]}" --times 1 ;;
    11) CACHE=$RESULTS/started tuned 11-warm start "${LCM[@]}" --times 1 ;;
    12) tuned 12-fractions fractions --endpoints fal-ai/stable-video --models 1 2 --seconds 100 ;;
    13) tuned 13-fractions fractions --endpoints fal-ai/stable-video --models 4 --seconds 200 ;;
    14) tuned 14-fractions fractions "${LCM[@]}" --models 1 2 ;;
    15) tuned 15-fractions fractions "${LCM[@]}" --models 4 ;;
    16) compare 16-stock-compiled "${LCM[@]}" --sides "stock compiled" ;;
    17) compare 17-stock-compiled --endpoints fal-ai/svd --sides "stock compiled" ;;
    18) bench 18-batches batches --all-sizes --rounds 2 "${LCM[@]}" --tuning "$UNCOMPILED" ;;
    19) bench 19-attention attention --rounds 20 ;;
    20) bench 20-reduce-overhead ablate "${GUIDED[@]}" --parts "compile reduce-overhead" ;;
    21) bench 21-max-autotune ablate "${GUIDED[@]}" --parts "compile max-autotune" ;;
    22) bench 22-deep-every-3 ablate "${GUIDED[@]}" --parts "all, deep_every 3 (lossy)" ;;
    23) timeout "$SECONDS_EACH" "$PYTHON" -m pytest -q tests/gpu tests/inference/test_device.py ;;
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
  [[ ${failed[*]:-} != 0 ]] || break
done
echo "figures are in $RESULTS; failed: ${failed[*]:-none}"
((${#failed[@]} == 0))
