"""The verb `measure dp-ldm`: what pictures of privately trained models are good for, one row per model and metric.

Columns of `utility.csv`: world, base, method, defence, seed, metric, block, value, ci_low, ci_high, standard_error, n, image_hits. `metric` is
`FD-<network>` (`FID` if the network is Inception), `precision`, `recall`, `accuracy <classifier>`, `weight change to_q|to_k|to_v` of an attention
`block`, or what the model's record promises (`tuneleak.metrics.dp_columns.PROMISES`); `image_hits` is, for accuracies, a string of 0 and 1 over the test
pictures in their order, so that models can be compared picture by picture. Rows of method `real` are the bounds: two disjoint halves of real pictures, and
classifiers trained on real pictures.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from tuneleak import files, runtime
from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError
from tuneleak.finetune.private_data import parts
from tuneleak.metrics import classifiers, frechet, intervals
from tuneleak.metrics.dp_columns import PROMISES, UTILITY
from tuneleak.models.embedders import INCEPTION


def measure(images, embedder, world, base, out, options, samples=(), models=(), device="auto"):
    """Measure the sampled sets `samples` against the ImageSet `images` (folds train and test), and of the ModelSets `models` weight changes and promises.

    Without samples the real pictures themselves are measured. embedder: folder of the network behind the Frechet distance; base: pipeline folder.
    """
    from tuneleak.models.embedders import load_embedder

    device = runtime.pick_device(device)
    real, network = ImageSet.load(images), load_embedder(embedder, device)
    study = _Study(real, network, options, device)
    facts, rows = {"world": world, "base": Path(base).name}, []
    for mine, slices in by_model(samples):
        rows += [facts | mine | row for row in study.of_pictures(slices)]
    if not samples:
        rows += [facts | {"method": "real", "defence": "", "seed": "0"} | row for row in study.of_real()]
    for folder in models:
        rows += [facts | row for row in weight_changes(base, folder)] + promises(folder)
    files.write_csv(out, pd.DataFrame(rows).reindex(columns=UTILITY))
    files.write_meta(
        out, options, images=str(images), embedder=str(embedder), samples=[str(folder) for folder in samples], reference="fold test", size=study.size
    )


def by_model(folders):
    """[(method, defence and seed of a model, the ImageSets with its pictures)] of sample sets, in which a model's pictures may lie in slices.

    Raises `InputError` if a picture is in two of them.
    """
    found = {}
    for drawn in map(ImageSet.load, folders):
        for key, group in drawn.table.groupby(["model_id", "method", "defence", "seed"], sort=False):
            found.setdefault(key, []).append(ImageSet(drawn.folder, group.reset_index(drop=True)))
    for (name, *_), slices in found.items():
        twice = pd.concat([part.table.image_id for part in slices])
        if twice.duplicated().any():
            raise InputError(f"picture {twice[twice.duplicated()].iloc[0]!r} of {name} is in two of the given sample sets; give each slice once")
    return [({"method": method, "defence": defence, "seed": seed}, slices) for (_, method, defence, seed), slices in found.items()]


class _Study:
    """The real pictures, prepared once, and what is measured against them."""

    def __init__(self, real, network, options, device):
        self.options, self.device, self.network = options, device, network
        self.name = getattr(network, "config", {}).get("name", "SSCD")
        self.train, self.test = real.where(fold="train"), real.where(fold=["test", "heldout"])
        if not len(self.train) or not len(self.test):
            raise InputError(f"{real.folder} needs pictures in the folds train and test (or heldout)")
        self.classes = sorted(set(real.labels))
        missing = sorted(set(self.train.labels) - set(self.test.labels))
        if missing:
            raise InputError(f"{real.folder} has no held-out picture of {missing[0]!r}, so what is learned of it cannot be tested; leave more out of training")
        self.size = len(self.test)
        self.reference, self.test_pixels = self._read(self.test)
        self.truth = self._numbers(self.test)

    def of_pictures(self, slices):
        """Rows of one model's pictures, a list of ImageSets."""
        read = [self._read(part) for part in slices]
        features, pixels = np.concatenate([features for features, _ in read]), torch.cat([pixels for _, pixels in read])
        return self._distances(features) + self._accuracies(pixels, np.concatenate([self._numbers(part) for part in slices]))

    def of_real(self):
        """The bounds: real training pictures in the place of synthetic ones."""
        chosen = np.random.default_rng(self.options.seed).permutation(len(self.train))[: self.size]
        some = ImageSet(self.train.folder, self.train.table.iloc[chosen].reset_index(drop=True))
        pixels = torch.cat([classifiers.shrunk(part.pixels(), self.options.classifier_size) for part in parts(self.train)])
        return self._distances(self._read(some)[0]) + self._accuracies(pixels, self._numbers(self.train))

    def _read(self, images):
        """(features for the distance, pictures as classifiers take them) of an ImageSet, a part at a time: at full size they need not fit in memory."""
        found = [(self.network.embed(pixels), classifiers.shrunk(pixels, self.options.classifier_size)) for pixels in map(ImageSet.pixels, parts(images))]
        return np.concatenate([features for features, _ in found]), torch.cat([pixels for _, pixels in found])

    def _distances(self, features):
        count = min(len(features), self.size, self.options.distance_samples)  # equally many on both sides, also for the floor
        features, reference = features[_spread(len(features), count)], self.reference[_spread(self.size, count)]
        value, low, high, error = frechet.frechet_interval(features, reference, self.options.replicates, self.options.confidence, self.options.seed)
        metric = "FID" if self.name == INCEPTION else f"FD-{self.name}"
        metric += "" if count >= frechet.MINIMUM_SAMPLES else f" (under {frechet.MINIMUM_SAMPLES} samples)"
        rows = [{"metric": metric, "value": value, "ci_low": low, "ci_high": high, "standard_error": error, "n": count}]
        for name, share in zip(("precision", "recall"), frechet.precision_recall(reference, features), strict=True):
            low, high = intervals.wilson(round(share * count), count, self.options.confidence)
            rows.append({"metric": name, "value": share, "ci_low": low, "ci_high": high, "standard_error": (share * (1 - share) / count) ** 0.5, "n": count})
        return rows

    def _accuracies(self, pixels, labels):
        rows, knobs = [], self.options
        for kind in knobs.classifiers if len(self.classes) > 1 else ():  # of one class there is nothing to learn
            settings = {"width": knobs.classifier_width, "size": knobs.classifier_size, "device": self.device}
            network = classifiers.train(kind, pixels, labels, len(self.classes), knobs.classifier_epochs, knobs.seed, **settings)
            hits = classifiers.predict(network, self.test_pixels, knobs.classifier_size, self.device) == self.truth
            low, high = intervals.wilson(int(hits.sum()), len(hits), knobs.confidence)
            share = float(hits.mean())
            row = {"metric": f"accuracy {kind}", "value": share, "ci_low": low, "ci_high": high, "standard_error": (share * (1 - share) / len(hits)) ** 0.5}
            rows.append(row | {"n": len(hits), "image_hits": "".join("01"[int(hit)] for hit in hits)})
        return rows

    def _numbers(self, images):
        names = list(images.labels)
        unknown = sorted(set(names) - set(self.classes))
        if unknown:
            raise InputError(f"{images.folder}: label {unknown[0]!r} is no class of the real pictures")
        return np.array([self.classes.index(name) for name in names])


