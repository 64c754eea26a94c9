#!/bin/sh
# OpenRLHF on the reward service. It asks POST /get_reward with what the model read and wrote; nothing is to be installed.
# The address is --reward.remote_url; before the flags had groups it was --remote_rm_url.
# This command was not run: OpenRLHF needs GPUs. Its own client code was, by test_openrlhf.py.
exec python3 -m openrlhf.cli.train_ppo_ray \
  --actor.model_name_or_path Qwen/Qwen3-4B \
  --reward.remote_url "${SAFERL_URL:-http://127.0.0.1:8010}/get_reward" \
  --data.prompt_dataset prompts.jsonl --data.input_key prompt --data.apply_chat_template "$@"
