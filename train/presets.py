"""Named settings of the fine-tunes: fields that differ from the official programs."""
from __future__ import annotations

OSASIS_PRESETS: dict[str, dict] = {  # of OSASISConfig
    "official": {},
    "corrected": {"noise_level": "matched", "spn_time": "timestep", "clamp": "straight-through",
                  "style_spn_weight": 0.1, "clip_preprocessing": "openai", "precision": "bfloat16"},
    "fast": {"iterations": 60, "lr": 3e-5, "lr_spn": 3e-4, "reverse_steps": 10, "noise_level": "matched",
             "cached_content": 64, "forward_steps": 20, "generate_steps": 10, "latent_steps": 50, "solver": "dpmpp_2m",
             "style_spn_weight": 0.1},
    "demo": {"cached_content": 8, "forward_steps": 20, "latent_steps": 50, "style_spn_weight": 0.1},
}
# MMFS's demo models, on a CPU
_DEMO = {"iterations": 25, "batch": 4, "lr": 1e-3, "cached_content": 64, "ema_ramp": True}
MMFS_PRESETS: dict[str, dict] = {  # of FewShotConfig
    "official": {},
    "paper": {"beta1": 0.99, "structure_weight": 1.0, "structure_norm": "frobenius"},  # docs/mmfs.md B.9
    "demo": _DEMO | {"structure_weight": 20.0, "palette_weight": 20.0},
    "demo text": _DEMO | {"structure_weight": 5.0},  # a prompt has no palette, and says less than a picture
}
