"""Lets `saferl launch --on trl` train in two processes (Accelerate, gloo, no GPU). Every reward that TRL logged must be, to
the last bit, one that the service's audit log says it gave, and what a service started afterwards gives the same
completion; there the last bits may differ, since sums in f32 depend on what is judged in the same batch.

    python integrations/trl/test_launch.py [MODEL [STEPS]]

Run it with the Python that has TRL; `saferl` is taken from the path, or named by SAFERL. MODEL is a folder or a name that
`saferl export hf` knows, by default the tiny seeded Qwen3; the judges are the built-in ones, which read smollm2-135m.
"""

import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
saferl = os.environ.get("SAFERL") or shutil.which("saferl")
try:
    import pandas
    import safetensors.torch
    import trl
    from saferl_reward import ask
except ImportError as error:
    sys.exit(print(f"left out: {error}"))
if not saferl:
    sys.exit(print("left out: no `saferl` on the path, and none in SAFERL"))

model, steps = (sys.argv[1:] + ["tiny-qwen3", "2"][len(sys.argv) - 1 :])[:2]
PROMPTS, ANSWERS, TOKENS = 2, 4, 32


def weights(folder):
    return safetensors.torch.load_file(os.path.join(folder, "model.safetensors"))


def rows(folder):
    """The conversation and the reward of every completion, once each, by step of the recipe."""
    for step, file in enumerate(sorted(glob.glob(f"{folder}/completions/*.parquet"))[::2]):
        for row in pandas.read_parquet(file).itertuples():
            yield step, [dict(turn) for turn in (*row.prompt, *row.completion)], row.saferl_reward


with tempfile.TemporaryDirectory() as folder:
    if not os.path.isdir(model):
        name, model = model, os.path.join(folder, "model")
        subprocess.run([saferl, "export", "hf", name, "--output", model], check=True, stdout=subprocess.DEVNULL)
    recipe = os.path.join(folder, "recipe.toml")
    with open(recipe, "w") as file:
        file.write(f"""
            run = "test"
            runs_dir = "{folder}"
            model = "{os.path.abspath(model)}"
            steps = {steps}
            rollout = {{ prompts = {PROMPTS}, completions = {ANSWERS}, max_new_tokens = {TOKENS}, temperature = 0.7 }}
            update = {{ minibatches = 2 }}
            optimizer = {{ learning_rate = 1e-5 }}
            service = {{ audit = "{folder}/audit.jsonl" }}
        """)
    # `accelerate` is a program of the Python that runs this.
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    more = ["--use_cpu", "true", "--ddp_backend", "gloo", "--log_completions", "true"]
    command = [saferl, "launch", recipe, "--on", "trl", "--processes", "2", "--", *more]
    subprocess.run(command, check=True, env={**os.environ, "PATH": path}, stdout=sys.stderr)

    checkpoints = os.path.join(folder, "test-trl", "checkpoints")
    before, after = weights(model), weights(checkpoints)
    moved = max((after[name].float() - before[name].float()).abs().max().item() for name in after)
    assert moved > 0, "the weights are as they were"
    states = glob.glob(f"{checkpoints}/checkpoint-*/rng_state_*.pth")
    assert len(states) == 2, f"expected the random states of two processes, found {states}"

    logged = list(rows(checkpoints))
    rewards = [reward for _, _, reward in logged]
    assert len(logged) == int(steps) * PROMPTS * ANSWERS, len(logged)
    with open(f"{folder}/audit.jsonl") as file:
        given = [json.loads(line)["reward"]["scored"]["value"] for line in file]
    assert sorted(given) == sorted(rewards), "TRL trained on other rewards than the service gave"
    # A new service, with nothing in its cache.
    service = subprocess.Popen([saferl, "serve", "--reward", recipe, "--port", "0"], stderr=subprocess.PIPE, text=True)
    try:
        address = next(word for line in service.stderr for word in line.split() if word.startswith("http://"))
        os.environ["SAFERL_URL"] = address.rstrip("/.,")
        answers = ask([{"messages": messages} for _, messages, _ in logged])
    finally:
        service.terminate()
    print("step  branch   TRL's reward          ours, asked again")
    for (step, _, reward), answer in zip(logged, answers, strict=True):
        print(f"{step + 1:4}  {answer.get('branch', 'none'):8} {reward!s:20}  {answer.get('reward')}")
    gap = max(abs(reward - answer["reward"]) for reward, answer in zip(rewards, answers))
    assert gap < 1e-5, gap
    print(
        f"trl {trl.__version__}: {len(logged)} rewards as the service gave them, {gap:.1e} at most from those asked again; "
        f"the farthest weight moved by {moved:.1e}"
    )
