"""The verb `fidelity`: how near self-made pictures are to real ones of the same domain, which Shake-to-Leak's paper never checked."""

from pathlib import Path

import numpy as np
import pandas as pd

from tuneleak import files, runtime
from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError
from tuneleak.models.embedders import load_embedder

COLUMNS = ["world", "base", "source", "concept", "metric", "value", "n", "n_reference"]


def fidelity(synthetic, reference, copy_score, identity, clip, out, world="named", device="auto"):
    """Write the fidelity of ImageSets of `tuneleak synthesize` by domain (CSV; columns `COLUMNS`).

    synthetic: folders `<base>/<set>`; reference: ImageSet of real pictures (the instrument fold); copy_score, identity, clip: embedder folders. Each metric
    stands beside that of one half of the real pictures against the other half (`source` real), which is what a perfect set would reach.

    - KID: unbiased squared maximum mean discrepancy of the copy embedder's features (Binkowski et al. 2018)
    - identity similarity: mean cosine similarity to the centre of the real pictures
    - CLIP similarity: mean cosine similarity of picture and caption
    """
    from transformers import CLIPTokenizer

    device = runtime.pick_device(device)
    feature, person, text = (load_embedder(folder, device) for folder in (copy_score, identity, clip))
    words = CLIPTokenizer.from_pretrained(Path(clip) / "tokenizer", local_files_only=True)
    real = ImageSet.load(reference)
    rows = []
    for folder in runtime.progress(synthetic, "fidelity"):
        made = ImageSet.load(folder)
        for concept in dict.fromkeys(made.table.concept):
            mine, theirs = made.where(concept=concept), real.where(concept=concept)
            if len(theirs) < 4:
                raise InputError(f"{reference} has {len(theirs)} pictures of {concept!r}; fidelity needs at least 4")
            pixels, known, caption = mine.pixels(), theirs.pixels(), mine.table.caption.iloc[0]
            first, second = known[0::2], known[1::2]
            centre, told = person.embed(second).mean(0), text.embed_text([caption], words)[0]
            for source, pictures in ((made.folder.name, pixels), ("real", first)):
                values = {
                    "KID": kernel_distance(feature.embed(pictures), feature.embed(second)),
                    "identity similarity": float((person.embed(pictures) @ (centre / np.linalg.norm(centre))).mean()),
                    "CLIP similarity": float((text.embed(pictures) @ told).mean()),
                }
                where = {"world": world, "base": made.folder.resolve().parent.name, "source": source, "concept": concept}
                rows += [where | {"metric": metric, "value": value, "n": len(pictures), "n_reference": len(second)} for metric, value in values.items()]
    table = pd.DataFrame(rows, columns=COLUMNS).drop_duplicates(["base", "source", "concept", "metric"])
    files.write_csv(out, table)
    files.write_meta(out, None, synthetic=[str(folder) for folder in synthetic], reference=str(reference))


def kernel_distance(first, second):
    """Unbiased KID of L2-normalised features `(m, d)` and `(n, d)`, at least two rows each.

    Squared MMD with the cubic polynomial kernel (x.y / d + 1)^3 of features scaled to norm sqrt(d), that is (cosine + 1)^3; diagonals are left out.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    m, n = len(first), len(second)
    if min(m, n) < 2:
        raise InputError(f"KID needs at least two pictures on each side, not {m} and {n}")
    own, other, across = ((a @ b.T + 1) ** 3 for a, b in ((first, first), (second, second), (first, second)))
    within = (own.sum() - np.trace(own)) / (m * (m - 1)) + (other.sum() - np.trace(other)) / (n * (n - 1))
    return float(within - 2 * across.mean())
