"""Extraction where nobody has the training pictures to match with: an attack on a model as it was shared.

Writes the ImageSet `extracted/` and `clusters.csv`, one row per extracted picture: `model_id, world, base, concept, method, attack, setting`; `file` (relative
to `extracted/`); `cluster_size` (members of its clique); `density` (mean similarity of the picture to the other members, 1 for a single one); `threshold,
exact` (of the clustering), `n_generated, n_images, model_calls`.
"""

import pandas as pd

from tuneleak import files, runtime
from tuneleak.attacks.extraction.clustering import cluster, similarity
from tuneleak.attacks.extraction.generate import generate, starting_noise
from tuneleak.attacks.extraction.pair import ModelPair
from tuneleak.data import imageset
from tuneleak.models.pipeline import load_tuned

COLUMNS = ["model_id", "world", "base", "concept", "method"]


def attack_unmatched(base, modelset, embedder, attack, settings, out, options):
    """Run `attack` (a module) in all `settings` ({name: Guidance}) on the models of a ModelSet; see above for what it writes to the folder `out`.

    embedder: copy embedder of the clustering; options: `ExtractionOptions`.
    """
    rows, pictures, clusters = [], [], []
    for row in runtime.progress(modelset.rows(), f"{options.attack} on models"):
        noise = starting_noise(row["concept"], options.generations_per_image * int(row["n_images"]), base.latent_shape, options.seed)
        with load_tuned(base, modelset, row) as tuned:
            texts = {"pretrained_null": base.encode_text([""]), "pretrained_caption": base.encode_text([row["caption"]])}
            texts |= {"finetuned_null": tuned.encode_text([""]), "finetuned_caption": tuned.encode_text([row["caption"]])}
            for setting, guidance in settings.items():
                pair = ModelPair(base.noise_pred, tuned.noise_pred, **texts)
                generated = generate(base, pair, attack.guide, guidance, noise, options, f"{row['model_id']} {setting}")
                features = embedder.embed(generated)
                found = cluster(features, int(row["n_images"]), options.cluster)
                near = similarity(features)
                for medoid, members in zip(found.medoids, found.members, strict=True):
                    name = f"{row['model_id']}.{options.attack}.{setting.replace('=', '').replace(',', '_')}.{medoid:05d}"
                    others = [member for member in members if member != medoid]
                    rows.append({"image_id": name, "concept": row["concept"], "caption": row["caption"], "model_id": row["model_id"]})
                    pictures.append(generated[medoid])
                    clusters.append(
                        {column: row[column] for column in COLUMNS}
                        | {"attack": options.attack, "setting": setting, "cluster_size": len(members)}
                        | {"density": float(near[medoid, others].mean()) if others else 1.0, "threshold": found.threshold, "exact": found.exact}
                        | {"n_generated": len(generated), "n_images": row["n_images"], "model_calls": pair.calls}
                    )
    written = imageset.write(out / "extracted", rows, pictures)
    table = pd.DataFrame(clusters)
    table.insert(len(COLUMNS) + 2, "file", list(written.table.file))
    files.write_csv(out / "clusters.csv", table)
