"""A real picture moved onto a generated one before they are compared, as Shake-to-Leak's public code does: SIFT, ratio test, RANSAC homography.

The public code warps by whatever homography comes out, and one that shrinks a picture to a point makes anything match. A homography is used here only if it
leaves each corner near its place and keeps area, else the pictures are compared as they are.
"""

import warnings

import numpy as np

RATIO = 0.75  # of Lowe's test
MATCHES = 10  # more than these are needed
TOLERANCE = 5 / 512  # of RANSAC, relative to the side (5 pixels of 512 in the public code)
TRIALS = 200
CORNER, AREA = 0.2, 2.0  # largest move of a corner in sides, largest change of area


def keypoints(pixels):
    """SIFT `(places (k, 2) as column and row, descriptors (k, 128))` of one uint8 picture `(h, w, 3)`; empty ones where nothing stands out."""
    from skimage.color import rgb2gray
    from skimage.feature import SIFT

    detector = SIFT()
    try:
        detector.detect_and_extract(rgb2gray(pixels))
    except RuntimeError:  # skimage's way of saying that it found no keypoint
        return np.empty((0, 2)), np.empty((0, 128), dtype=np.uint8)
    return detector.keypoints[:, ::-1].astype(float), detector.descriptors


def aligned(real, generated, real_points, generated_points, seed=0):
    """The real picture uint8 `(h, w, 3)` as it looks in the frame of the generated one, or None where it cannot be aligned.

    The points are those of `keypoints`.
    """
    from skimage.feature import match_descriptors
    from skimage.transform import ProjectiveTransform, warp

    if min(len(real_points[0]), len(generated_points[0])) <= MATCHES:
        return None
    pairs = match_descriptors(real_points[1], generated_points[1], max_ratio=RATIO, cross_check=False)
    if len(pairs) <= MATCHES:
        return None
    side = max(real.shape[:2])
    found = _homography(real_points[0][pairs[:, 0]], generated_points[0][pairs[:, 1]], TOLERANCE * side, seed)
    if found is None or not is_gentle(found.params, real.shape[:2]):
        return None
    moved = warp(real, ProjectiveTransform(np.linalg.inv(found.params)), output_shape=generated.shape[:2], mode="edge", preserve_range=True)
    return moved.round().clip(0, 255).astype(np.uint8)


def is_gentle(matrix, shape):
    """Whether a homography `(3, 3)` (real to generated, columns and rows) is near the identity on a picture of `shape`: no collapse, no fold."""
    height, width = shape
    corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]], dtype=float)
    moved = corners @ np.asarray(matrix, dtype=float).T
    if not np.isfinite(moved).all() or (moved[:, 2] <= 1e-6).any():
        return False
    moved = moved[:, :2] / moved[:, 2:]
    if np.abs(moved - corners[:, :2]).max() > CORNER * max(shape):
        return False
    x, y = moved.T
    area = 0.5 * (x @ np.roll(y, -1) - y @ np.roll(x, -1)) / (height * width)  # shoelace; negative: mirrored
    return 1 / AREA < area < AREA


def _homography(source, target, tolerance, seed):
    from skimage.measure import ransac
    from skimage.transform import ProjectiveTransform

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # degenerate samples are tried and dropped
        model, inliers = ransac(
            (source, target), ProjectiveTransform, min_samples=4, residual_threshold=max(tolerance, 1.0), max_trials=TRIALS, rng=np.random.default_rng(seed)
        )
    if inliers is None or inliers.sum() <= MATCHES // 2 or model is None or not np.isfinite(model.params).all() or abs(np.linalg.det(model.params)) < 1e-12:
        return None
    return model
