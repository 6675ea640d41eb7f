"""The optimiser of the shipped models' trainings: Muon for matrices and convolutions outside attention, AdamW for everything else.

Muon (Jordan et al. 2024) orthogonalises the momentum of a weight matrix before it is applied. The small autoencoder reaches 22 dB in 250 steps with
it; AdamW needs about 2,000. Convolutions are treated as matrices (outputs x inputs * side^2).
"""

import math

import torch

from tuneleak.models.precision import bfloat16_is_fast

# Those of torch.optim.Muon, whose updates these are: it takes one matrix at a time and no learning rate of a recorded CUDA graph.
MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # the quintic iteration's, steepest at zero
ITERATIONS = 5


class MuonAdamW:
    """Both optimisers over the trainable parameters of `module`, with one learning-rate factor.

    lr: peak learning rate of AdamW; muon_lr: that of Muon, or 0 to leave everything to AdamW. Attention, embeddings, norms and biases, and
    matrices with fewer than four rows or columns (an output convolution to RGB) are AdamW's.
    """

    def __init__(self, module, lr, muon_lr, weight_decay):
        parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        device = next(iter(parameters.values())).device
        chosen = {name: parameter for name, parameter in parameters.items() if muon_lr and _is_matrix(name, parameter)}
        if strided := [name for name, parameter in chosen.items() if not parameter.is_contiguous()]:
            raise ValueError(f"Muon updates contiguous weights only, not {strided[0]} (a copy would be updated in its stead)")
        self.others = {name: parameter for name, parameter in parameters.items() if name not in chosen}
        self.shapes = {}  # matrices of one shape are orthogonalised together
        for name, parameter in chosen.items():
            self.shapes.setdefault(parameter.flatten(1).shape, {})[name] = parameter
        self.momenta = {shape: torch.zeros(len(group), *shape, device=device) for shape, group in self.shapes.items()}
        self.peaks, self.weight_decay = (lr, muon_lr), weight_decay
        self.rates = torch.zeros(2, device=device)  # tensors, so that a recorded graph reads them anew
        self.adamw = None
        if self.others:
            capturable = device.type == "cuda"
            rate = self.rates[0] if capturable else lr
            self.adamw = torch.optim.AdamW(self.others.values(), lr=rate, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True, capturable=capturable)

    def zero_grad(self):
        """Forget all gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def parameters(self):
        """All trained parameters of the module."""
        return [*self.others.values(), *(parameter for group in self.shapes.values() for parameter in group.values())]

    def set_rate(self, factor):
        """Let the next steps be made at `factor` times the peak learning rates."""
        self.rates.copy_(torch.tensor([factor * peak for peak in self.peaks]))
        if self.adamw is not None and not torch.is_tensor(self.adamw.param_groups[0]["lr"]):
            self.adamw.param_groups[0]["lr"] = factor * self.peaks[0]

    @torch.no_grad()
    def step(self):
        """One update of every parameter."""
        if self.adamw is not None:
            self.adamw.step()
        for (rows, columns), group in self.shapes.items():
            gradient, momentum = torch.stack([parameter.grad.flatten(1) for parameter in group.values()]), self.momenta[(rows, columns)]
            momentum.lerp_(gradient, 1 - MOMENTUM)
            update = orthogonalise(gradient.lerp(momentum, MOMENTUM)) * (self.rates[1] * math.sqrt(max(1, rows / columns)))
            matrices = [parameter.data.view(rows, columns) for parameter in group.values()]
            torch._foreach_mul_(matrices, 1 - self.rates[1] * self.weight_decay)
            torch._foreach_sub_(matrices, list(update.unbind()))

    def state(self):
        """What a resumed run needs: `{"<key>.<parameter name>": tensor}`."""
        adamw = {f"{key}.{name}": value for name, parameter in self.others.items() for key, value in self.adamw.state[parameter].items()}
        return adamw | {
            f"momentum_buffer.{name}": value for shape, group in self.shapes.items() for name, value in zip(group, self.momenta[shape], strict=True)
        }

    def load_state(self, tensors):
        """The reverse of `state`."""
        for name, parameter in self.others.items():
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors]
            self.adamw.state[parameter] = {key: tensors[f"{key}.{name}"].to(parameter.device) for key in keys}
        for shape, group in self.shapes.items():
            self.momenta[shape].copy_(torch.stack([tensors[f"momentum_buffer.{name}"] for name in group]))


def orthogonalise(matrices):
    """Newton-Schulz iteration towards U V' of each of `(n, rows, columns)` = U S V'; returns float32 with singular values of about 0.7 to 1.2.

    In bfloat16 where that is fast, whose rounding the iteration bears.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(torch.bfloat16 if bfloat16_is_fast(matrices.device) else torch.float32)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


def _is_matrix(name, parameter):
    # Attention is left out: orthogonal updates let queries and keys grow until the softmax picks one token, and a base trained so ignores its captions
    return parameter.ndim >= 2 and not any(part in name for part in ("embedding", "attn")) and min(parameter.shape[0], parameter[0].numel()) > 3
