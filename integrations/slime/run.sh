#!/bin/sh
# slime on the reward service: the arguments to add to a training script of its own. It asks POST /slime for one sample at a
# time and tries ten times. For the parts of the reward beside it: --rm-url .../slime/parts --reward-key reward.
# This command was not run: slime needs GPUs. Its own client code was, by test_slime.py.
exec python3 train.py \
  --rm-type remote_rm \
  --rm-url "${SAFERL_URL:-http://127.0.0.1:8010}/slime" \
  --prompt-data prompts.jsonl --input-key prompt --apply-chat-template \
  --n-samples-per-prompt 8 --advantage-estimator gspo --eps-clip 3e-4 --eps-clip-high 4e-4 "$@"
