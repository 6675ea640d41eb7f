"""What a LoRA says whatever its factorisation: functions of the update B A alone, computed from the two factors without forming it.

(B R, R^-1 A) is the same update for every invertible R. Its thin singular value decomposition B A = sum_i s_i u_i v_i^T is found from two thin QR
decompositions and one small one (dossier section 6.1). It is not unique: (u_i, v_i) may change sign together, and vectors of equal singular
values may be rotated among themselves. Sums over i of g(s_i) u_i v_i^T, with g continuous, depend on none of that, and vary continuously with the update.
"""

import torch

LARGEST = 1 << 28  # numbers of an intermediate result of `inner_products`


def canonical(pair):
    """Thin SVD of B A for (A `(N, r, in)`, B `(N, out, r)`): u `(N, out, r)`, s `(N, r)` falling, v `(N, in, r)`, float64.

    Signs, and rotations among equal singular values, are arbitrary: use them only in ways that do not depend on it.
    """
    a, b = (matrix.double() for matrix in pair)
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.transpose(1, 2))
    u, s, v_t = torch.linalg.svd(r_b @ r_a.transpose(1, 2), full_matrices=False)
    return q_b @ u, s, q_a @ v_t.transpose(1, 2)


def singular_values(pairs):
    """Singular values of every layer's update: `(N, layers, r)` float64, falling."""
    return torch.stack([canonical(pair)[1] for pair in pairs.values()], 1)


def inner_products(first, second):
    """<B1 A1, B2 A2> of every update of `first` with every one of `second`: tr(A1^T B1^T B2 A2), `(N1, N2)` float64.

    first, second: (A `(N, r, in)`, B `(N, out, r)`) of one layer.
    """
    (a1, b1), (a2, b2) = ([matrix.double() for matrix in pair] for pair in (first, second))
    n1, r1, n2, r2 = len(a1), a1.shape[1], len(a2), a2.shape[1]
    left = torch.einsum("nok,mol->nkml", b1, b2) if n1 * n2 * r1 * r2 < LARGEST or n1 == n2 == 1 else None
    if left is None:  # in parts, so that thousands of models fit
        if n1 == 1:
            return inner_products(second, first).T
        size = min(64, -(-n1 // 2))
        return torch.cat([inner_products((a1[i : i + size], b1[i : i + size]), second) for i in range(0, n1, size)])
    return (left * torch.einsum("nki,mli->nkml", a1, a2)).sum((1, 3))


def gauge(pairs, generator, condition=10.0):
    """The same updates in other factors: (R^-1 A, B R) with a random R of the given condition number for each model and layer.

    R = P D Q with P, Q random orthogonal and D log-spaced between 1 / sqrt(condition) and sqrt(condition).
    """
    changed = {}
    for name, (a, b) in pairs.items():
        n, r = a.shape[:2]
        p, q = (torch.linalg.qr(torch.randn(n, r, r, generator=generator, dtype=torch.float64))[0] for _ in range(2))
        exponents = torch.linspace(-0.5, 0.5, r, dtype=torch.float64) if r > 1 else torch.zeros(1, dtype=torch.float64)
        d = condition**exponents
        inverse = q.transpose(1, 2) @ (p / d).transpose(1, 2)
        changed[name] = (inverse @ a.double()).to(a.dtype), (b.double() @ (p * d) @ q).to(b.dtype)
    return changed
