"""SecMI_stat (Duan et al., ICML 2023): how far one deterministic step up and down the diffusion leaves a picture from where it was."""

from tuneleak.errors import InputError
from tuneleak.models.samplers import ddim_step


def setting(options):
    """t_SEC and the stride k."""
    return f"t={options.secmi_timestep},k={options.secmi_stride}"


def calls(options):
    """Model calls per picture: t_SEC / k steps up to t_SEC, one further up, one down."""
    return options.secmi_timestep // options.secmi_stride + 2


def score(query, options):
    """minus the t-error |psi(phi(x~_t, t), t + k) - x~_t|^2, summed over elements, `(n,)`."""
    return -step_error(query, options).cpu().double().square().flatten(1).sum(1)


def step_error(query, options):
    """psi_theta(phi_theta(x~_t, t), t + k) - x~_t at t = t_SEC, `(n, C, h, w)`.

    phi and psi are deterministic DDIM steps of k timesteps towards noise and back; x~_t is x_0 carried up by phi from t = 0 in strides of k. Nothing is
    clipped, and the alpha-bar at the start is that of timestep 0.
    """
    last, stride = options.secmi_timestep, options.secmi_stride
    if last % stride:
        raise InputError(f"secmi_timestep {last} is not a multiple of secmi_stride {stride}")
    x = query.latents
    for timestep in range(0, last, stride):
        x = step(query, x, timestep, timestep + stride)
    return step(query, step(query, x, last, last + stride), last + stride, last) - x


def step(query, x, timestep, to):
    """One deterministic step from `timestep` to the timestep `to`: phi where it is later, psi where it is earlier."""
    return ddim_step(x, query.noise_pred(x, timestep), query.alpha_bar(timestep), query.alpha_bar(to))
