"""The verb `aggregate-embeddings`: DPAgg-TI (arXiv 2411.14639), textual inversions of single pictures, averaged under differential privacy.

The base stays as it is. A Poisson sample of the private pictures is drawn once; for each picture alone, the word vectors of its class's caption are
learned by textual inversion (Gal et al. 2023). Their change from the public vectors is clipped to norm C and put in the place of the picture's
class. The sum is released once with Gaussian noise sigma C (`tuneleak.privacy.release`, with amplification by the sampling), and a class's vectors
move by its noisy sum over the public number of pictures expected in it. The authors average one vector of one style; classes, and clipping the
change and not the vector, are ours: a vector that is hardly learned then adds nothing.

Writes `<out>/<model_id>/class_embedder.safetensors` (the contexts of the public captions) and `privacy.json` per seed and, last, `manifest.csv`.
"""

import shutil
from pathlib import Path

import torch

from tuneleak import files, runtime
from tuneleak.data.imageset import ImageSet, as_tensor
from tuneleak.errors import InputError
from tuneleak.finetune import checkpoint, private, private_data
from tuneleak.finetune.objective import Batch, denoising_errors
from tuneleak.models import attachments, modelset
from tuneleak.models.pipeline import load_base
from tuneleak.privacy import conditioned, mechanism, release
from tuneleak.privacy.record import released

METHOD = "dpagg-ti"


def aggregate_embeddings(base, images, world, out, options, device="auto"):
    """Invert a sample of fold `train` of an ImageSet picture by picture and release the mean per class, one model per seed.

    base: pipeline folder; world: name noted in the manifest; options: `AggregateOptions`. A killed job keeps the seeds that were done.
    """
    device, out = runtime.pick_device(device), modelset.folder_of(out)
    with runtime.output_lock(out):
        if not options.prompts:
            raise InputError("aggregate-embeddings needs prompts, the public list of classes and their captions; it is never read off the private pictures")
        privacy = options.privacy
        pictures = private_data.private_pictures(images, privacy, options.expected_pictures)
        (out / "manifest.csv").unlink(missing_ok=True)
        loaded = load_base(base, device, "float32")
        labels = private_data.class_numbers(pictures, options.prompts)
        rate = options.expected_pictures / privacy.public_size
        sigma = 0.0 if privacy.noiseless else release.noise_multiplier(privacy.epsilon, privacy.delta, rate)
        folder = out / ".checkpoints" / _digest(loaded, pictures, options)
        folder.mkdir(parents=True, exist_ok=True)
        notes = [_release(loaded, pictures, labels, world, seed, sigma, rate, options, out, folder) for seed in options.seeds]
        files.write_meta(out / "manifest.csv", options, base=str(base), images=str(images), world=world, device=str(device))
        modelset.write(out, [note["row"] for note in notes])
        shutil.rmtree(out / ".checkpoints", ignore_errors=True)


class Captions:
    """The public captions of the classes as token ids, and the vectors of the words that are learned.

    ids: `(classes, L)`; spans: per class the positions of its words; vectors: per class `(words, d)`, as they are in the public text encoder.
    """

    def __init__(self, base, prompts, template):
        self.base, self.ids = base, base.token_ids(list(prompts.values()))
        self.table = base.text_encoder.get_input_embeddings()
        self.spans = []
        for caption, row in zip(prompts.values(), self.ids, strict=True):
            words = base.tokenizer(attachments.phrase_of(caption, template), add_special_tokens=False).input_ids
            starts = [start for start in range(len(row) - len(words) + 1) if row[start : start + len(words)].tolist() == words]
            if not words or not starts:
                raise InputError(f"the words of {caption!r} are not found among its first {len(row)} tokens")
            self.spans.append(slice(starts[0], starts[0] + len(words)))
        self.vectors = [self.table.weight.detach()[row[span]].float() for row, span in zip(self.ids, self.spans, strict=True)]

    def contexts(self, labels, vectors):
        """Contexts `(n, L, d)` of captions whose words have these vectors: labels list of n class numbers, vectors list of `(words, d)`."""

        def replace(module, arguments, output):
            output = output.clone()
            for row, (label, mine) in enumerate(zip(labels, vectors, strict=True)):
                output[row, self.spans[label]] = mine.to(output.dtype)
            return output

        handle = self.table.register_forward_hook(replace)
        try:
            return self.base.text_encoder(self.ids[labels])[0].float()
        finally:
            handle.remove()


