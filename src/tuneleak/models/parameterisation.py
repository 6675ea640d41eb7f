"""What a network predicts, and in which coordinates: every conversion to epsilon, in one place.

All of the project walks in variance-preserving coordinates, x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) epsilon, with epsilon as the prediction. A network that
was trained otherwise is asked in its own coordinates and its answer is converted; nothing outside this module knows the difference.

- `epsilon`: the noise itself
- `v_prediction`: v = sqrt(abar) epsilon - sqrt(1 - abar) x_0 (Salimans and Ho 2022, appendix D)
- `sample`: x_0
- `flow_prediction`: the velocity epsilon - x_0 of the straight path z = (1 - sigma) x_0 + sigma epsilon (rectified flow; Esser et al. 2024, section 2).
  z is x_t divided by sqrt(abar) + sqrt(1 - abar), and sigma = sqrt(1 - abar) / (sqrt(abar) + sqrt(1 - abar)). Deterministic DDIM in x_t is Euler's method
  in z: both keep x_0 and epsilon fixed over a step.
"""

from tuneleak.errors import InputError

KINDS = ("epsilon", "v_prediction", "sample", "flow_prediction")
FLOW_SCHEDULER = "FlowMatchEulerDiscreteScheduler"


def kind_of(scheduler_config):
    """What the network of a pipeline folder predicts, from its `scheduler_config.json` read as a dict; an `InputError` if it is none of `KINDS`."""
    flow = scheduler_config.get("_class_name") == FLOW_SCHEDULER
    kind = scheduler_config.get("prediction_type") or ("flow_prediction" if flow else "epsilon")
    if kind not in KINDS or flow != (kind == "flow_prediction"):
        known = f"use epsilon, v_prediction or sample, or the scheduler {FLOW_SCHEDULER} for flow_prediction"
        raise InputError(f"prediction_type {kind!r} with the scheduler {scheduler_config.get('_class_name')!r} is not supported; {known}")
    return kind


def network_input(x_t, t, alphas_cumprod, kind):
    """`(x, time)` as the network wants them: the latents in its coordinates, and what it is told of the noise level.

    x_t: `(n, C, h, w)`; t: int64 `(n,)`, rows of alphas_cumprod `(T,)`. The time is t itself, for flows sigma T (float).
    """
    if kind != "flow_prediction":
        return x_t, t
    signal, noise = _coefficients(alphas_cumprod, t, x_t)
    whole = signal + noise
    return x_t / whole, (noise / whole).flatten() * len(alphas_cumprod)


def to_epsilon(output, x_t, t, alphas_cumprod, kind):
    """The network's answer to `network_input` -> epsilon, `(n, C, h, w)`.

    output, x_t: of one shape and precision; t: `(n,)`; alphas_cumprod: `(T,)`.
    """
    if kind == "epsilon":
        return output
    signal, noise = _coefficients(alphas_cumprod, t, output)
    if kind == "v_prediction":
        return signal * output + noise * x_t
    if kind == "sample":
        return (x_t - signal * output) / noise
    return (x_t + signal * output) / (signal + noise)  # z + (1 - sigma) v


def _coefficients(alphas_cumprod, t, like):
    """sqrt(abar_t) and sqrt(1 - abar_t) `(n, 1, 1, 1)`, computed in the precision of the table and given in that of the tensor `like`."""
    tables = (alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt())
    return [table.to(like.dtype).to(like.device)[t].view(-1, 1, 1, 1) for table in tables]
