#!/bin/sh
# verl 0.9 on the reward service, as `saferl launch RECIPE --on verl --print` writes it for the card's recipe in one mode.
# prompts.jsonl has a line a group:
#   {"data_source": "saferl", "prompt": [{"role": "user", "content": "..."}], "ability": "harmful",
#    "reward_model": {"style": "model", "ground_truth": ""}, "extra_info": {"index": 0, "messages": [... as prompt ...]}}
export SAFERL_URL="${SAFERL_URL:-http://127.0.0.1:8010}"
exec python3 -m verl.trainer.main_ppo \
  algorithm.adv_estimator=grpo \
  data.train_files="$PWD/prompts.jsonl" data.val_files="$PWD/prompts.jsonl" data.shuffle=False \
  data.train_batch_size=32 data.max_prompt_length=4096 data.max_response_length=8192 \
  actor_rollout_ref.model.path=Qwen/Qwen3-4B \
  actor_rollout_ref.rollout.name=vllm actor_rollout_ref.rollout.n=8 \
  actor_rollout_ref.actor.ppo_mini_batch_size=8 \
  actor_rollout_ref.actor.use_dynamic_bsz=True actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384 \
  actor_rollout_ref.actor.policy_loss.loss_mode=gspo \
  actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean \
  actor_rollout_ref.actor.clip_ratio_low=0.0003 actor_rollout_ref.actor.clip_ratio_high=0.0004 \
  actor_rollout_ref.actor.use_kl_loss=False actor_rollout_ref.actor.optim.lr=0.000001 \
  reward.custom_reward_function.path="$(dirname "$0")/saferl_reward.py" \
  reward.custom_reward_function.name=compute_score \
  trainer.total_training_steps=500 trainer.n_gpus_per_node=8 trainer.nnodes=1 trainer.val_before_train=False \
  trainer.test_freq=-1 'trainer.logger=[console]' "$@"
