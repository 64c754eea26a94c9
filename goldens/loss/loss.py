"""Makes loss.json: losses and gradients by the code of TRL and of verl itself, for crates/train/tests/goldens.rs.

    python loss.py VERL_FOLDER > loss.json

VERL_FOLDER is the unpacked wheel of `pip download verl --no-deps`: its core_algos.py is imported with stand-ins for the
modules that it does not use here. TRL is imported as installed, and `GRPOTrainer._compute_loss` runs on an object that
has the attributes it reads. Versions are written into the JSON.

Both average over the tokens of a sequence and then over sequences here: TRL's loss_type "grpo", verl's
"seq-mean-token-mean". In this setting they and saferl agree. TRL's default "dapo" and verl's default "token-mean" weight
long sequences more, and are another loss.
"""

import importlib.metadata
import importlib.util
import json
import pathlib
import sys
import types

import torch
from trl import GRPOTrainer

LENGTHS = [3, 5, 1, 4, 2, 6]
ADVANTAGES = [1.3, -0.4, 0.9, -1.1, -1.6, 0.7]


def fixture(drift):
    """Old, new and reference log-probabilities; new differs from old by about `drift` a token."""
    generator = torch.Generator().manual_seed(7)
    tokens = sum(LENGTHS)
    draw = lambda: torch.randn(tokens, generator=generator, dtype=torch.float64)
    old = -draw().abs() - 0.05
    new = old + drift * draw()
    reference = old + 0.3 * draw()
    return old, new, reference


def pad(values_t):
    """Packed tokens into sequences x longest, zero behind the end."""
    parts = torch.split(values_t, LENGTHS)
    return torch.stack([torch.nn.functional.pad(part, (0, max(LENGTHS) - len(part))) for part in parts])


def mask():
    return torch.tensor([[float(i < length) for i in range(max(LENGTHS))] for length in LENGTHS], dtype=torch.float64)


def trl_loss(case, old, new, reference):
    per_token = pad(new)

    class Trainer:
        """What `_compute_loss` reads of its trainer."""

        importance_sampling_level = "sequence" if case["loss"] == "gspo" else "token"
        beta = case["kl"]
        epsilon_low, epsilon_high = case["clip_low"], case["clip_high"]
        loss_type = "grpo"
        top_entropy_quantile = 1.0
        off_policy_mask_threshold = None
        aux_loss_enabled = use_vllm = use_liger_kernel = False
        _entropy_bonus_enabled = False
        current_gradient_accumulation_steps = 1
        args = types.SimpleNamespace(delta=None, use_bias_correction_kl=False)
        model = types.SimpleNamespace(training=True)
        accelerator = types.SimpleNamespace(
            gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x, num_processes=1
        )

        def __init__(self):
            from collections import defaultdict

            self._metrics = {"train": defaultdict(list)}

        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            return per_token, torch.zeros_like(per_token), None

    ids = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": torch.ones(len(LENGTHS), 1),
        "completion_ids": ids,
        "completion_mask": mask(),
        "advantages": torch.tensor(ADVANTAGES, dtype=torch.float64),
        "old_per_token_logps": pad(old),
        "ref_per_token_logps": pad(reference),
    }
    return GRPOTrainer._compute_loss(Trainer(), None, inputs)


def verl_core(folder):
    """verl's core_algos with its own torch_functional, and stand-ins for the rest."""
    folder = pathlib.Path(folder)

    class Anything(types.ModuleType):
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

    def load(name, path):
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    for name in ["verl", "verl.utils", "verl.utils.device", "verl.utils.import_utils", "verl.trainer",
                 "verl.trainer.config", "verl.workers", "verl.workers.config", "omegaconf", "tensordict"]:
        sys.modules[name] = Anything(name)
        sys.modules[name].__path__ = []
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, sys.modules[name])
    sys.modules["verl.utils.import_utils"].deprecated = lambda *_, **__: lambda function: function
    sys.modules["verl.utils.device"].get_device_name = lambda: "cpu"
    sys.modules["verl.utils.device"].get_torch_device = lambda: torch
    sys.modules["verl.utils"].torch_functional = load(
        "verl.utils.torch_functional", folder / "verl/utils/torch_functional.py"
    )
    return load("verl.trainer.ppo.core_algos", folder / "verl/trainer/ppo/core_algos.py")


def verl_loss(core, case, old, new, _reference):
    config = sys.modules["verl.workers.config"].ActorConfig
    config = type("Actor", (core.ActorConfig,), {})()
    config.clip_ratio = None
    config.clip_ratio_low, config.clip_ratio_high = case["clip_low"], case["clip_high"]
    config.global_batch_info = {}
    advantages = torch.tensor(ADVANTAGES, dtype=torch.float64).unsqueeze(1).expand(-1, max(LENGTHS))
    loss, _ = core.compute_policy_loss_gspo(
        pad(old), pad(new), advantages, mask(), loss_agg_mode="seq-mean-token-mean", config=config
    )
    return loss


def main():
    core = verl_core(sys.argv[1])
    verl_version = next(pathlib.Path(sys.argv[1]).glob("verl-*.dist-info")).name.split("-")[1].removesuffix(".dist")
    cases = []
    for drift in [0.0, 0.003, 0.3]:
        old, new, reference = fixture(drift)
        for loss, clip_low, clip_high in [("gspo", 3e-4, 4e-4), ("gspo", 0.1, 0.15), ("grpo", 0.2, 0.28)]:
            for kl in [0.0, 0.04]:
                cases.append(("trl", trl_loss, dict(loss=loss, clip_low=clip_low, clip_high=clip_high, kl=kl),
                              old, new, reference))
        for clip_low, clip_high in [(3e-4, 4e-4), (0.1, 0.15)]:
            cases.append(("verl", lambda *rest: verl_loss(core, *rest),
                          dict(loss="gspo-token", clip_low=clip_low, clip_high=clip_high, kl=0.0), old, new, reference))
    written = []
    for source, compute, case, old, new, reference in cases:
        new = new.clone().requires_grad_()
        value = compute(case, old, new, reference)
        value.backward()
        written.append(dict(case, source=source, old=old.tolist(), new=new.tolist(), reference=reference.tolist(),
                            value=value.item(), gradient=new.grad.tolist()))
    versions = {name: importlib.metadata.version(name) for name in ["trl", "torch"]} | {"verl": verl_version}
    print(json.dumps({"versions": versions, "lengths": LENGTHS, "advantages": ADVANTAGES, "cases": written}, indent=0))


main()