def weight_changes(base, models):
    """||W' - W|| / ||W|| of the queries, keys and values of every attention block, rows without world and base (DP-LDM, figure 5)."""
    from tuneleak.models.modelset import LORA_FILE, ModelSet
    from tuneleak.models.pipeline import load_base
    from tuneleak.models.weights import read_lora
    from tuneleak.privacy.trainable import attention_blocks

    loaded, modelset, rows = load_base(base, "cpu", "float32"), ModelSet.load(models), []
    original = {name: tensor.clone() for name, tensor in loaded.unet.state_dict().items()}
    blocks = [name for name, _ in attention_blocks(loaded.unet)] or [name for name, _ in attention_blocks(loaded.unet, conditional=False)]
    for row in modelset.rows():
        folder = modelset.path(row)
        if (folder / "unet").is_dir():
            from safetensors.torch import load_file

            tuned = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
            changed = {name: tuned[name].float() - tensor for name, tensor in original.items()}
        elif not (folder / LORA_FILE).is_file():
            continue  # methods that leave the UNet alone
        else:
            lora = read_lora(folder / LORA_FILE, loaded.networks())["unet"]
            changed = {f"{module}.weight": lora.alpha / lora.rank * b @ a for module, (a, b) in lora.matrices.items()}
        for index, block in enumerate(blocks):
            for part in ("to_q", "to_k", "to_v"):
                names = [name for name in original if name.startswith(f"{block}.") and name.endswith(f".{part}.weight")]
                moved = sum(float(changed[name].square().sum()) for name in names if name in changed)
                share = (moved / sum(float(original[name].square().sum()) for name in names)) ** 0.5
                facts = {name: row[name] for name in ("method", "defence", "seed")} | {"metric": f"weight change {part}", "block": f"block {index}"}
                rows.append(facts | {"value": share, "ci_low": share, "ci_high": share, "standard_error": 0.0, "n": len(names)})
    return rows


def promises(models):
    """What privacy.json says of every model of a ModelSet: rows of `PROMISES` under the world and base of its manifest; no row for an infinite epsilon."""
    from tuneleak.models.modelset import ModelSet

    modelset, rows = ModelSet.load(models), []
    for row in modelset.rows():
        record = files.read_object(files.inside(modelset.folder, f"{row['file']}/privacy.json"), *PROMISES, "steps")
        facts = {name: row[name] for name in ("world", "base", "method", "defence", "seed")} | {"block": "", "standard_error": 0.0, "n": record["steps"]}
        for key, metric in PROMISES.items():
            if record[key] != "infinity":
                rows.append(facts | {"metric": metric, "value": record[key], "ci_low": record[key], "ci_high": record[key]})
    return rows


def _spread(total, count):
    """`count` positions spread evenly over `total`, so that every class is kept in its share."""
    return np.linspace(0, total - 1, count).round().astype(int)
