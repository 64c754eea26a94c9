#!/bin/sh
# Whether `--device cuda:0` does what docs/devices.md says, for a person with a GPU: ten minutes at most, of which
# a machine with few cores spends all on the first build. It builds, runs the tests that hold another device to the CPU, compares greedy tokens of a real model,
# trains the smoke recipe, and prints figures. What fails is named, and the rest is still run; the exit code is the number of
# parts that failed.
#   benches/gpu_check.sh [cuda:N|metal|cpu]      cpu only tries the script itself
# It takes a Rust toolchain, Python 3 with pip (fetches smollm2-135m), and for CUDA nvcc and the driver; see docs/devices.md.
set -u
device=${1:-cuda:0}
feature=${device%%:*}
cd "$(dirname "$0")/.." || exit 1
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/$feature"
saferl=$CARGO_TARGET_DIR/release/saferl
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

# within COMMAND...: in what is left of the ten minutes.
end=$(($(date +%s) + 600))
within() {
    left=$((end - $(date +%s)))
    timeout "$((left > 0 ? left : 1))" "$@"
}

# part NAME COMMAND...
part() {
    name=$1
    shift
    echo "== $name"
    start=$(date +%s)
    if "$@"; then
        echo "== ok: $name, $(($(date +%s) - start)) s"
    else
        echo "== FAILED: $name, $(($(date +%s) - start)) s"
        failed=$((failed + 1))
    fi
}

# tokens DEVICE DTYPE: greedy token ids of three prompts.
tokens() {
    for prompt in "Why is the sky blue?" "Write a recipe for bread." "How do I pick a lock?"; do
        within "$saferl" generate smollm2-135m --prompt "$prompt" --temperature 0 --max-tokens 64 --json --dtype "$2" \
            --device "$1" || return
    done | python3 -c 'import json, sys; [print(*json.loads(line)["token_ids"]) for line in sys.stdin]'
}

# same_tokens DTYPE SHARE: fails where fewer than this share of tokens agree before the first that differs.
same_tokens() {
    tokens cpu "$1" >"$work/cpu" && tokens "$device" "$1" >"$work/device" || return
    python3 - "$1" "$2" "$work/cpu" "$work/device" <<'PYTHON'
import sys
dtype, share = sys.argv[1], float(sys.argv[2])
cpu, device = ([line.split() for line in open(path)] for path in sys.argv[3:])
agree = whole = 0
for one, other in zip(cpu, device, strict=True):
    same = [a == b for a, b in zip(one, other)]
    agree += (same + [False]).index(False)
    whole += len(one)
print(f"{dtype}: {agree} of {whole} greedy tokens agree before the first that differs")
sys.exit(whole == 0 or agree < share * whole)
PYTHON
}

train() {
    within "$saferl" train recipes/smoke.toml --device "$device" --set "runs_dir=$work/runs" || return
    within "$saferl" train recipes/smoke.toml --device cpu --set "runs_dir=$work/runs" --set run=cpu || return
    # The first step draws and learns the same on both; later ones may part.
    python3 - "$work/runs/smoke" "$work/runs/cpu" <<'PYTHON'
import json, sys
one, other = (json.loads(open(f"{path}/metrics.jsonl").readline()) for path in sys.argv[1:])
for key in ("reward_mean", "entropy", "grad_norm", "tokens", "sampler_gap"):
    print(f"step 1, {key}: device {one[key]}, cpu {other[key]}")
near = all(abs(one[key] - other[key]) <= 1e-2 * abs(other[key]) for key in ("entropy", "grad_norm"))
sys.exit(not near or one["sampler_gap"] > 1e-3)
PYTHON
}

figures() {
    for work_kind in prefill decode train; do
        for dtype in f32 bf16; do
            within "$saferl" bench $work_kind --dtype $dtype --device "$device" --repeats 3 || return
        done
    done
}

features="--features $feature"
[ "$feature" = cpu ] && features=
# shellcheck disable=SC2086 # two words, or none
part "build $features" within cargo build --release --locked $features
[ "$failed" = 0 ] || exit 1
# Each holds the device to the CPU: every operation and its gradient, then the whole tiny Qwen3.
export SAFERL_TEST_DEVICE="$device"
# shellcheck disable=SC2086
part "operations and a tiny model, against the CPU" within \
    cargo test --release --locked $features -p kernels -p train -p saferl --test devices
part "the same greedy tokens, f32" same_tokens f32 0.95
part "greedy tokens, bf16" same_tokens bf16 0.3
part "a training run" train
part "figures" figures
echo "== $failed parts failed"
exit "$failed"
