"""The optimiser of the shipped models' trainings: Muon for matrices and convolutions outside attention, AdamW for everything else.

Muon (Jordan et al. 2024; torch.optim.Muon) orthogonalises the momentum of a weight matrix before it is applied. The small autoencoder
reaches 22 dB in 250 steps with it; AdamW needs about 2,000. Convolutions are treated as matrices (outputs x inputs * side^2).
"""

import torch


class MuonAdamW:
    """Both optimisers over the trainable parameters of `module`, with one learning-rate factor.

    lr: peak learning rate of AdamW; muon_lr: that of Muon, or 0 to leave everything to AdamW. Attention, embeddings, norms and biases, and
    matrices with fewer than four rows or columns (an output convolution to RGB) are AdamW's.
    """

    def __init__(self, module, lr, muon_lr, weight_decay):
        parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        chosen = {name: parameter for name, parameter in parameters.items() if muon_lr and _is_matrix(name, parameter)}
        if strided := [name for name, parameter in chosen.items() if not parameter.is_contiguous()]:
            raise ValueError(f"Muon updates contiguous weights only, not {strided[0]} (a copy would be updated in its stead)")
        # torch's Muon takes matrices only: views of the convolutions, which share their storage
        self.views = {name: (parameter, torch.nn.Parameter(parameter.data.flatten(1))) for name, parameter in chosen.items()}
        self.others = {name: parameter for name, parameter in parameters.items() if name not in chosen}
        self.peaks = (lr, muon_lr)
        self.adamw = torch.optim.AdamW(self.others.values(), lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True) if self.others else None
        self.muon = torch.optim.Muon([view for _, view in self.views.values()], lr=muon_lr, weight_decay=weight_decay) if self.views else None

    def zero_grad(self):
        """Forget all gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def parameters(self):
        """All trained parameters of the module."""
        return [*self.others.values(), *(parameter for parameter, _ in self.views.values())]

    def step(self, factor):
        """One update at `factor` times the peak learning rates."""
        for optimizer, peak in zip((self.adamw, self.muon), self.peaks, strict=True):
            if optimizer is not None:
                for group in optimizer.param_groups:
                    group["lr"] = factor * peak
        for parameter, view in self.views.values():
            view.grad = None if parameter.grad is None else parameter.grad.flatten(1)
        for optimizer in (self.adamw, self.muon):
            if optimizer is not None:
                optimizer.step()

    def state(self):
        """What a resumed run needs: `{"<key>.<parameter name>": tensor}`."""
        named = [(name, self.adamw.state[parameter]) for name, parameter in self.others.items()]
        named += [(name, self.muon.state[view]) for name, (_, view) in self.views.items()]
        return {f"{key}.{name}": value for name, state in named for key, value in state.items()}

    def load_state(self, tensors):
        """The reverse of `state`."""
        for name, parameter in self.others.items():
            self.adamw.state[parameter] = {key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors}
        for name, (_, view) in self.views.items():
            if f"momentum_buffer.{name}" in tensors:
                self.muon.state[view] = {"momentum_buffer": tensors[f"momentum_buffer.{name}"]}


def _is_matrix(name, parameter):
    # Attention is left out: orthogonal updates let queries and keys grow until the softmax picks one token, and a base trained so ignores its captions
    return parameter.ndim >= 2 and not any(part in name for part in ("embedding", "attn")) and min(parameter.shape[0], parameter[0].numel()) > 3
