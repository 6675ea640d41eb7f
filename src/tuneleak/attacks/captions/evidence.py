"""From updates to evidence: how well directions of the text encoder's space explain what a fine-tune did.

Every row of an update is a combination of the encodings of the caption's places plus noise: rounding, Adam's normalisation, for a LoRA the random start of
its A. That is a spiked covariance with as many spikes as a caption has places, whose likelihood, for a subspace of a given dimension, grows with the variance
that the subspace captures (probabilistic principal components; Tipping and Bishop 1999, J. R. Stat. Soc. B 61:611). Of a whole caption the subspace is known:
the span of its encodings. Of a beginning only the first directions are known; the others are the strongest of what remains.
"""

import torch


class Evidence:
    """Second moments of updates. groups: lists of rows `(n_i, d)`, each with noise of its own; within a group every part is scaled to mean square 1, because
    layers learn at different speeds. places: number of a caption's encodings, start and padding included. All tensors are float64."""

    def __init__(self, groups, places):
        self.moments, self.places = torch.stack([_moment(parts) for parts in groups]), places  # (g, d, d), of trace 1

    def captured(self, encodings):
        """Share `(n,)` of the variance in the span of each caption's encodings `(n, m, d)`, the mean over the groups."""
        basis = orthonormal(encodings)
        return torch.einsum("ndm,de,nem->n", basis, self.moments.mean(0), basis)

    def beyond(self, encodings):
        """What explains best what a beginning's encodings `(k, d)` leave: orthonormal `(g, d, places - k)`, and the projector `(d, d)` off those encodings."""
        basis = orthonormal(encodings[None])[0]
        off = torch.eye(self.moments.shape[1], dtype=torch.float64) - basis @ basis.T
        strongest = torch.linalg.eigh(off @ self.moments @ off)[1].flip(2)
        return strongest[..., : max(self.places - basis.shape[1], 0)], off

    @staticmethod
    def fit(encodings, beyond, slack=0.0):
        """Squared cosine `(n,)` of each next encoding `(n, d)`, less what the beginning explains, with `beyond`: 1 for one that the updates have seen. Of
        several groups the product. slack: share of an encoding that counts as seen in any case, so that of encodings that the beginning nearly explains the
        rest, which little noise turns anywhere, does not decide; of several slacks `(s, n)`."""
        free, off = beyond
        own = encodings @ off
        granted = torch.as_tensor(slack, dtype=torch.float64)[..., None, None] * encodings.square().sum(1)
        return (((own @ free).square().sum(2) + granted) / (own.square().sum(1) + granted).clamp_min(1e-300)).prod(-2)


def _moment(parts):
    parts = [torch.as_tensor(part, dtype=torch.float64) for part in parts]
    stack = torch.cat([part / part.square().mean().sqrt() for part in parts if bool(part.any())])
    return stack.T @ stack / stack.square().sum()


def orthonormal(encodings):
    """Orthonormal bases `(n, d, m)` of encodings `(n, m, d)`."""
    return torch.linalg.qr(encodings.transpose(1, 2))[0]
