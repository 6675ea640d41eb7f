"""From updates to evidence: how well directions of the text encoder's space explain what a fine-tune did.

Every row of an update is a combination of the encodings of the caption's places plus noise: rounding, Adam's normalisation, for a LoRA the random start of
its A. That is a spiked covariance with as many spikes as a caption has places, whose likelihood, for a subspace of a given dimension, grows with the variance
that the subspace captures (probabilistic principal components; Tipping and Bishop 1999, J. R. Stat. Soc. B 61:611). Of a whole caption the subspace is known:
the span of its encodings. Of a beginning only the first directions are known; the others are the strongest of what remains.
"""

import torch


class Evidence:
    """The updates' second moment. rows: list of `(n_i, d)`; every layer is scaled to mean square 1, because layers learn at different speeds.
    places: number of a caption's encodings, start and padding included. All tensors are float64."""

    def __init__(self, rows, places):
        parts = [torch.as_tensor(part, dtype=torch.float64) for part in rows]
        stack = torch.cat([part / part.square().mean().sqrt() for part in parts if bool(part.any())])
        self.moment, self.places = stack.T @ stack / stack.square().sum(), places

    def captured(self, encodings):
        """Share `(n,)` of the variance in the span of each caption's encodings `(n, m, d)`."""
        basis = _orthonormal(encodings)
        return torch.einsum("ndm,de,nem->n", basis, self.moment, basis)

    def beyond(self, encodings):
        """What explains best what a beginning's encodings `(k, d)` leave: orthonormal `(d, places - k)`, and the projector `(d, d)` off those encodings."""
        basis = _orthonormal(encodings[None])[0]
        off = torch.eye(len(self.moment), dtype=torch.float64) - basis @ basis.T
        strongest = torch.linalg.eigh(off @ self.moment @ off)[1].flip(1)
        return strongest[:, : max(self.places - basis.shape[1], 0)], off

    @staticmethod
    def fit(encodings, beyond):
        """Squared cosine `(n,)` of each next encoding `(n, d)`, less what the beginning explains, with `beyond`: 1 for one that the updates have seen."""
        free, off = beyond
        own = encodings @ off
        return (own @ free).square().sum(1) / own.square().sum(1).clamp_min(1e-300)


def _orthonormal(encodings):
    """Orthonormal bases `(n, d, m)` of encodings `(n, m, d)`."""
    return torch.linalg.qr(encodings.transpose(1, 2))[0]
