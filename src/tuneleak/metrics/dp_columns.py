"""The columns of `utility.csv`, written by `measure dp-ldm` and read by `evaluate dp-ldm`: neither needs the other's code."""

UTILITY = ["world", "base", "method", "defence", "seed", "metric", "block", "value", "ci_low", "ci_high", "standard_error", "n", "image_hits"]
# What a model's record (privacy.json) says, {key: metric}; `n` of these rows is the number of noisy steps
PROMISES = {"epsilon": "epsilon spent", "epsilon_pld": "epsilon spent (PLD)", "noise_multiplier": "noise multiplier", "trained_weights": "trained weights"}
