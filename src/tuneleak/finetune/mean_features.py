"""The verb `mean-features`: DP-MEPF (Harder et al. 2023, arXiv 2205.12900), a generator trained to a noisy mean of public features.

Once, and never again, the private pictures are looked at. With f(x) the features of a network trained on public pictures, picture i of class y gives

    phi1 = f / ||f||,   phi2 = f^2 / ||f^2||,   and a constant b that counts it,

put in the place of class y of one long vector. Its length is sqrt(2 + b^2) for every picture, so the sum changes by that much when one is added or
removed, and Gaussian noise on the sum is one release of the Gaussian mechanism (`tuneleak.privacy.release`). Divided by the noisy counts it gives
the means mu_c of phi = (phi1, phi2) of each class. What follows is post-processing: a class-conditional generator is trained from scratch to minimise

    sum_c w_c < mu_c - phi(first half of a batch), mu_c - phi(second half) >,

w_c the noisy share of the class. Its expectation is the squared distance of the means: the halves are independent, so no variance of the batch is
punished (the authors keep running means instead). The counts are ours, too; the authors take classes to be equally frequent.

Writes `<out>/<model_id>/generator.safetensors` and `privacy.json` per seed, `train.csv` (columns model_id, step, loss) and, last, `manifest.csv`.
"""

import json
import shutil
from pathlib import Path

import pandas as pd
import torch
from torch.nn import functional as F

from tuneleak import files, runtime
from tuneleak.data.imageset import as_tensor
from tuneleak.errors import InputError
from tuneleak.finetune import checkpoint, methods, private, private_data
from tuneleak.models import modelset, perceptual, weights
from tuneleak.models.generator import Generator
from tuneleak.privacy import mechanism, release, state
from tuneleak.privacy.record import released

METHOD = "dp-mepf"
LOG_EVERY = 10


def mean_features(base, images, network, world, out, options, device="auto"):
    """Release the mean features of fold `train` of an ImageSet, and train a generator to them, one per seed.

    base: pipeline folder, noted in the manifest (its networks are not used); network: see `tuneleak.models.perceptual.load`; world: name noted in the
    manifest; options: `MeanFeaturesOptions`. A killed job continues from its last checkpoint.
    """
    device, out = runtime.pick_device(device), modelset.folder_of(out)
    with runtime.output_lock(out):
        if not options.prompts:
            raise InputError("mean-features needs prompts, the public list of classes; it is never read off the private pictures")
        pictures = private_data.private_pictures(images, options.privacy, 1)
        (out / "manifest.csv").unlink(missing_ok=True)
        features = perceptual.load(network, options.pool, device)
        labels = private_data.class_numbers(pictures, options.prompts)
        total, side = feature_sum(pictures, labels, features, len(options.prompts), options.count_weight, device)
        sigma = release.noise_multiplier(float("inf") if options.privacy.noiseless else options.privacy.epsilon, options.privacy.delta)
        folder = out / ".checkpoints" / _digest(pictures, network, options, device)
        folder.mkdir(parents=True, exist_ok=True)
        notes = []
        for seed in options.seeds:
            key = mechanism.run_key(options, METHOD, world, _networks(network), seed, pictures=pictures.table.sha256)
            trained = _Training(total, sigma, features, side, key, options, device)
            notes.append(_train_one(trained, Path(base).resolve().name, world, seed, sigma, options, out, folder))
        log = pd.concat([pd.DataFrame(note["log"], columns=["step", "loss"]).assign(model_id=note["row"]["model_id"]) for note in notes])
        files.write_csv(out / "train.csv", log[["model_id", "step", "loss"]])
        files.write_meta(out / "manifest.csv", options, base=str(base), images=str(images), network=str(network), world=world, device=str(device))
        modelset.write(out, [note["row"] for note in notes])
        shutil.rmtree(out / ".checkpoints", ignore_errors=True)


def embedding(features):
    """(phi1, phi2) side by side, each of length 1: features `(n, d)` -> `(n, 2 d)`."""
    return torch.cat([F.normalize(features, dim=1), F.normalize(features.square(), dim=1)], 1)


def sensitivity(count_weight):
    """Length of what one picture adds to the sum."""
    return (2 + count_weight**2) ** 0.5


@torch.no_grad()
def feature_sum(pictures, labels, features, classes, count_weight, device):
    """(sum over pictures `(classes, 2 d + 1)`, the last column counting; side of a picture). Every picture's part is cut to the length it should have."""
    total, side, first = None, None, 0
    for part in private_data.parts(pictures, 64):
        pixels = as_tensor(part.pixels()).to(device)
        found = embedding(features(pixels)).double().cpu()
        found = torch.cat([found, torch.full((len(found), 1), count_weight, dtype=torch.float64)], 1)
        found = found * (sensitivity(count_weight) / found.norm(dim=1, keepdim=True)).clamp(max=1)  # features of length 0 stay 0; rounding gains nothing
        total = torch.zeros(classes, found.shape[1], dtype=torch.float64) if total is None else total
        total.index_add_(0, labels[first : first + len(found)], found)
        first, side = first + len(found), pixels.shape[-1]
    return total, side


def noisy_means(total, sigma, count_weight, *key):
    """(means `(classes, 2 d)`, shares `(classes,)`) after one release of `total (classes, 2 d + 1)` with noise sigma times its sensitivity."""
    noise = mechanism.gaussian(total.shape, "mean-features", *key, dtype=torch.float64)
    noised = total + sigma * sensitivity(count_weight) * noise
    counts = (noised[:, -1] / count_weight).clamp(min=1)
    return (noised[:, :-1] / counts[:, None]).float(), (counts / counts.sum()).float()