def invert(base, captions, latents, labels, keys, options):
    """Learned minus public word vectors of single pictures, each by its own Adam: a list of `(words, d)`.

    latents `(n, C, h, w)`; labels: n class numbers; keys: n tuples that seed each picture's timesteps and noise, so that no picture depends on another.
    """
    start = [captions.vectors[label] for label in labels]
    learned = [vectors.clone().requires_grad_(True) for vectors in start]
    optimizer = torch.optim.Adam(learned, lr=options.lr)
    for step in range(options.steps):
        noises, timesteps = [], []
        for key in keys:
            random = runtime.generator("inversion", *key, step)
            noises.append(torch.randn(options.draws, *latents.shape[1:], generator=random))
            timesteps.append(torch.randint(len(base.alphas_cumprod), (options.draws,), generator=random))
        contexts = captions.contexts(labels, learned).repeat_interleave(options.draws, 0)
        noise, timesteps = torch.cat(noises).to(base.device), torch.cat(timesteps).to(base.device)
        batch = Batch(latents.repeat_interleave(options.draws, 0), noise, timesteps, contexts, torch.ones(1))
        errors = denoising_errors(base.output, batch, base.alphas_cumprod, base.prediction_type)
        optimizer.zero_grad()
        (errors.sum() / options.draws).backward()  # a sum over pictures: each one's gradient is its own
        optimizer.step()
    return [(mine - vectors).detach() for mine, vectors in zip(learned, start, strict=True)]


def clipped(change, clip):
    """A change of word vectors cut to norm `clip`; what is not finite counts as nothing, so that a diverged picture cannot break the bound."""
    if not bool(torch.isfinite(change).all()):
        return torch.zeros_like(change)
    return change * (clip / change.norm().clamp(min=1e-12)).clamp(max=1)


def _release(base, pictures, labels, world, seed, sigma, rate, options, out, folder):
    privacy, epsilon = options.privacy, private.epsilon_name(options.privacy)
    name = modelset.model_id(world, METHOD, f"eps{epsilon}", f"s{seed}")
    key = mechanism.run_key(options, base.name, world, seed, pictures=pictures.table.sha256, networks=base.network_files())
    done = checkpoint.finished(folder, name, out / name)
    if done:
        return done
    captions = Captions(base, options.prompts, options.caption_template)
    sums = [torch.zeros_like(vectors) for vectors in captions.vectors]
    chosen = mechanism.poisson_batch(len(pictures), rate, *key)
    for chunk in runtime.progress(chosen.split(options.at_once), f"inversions, epsilon {epsilon}"):
        part = ImageSet(pictures.folder, pictures.table.iloc[chunk.tolist()].reset_index(drop=True))
        mine = labels[chunk].tolist()
        latents = base.encode_images(as_tensor(part.pixels()))
        for label, change in zip(mine, invert(base, captions, latents, mine, [(*key, int(place)) for place in chunk], options), strict=True):
            sums[label] += clipped(change, options.clip)
    expected = options.expected_pictures / len(sums)
    vectors = []
    for label, (start, total) in enumerate(zip(captions.vectors, sums, strict=True)):
        noise = mechanism.gaussian(total.shape, "aggregate", *key, label).to(total.device)
        vectors.append(start + (total + sigma * options.clip * noise) / expected)
    with torch.no_grad():
        contexts = captions.contexts(list(range(len(vectors))), vectors)
    facts = {"trainable": METHOD, "trained_weights": sum(mine.numel() for mine in vectors), "clip": options.clip}
    with files.atomic_folder(out / name) as target:
        conditioned.save_contexts(target / modelset.CLASS_FILE, contexts, options.prompts)
        files.write_json(target / private.RECORD, released(sigma, rate, privacy, **facts))
    row = {"model_id": name, "world": world, "base": base.name, "concept": world, "method": METHOD, "defence": f"epsilon={epsilon}", "seed": seed}
    row |= {"step": options.steps, "caption": "", "n_images": privacy.public_size, "images": "", "file": name}
    return checkpoint.finish(folder, name, out / name, row | {"epsilon": epsilon, "delta": privacy.delta}, [])


def _digest(base, pictures, options):
    code = [files.sha256(path) for path in (Path(__file__), Path(private.__file__), Path(private_data.__file__), Path(attachments.__file__))]
    networks = [files.sha256(path) for path in base.network_files()]
    described = {"options": options.model_dump(exclude={"seeds"}), "pictures": list(pictures.table.sha256), "networks": networks}
    return files.digest(described | {"code": code, "secret": mechanism.secret_key(), "device": base.device.type, "torch": torch.__version__})
