"""How far generated pictures are from real ones, as training-data extraction judges it (Carlini et al., USENIX Security 2023).

All distances are of pixels in [0, 1] and come as matrices: one row per generation, one column per real picture.
"""

import numpy as np

from tuneleak.errors import InputError

CHUNK = 64  # real pictures compared at once, which bounds memory at 512 pixels


def l2(first, second):
    """Root mean square difference sqrt(sum (a - b)^2 / d) of uint8 pictures `(m, h, w, 3)` and `(n, h, w, 3)`: `(m, n)` float64."""
    _same_size(first, second)
    return _distance(_flat(first), _flat(second))


def tile_max(first, second, tiles=4):
    """The largest root mean square difference over `tiles` x `tiles` non-overlapping tiles, so that a plain ground alone makes no match; `(m, n)`."""
    _same_size(first, second)
    height, width = first.shape[1] // tiles, first.shape[2] // tiles
    if not height or not width:
        raise InputError(f"pictures of {first.shape[1]} x {first.shape[2]} pixels cannot be cut into {tiles} x {tiles} tiles")
    found = np.zeros((len(first), len(second)))
    for row in range(tiles):
        for column in range(tiles):
            part = np.s_[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
            found = np.maximum(found, _distance(_flat(first[part]), _flat(second[part])))
    return found


def adaptive(distances, neighbours=50, scale=0.5):
    """l2(x^, x) / (scale * mean of l2(x^, y) over the `neighbours` pictures y nearest to x^): how near x is for a picture as ordinary as x^; `(m, n)`.

    distances: `(m, n)` of `l2`. The paper takes the neighbours among training pictures; here they are taken among all pictures that are judged, members and
    held-outs, so that both are judged alike.
    """
    nearest = np.sort(distances, axis=1)[:, :neighbours]
    return distances / (scale * np.maximum(nearest.mean(1, keepdims=True), 1e-12))


def _same_size(first, second):
    if first.shape[1:] != second.shape[1:]:
        raise InputError(f"generations are {first.shape[2]} x {first.shape[1]} pixels, the real pictures {second.shape[2]} x {second.shape[1]}")


def _flat(pixels):
    return (pixels.reshape(len(pixels), -1).astype(np.float32) - 127.5) / 255  # centred: less is lost when squares are subtracted


def _distance(a, b):
    size, parts = a.shape[1], []
    own = np.square(a, dtype=np.float64).sum(1)
    for start in range(0, len(b), CHUNK):
        part = b[start : start + CHUNK]
        squared = own[:, None] + np.square(part, dtype=np.float64).sum(1)[None] - 2 * (a @ part.T).astype(np.float64)
        parts.append(np.sqrt(np.maximum(squared, 0) / size))
    return np.concatenate(parts, axis=1)