class _Training:
    """The generator of one seed on its way to the released means; the attributes are those that `tuneleak.privacy.state` keeps."""

    def __init__(self, total, sigma, features, side, key, options, device):
        self.features, self.key, self.options, self.device = features, key, options, device
        means, shares = noisy_means(total, sigma, options.count_weight, *key)
        self.means, self.shares = means.to(device), shares.to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(1 << 62, (1,), generator=runtime.generator("mean-features-generator", *key))))
            self.generator = Generator(len(total), side, options.width, options.latent).to(device)
        self.vector = methods.FlatParameters(self.generator.parameters()).vector
        self.optimizer = torch.optim.AdamW([self.vector], lr=options.lr, betas=(0.5, 0.9), weight_decay=0)
        self.average, self.ledger, self.log, self.step_number = None, release.ledger(sigma, 1.0), [], 0

    def step(self):
        """One step on two independent halves of a batch of equally many pictures per class."""
        options, random = self.options, runtime.generator("mean-features-draws", *self.key, self.step_number)
        classes = torch.randperm(len(self.shares), generator=random)[: max(1, options.batch // 2)]  # all of them, unless there are too many
        each = max(1, options.batch // (2 * len(classes)))
        labels = classes.repeat_interleave(each).repeat(2).to(self.device)
        noise = torch.randn(len(labels), options.latent, generator=random).to(self.device)
        found = embedding(self.features(self.generator(noise, labels)))
        first, second = found.view(2, len(classes), each, -1).mean(2)
        chosen = classes.to(self.device)
        loss = (self.shares[chosen] * ((self.means[chosen] - first) * (self.means[chosen] - second)).sum(1)).sum()
        for group in self.optimizer.param_groups:
            group["lr"] = options.lr * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * self.step_number / options.steps))))
        self.vector.grad.zero_()
        loss.backward()
        if not bool(torch.isfinite(loss)):
            raise InputError(f"the generator's loss is not finite in step {self.step_number + 1}; lower lr")
        self.optimizer.step()
        self.step_number += 1
        if self.step_number % LOG_EVERY == 0 or self.step_number == options.steps:
            self.log.append([self.step_number, float(loss.detach())])


def _train_one(training, base, world, seed, sigma, options, out, folder):
    epsilon = private.epsilon_name(options.privacy)
    name = modelset.model_id(world, METHOD, f"eps{epsilon}", f"s{seed}")
    done = checkpoint.finished(folder, name, out / name)
    if done:
        return done
    state.load(folder, name, training)
    for _ in runtime.progress(range(training.step_number, options.steps), f"generator, epsilon {epsilon}"):
        training.step()
        if training.step_number % options.checkpoint_every == 0 and training.step_number < options.steps:
            state.save(folder, name, training)
    facts = {"trainable": METHOD, "trained_weights": training.vector.numel(), "released_numbers": training.means.numel() + len(training.shares)}
    with files.atomic_folder(out / name) as target:
        save_generator(target / modelset.GENERATOR_FILE, training.generator, options, list(options.prompts))
        files.write_json(target / private.RECORD, released(sigma, 1.0, options.privacy, **facts))
    row = {"model_id": name, "world": world, "base": base, "concept": world, "method": METHOD, "defence": f"epsilon={epsilon}", "seed": seed}
    row |= {"step": options.steps, "caption": "", "n_images": options.privacy.public_size, "images": "", "file": name}
    note = checkpoint.finish(folder, name, out / name, row | {"epsilon": epsilon, "delta": options.privacy.delta}, [], log=training.log)
    state.forget(folder, name)
    return note


def save_generator(path, generator, options, classes):
    """Write a generator; what is needed to build it again stands in the header."""
    from safetensors.torch import save_file

    facts = {"classes": classes, "side": 4 << len(generator.levels), "width": options.width, "latent": options.latent}
    header = {"generator": json.dumps(facts, sort_keys=True)}  # one entry: with several, their order in the file is left to chance
    save_file({name: value.detach().cpu().contiguous() for name, value in generator.state_dict().items()}, path, metadata=header)


def load_generator(path, side):
    """(generator in evaluation mode, list of classes) of a file of `save_generator`, for pictures of `side` pixels; every shape is checked."""
    with weights.opened(path) as handle:
        header = handle.metadata() or {}
    try:
        facts = json.loads(header["generator"])
        classes, found = facts["classes"], {name: int(facts[name]) for name in ("side", "width", "latent")}
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path} is not a generator written by `tuneleak mean-features`: its header lacks classes, side, width or latent") from None
    if found["side"] != side or not isinstance(classes, list) or not 0 < found["width"] <= 1024 or not 0 < found["latent"] <= 4096:
        raise InputError(f"{path} draws pictures of {found['side']} pixels, not {side}, or its header is out of bounds")
    generator = Generator(len(classes), side, found["width"], found["latent"])
    tensors = weights.read_tensors(path, {name: tuple(value.shape) for name, value in generator.state_dict().items()})
    generator.load_state_dict(tensors)
    return generator.eval().requires_grad_(False), classes


def _networks(network):
    """What tells one feature network from another: two releases of one set must not share noise."""
    network = Path(network)
    return files.digest([files.sha256(path) for path in ([network] if network.is_file() else sorted(network.glob("*.safetensors")))])


def _digest(pictures, network, options, device):
    code = [files.sha256(path) for path in (Path(__file__), Path(private.__file__), Path(private_data.__file__), Path(perceptual.__file__))]
    described = {"options": options.model_dump(exclude={"checkpoint_every", "seeds"}), "pictures": list(pictures.table.sha256), "networks": _networks(network)}
    return files.digest(described | {"code": code, "secret": mechanism.secret_key(), "device": device.type, "torch": torch.__version__})
