"""The verb `finetune-private`: DP-SGD on a base's UNet and conditioning embedder (DP-LDM, arXiv 2305.15759, and its ablations).

Writes `<out>/<model_id>/` per seed (a model of a ModelSet; with conditioning=class also `class_embedder.safetensors`; always `privacy.json`, see
`tuneleak.privacy.record`), `train.csv` (columns model_id, step, update_norm: the length of the noised mean gradient, seconds) and, last,
`manifest.csv`. Nothing else about the training is written: losses, gradient norms and batch sizes of private pictures are not covered by the
guarantee.
"""

import hashlib
import shutil
import time
from pathlib import Path

import pandas as pd
import torch

from tuneleak import files, runtime
from tuneleak.errors import InputError
from tuneleak.finetune import checkpoint, methods, private_data
from tuneleak.models import modelset, weights
from tuneleak.models.latent_diffusion import KINDS as LATENT_DIFFUSION
from tuneleak.models.pipeline import load_base
from tuneleak.privacy import accounting, conditioned, gradients, mechanism, state, trainable
from tuneleak.privacy.record import record, sample_rate

RECORD = "privacy.json"


def finetune_private(base, images, world, out, options, device="auto"):
    """Fine-tune `base` on fold `train` of an ImageSet under `options.privacy`, one model per seed.

    base: pipeline folder; images: ImageSet folder; world: name noted in the manifest; out: folder of the ModelSet; options:
    `PrivateFinetuneOptions`. Always float32:
    a clip computed in bfloat16 bounds nothing. A killed job continues from its last checkpoint with the same numbers and the same ledger.
    """
    device, out = runtime.pick_device(device), modelset.folder_of(out)
    with runtime.output_lock(out):
        pictures = private_data.training_set(images, options)
        (out / "manifest.csv").unlink(missing_ok=True)
        loaded = load_base(base, device, "float32")
        loaded.check_trainable()
        if options.conditioning == "text-encoder" or not isinstance(loaded, LATENT_DIFFUSION):
            loaded.check_words()
        data = private_data.PrivateRecords(loaded, pictures, options)
        sigma = 0.0 if options.privacy.noiseless else _noise(options.privacy)
        folder = out / ".checkpoints" / _digest(loaded, pictures, options)
        folder.mkdir(parents=True, exist_ok=True)
        notes = [_train_one(loaded, data, world, seed, sigma, options, out, folder) for seed in options.seeds]
        log = pd.concat([pd.DataFrame(note["log"], columns=["step", "update_norm", "seconds"]).assign(model_id=note["row"]["model_id"]) for note in notes])
        files.write_csv(out / "train.csv", log[["model_id", "step", "update_norm", "seconds"]])
        files.write_meta(
            out / "manifest.csv", options, base=str(base), images=str(images), world=world, device=str(device), trained_weights=notes[0]["trained"]
        )
        modelset.write(out, [note["row"] for note in notes])
        shutil.rmtree(out / ".checkpoints", ignore_errors=True)


def method_name(options):
    """The name of what is trained, for manifests and tables: the set of weights, and the range of blocks if not all."""
    return options.trainable + (f"-{options.blocks[0]}-{options.blocks[1]}" if options.blocks else "")


def epsilon_name(privacy):
    """`1`, `10`, ... or `inf`."""
    return "inf" if privacy.noiseless else f"{privacy.epsilon:g}"


def _noise(privacy):
    return accounting.noise_multiplier(privacy.epsilon, privacy.delta, sample_rate(privacy), privacy.steps)


def class_contexts(base, options):
    """Where the class table starts: the public text encoder's contexts of the public prompts, `(classes, L, d)`; one token is their mean."""
    contexts = base.encode_text(list(options.prompts.values()))
    if options.context_tokens == 1:
        return contexts.mean(1, keepdim=True)
    return contexts[:, : options.context_tokens or None]


def prepare(base, options, seed):
    """`(network, parameters, selection, embedder)` ready to train: what is not among the parameters is frozen."""
    tokens = None
    if options.trainable == "lora":
        methods.add_lora(base.unet, options.rank, options.alpha, options.target_modules, runtime.generator("dp-lora", seed))
    if options.conditioning == "class":
        embedder = conditioned.ClassEmbedder(class_contexts(base, options), options.context_gain).to(base.device)
        tokens = embedder.shape[0]
    else:
        embedder = conditioned.TextEmbedder(base.text_encoder) if options.conditioning == "text-encoder" else None
    selection = trainable.select(base.unet, options.trainable, options.blocks, tokens)
    parameters = trainable.apply(base.unet, selection)
    if embedder is not None:
        embedder.requires_grad_(True)
        for name, parameter in embedder.named_parameters():
            parameter.requires_grad_("position_embedding" not in name)
        parameters += [parameter for parameter in embedder.parameters() if parameter.requires_grad]
    if options.gradient_checkpointing:
        from functools import partial

        from torch.utils.checkpoint import checkpoint as recompute

        base.unet.enable_gradient_checkpointing(partial(recompute, use_reentrant=True))
        base.unet.train()  # diffusers checkpoints in training mode only; Stable Diffusion's UNet has no dropout
    return conditioned.Conditioned(base.unet, embedder, base.call), parameters, selection, embedder


def frozen_digest(network):
    """SHA-256 of the bytes of everything in `network` that does not require gradients."""
    digest = hashlib.sha256()
    held = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    for name in sorted(name for name, tensor in held.items() if not tensor.requires_grad):
        digest.update(name.encode() + held[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _train_one(base, data, world, seed, sigma, options, out, folder):
    """Train, write and note one model; returns its note."""
    privacy, method, epsilon = options.privacy, method_name(options), epsilon_name(options.privacy)
    name = modelset.model_id(world, method, f"eps{epsilon}", f"s{seed}")
    done = checkpoint.finished(folder, name, out / name)
    if done:
        return done
    network, parameters, selection, embedder = prepare(base, options, seed)
    before = frozen_digest(network)
    flat = methods.FlatParameters(parameters)
    kind = kind_of_sums(base, network, parameters, options, folder)
    sums = gradients.make(kind, network, parameters, options.gradient_checkpointing)
    try:
        key = mechanism.run_key(options, base.name, world, seed, pictures=data.sources, networks=base.network_files())
        trainer = Trainer(data, parameters, flat.vector, sums, sigma, key, options)
        state.load(folder, name, trainer)
        for step in runtime.progress(range(trainer.step_number, privacy.steps), f"private {method} epsilon {epsilon}"):
            trainer.step()
            if (step + 1) % options.checkpoint_every == 0 and step + 1 < privacy.steps:
                state.save(folder, name, trainer)
        trainer.finish()
        if frozen_digest(network) != before:
            raise RuntimeError("weights that should be frozen have changed; nothing was written")
        facts = record(trainer.ledger, options, flat.vector.numel(), selection)
        with files.atomic_folder(out / name) as target:
            save(base, embedder, options, target)
            files.write_json(target / RECORD, facts | {"frozen_weights_sha256": before, "gradients": kind})
    finally:
        sums.close()
        restore(base, options)
    row = {"model_id": name, "world": world, "base": base.name, "concept": world, "method": method, "defence": f"epsilon={epsilon}", "seed": seed}
    row |= {"step": privacy.steps, "caption": "", "n_images": privacy.public_size, "images": "", "file": name, "epsilon": epsilon, "delta": privacy.delta}
    note = checkpoint.finish(folder, name, out / name, row, [], trained=flat.vector.numel(), log=trainer.log)
    state.forget(folder, name)
    return note


def kind_of_sums(base, network, parameters, options, folder):
    """How clipped sums are computed. `auto` is decided once per job by the time a batch of noise takes, and noted, since the ways round differently."""
    if options.gradient_checkpointing or options.gradients != "auto":
        return "hooks" if options.gradients == "auto" else options.gradients
    note = folder / "gradients.json"
    if not note.is_file():
        draws = options.privacy.multiplicity
        pictures = max(1, options.physical_batch // draws)
        data = private_data.NoiseRecords(base, pictures, options)
        noise = torch.randn(pictures * draws, *base.latent_shape)
        timesteps = torch.randint(len(base.alphas_cumprod), (len(noise),))
        kind, seconds = gradients.fastest(
            network, parameters, data.errors_of(torch.arange(pictures).repeat_interleave(draws), noise, timesteps), pictures, options.privacy.clip
        )
        files.write_json(note, {"kind": kind, "seconds": seconds})
    return files.read_json(note)["kind"]


class Trainer:
    """The state of one private training: weights, optimiser, average, ledger, and the step that moves them.

    parameters: in the order of the flat `vector` they are views of; sums: `GhostSums` or `HookSums`; key: names the run, so that all its randomness is its own.
    """

    def __init__(self, data, parameters, vector, sums, sigma, key, options):
        self.data, self.parameters, self.vector, self.sums, self.sigma, self.key, self.options = data, parameters, vector, sums, sigma, key, options
        self.optimizer = torch.optim.AdamW([vector], lr=options.lr, eps=options.adam_epsilon, weight_decay=options.weight_decay)
        self.average = vector.detach().clone() if options.ema else None
        self.ledger, self.log, self.step_number = accounting.Ledger(), [], 0

    def step(self):
        """One noisy step: sample, sum clipped gradients, add noise, update, and only then note it."""
        privacy, started = self.options.privacy, time.perf_counter()
        rate = sample_rate(privacy)
        chosen = mechanism.poisson_batch(len(self.data), rate, *self.key, self.step_number)
        noisy, draws = mechanism.NoisySum(self.parameters), privacy.multiplicity
        random = runtime.generator("dp-draws", *self.key, self.step_number)
        noise = torch.randn(len(chosen) * draws, *self.data.latents.shape[1:], generator=random)
        timesteps = torch.randint(len(self.data.base.alphas_cumprod), (len(chosen) * draws,), generator=random)
        pictures, at_once = self.data.pictures_of(chosen, draws), self.options.physical_batch
        if draws > at_once:  # records are added up piece by piece
            for first in range(0, len(pictures), draws):
                pieces = torch.arange(first, first + draws).split(at_once)
                noisy.add(gradients.clipped_record(self.sums, [self._errors(pictures, noise, timesteps, rows) for rows in pieces], draws, privacy.clip)[0])
        else:
            for rows in torch.arange(len(pictures)).split(at_once // draws * draws) if len(pictures) else ():
                noisy.add(self.sums.clipped(self._errors(pictures, noise, timesteps, rows), len(rows) // draws, privacy.clip)[0])
        self.contribute(noisy)
        gradient = noisy.noised(self.sigma, privacy.expected_batch, *self.key, self.step_number)
        if not bool(torch.isfinite(gradient).all()):
            raise InputError(f"the gradient is not finite in step {self.step_number + 1}; lower lr")
        self.vector.grad = gradient
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.lr * min(1.0, (self.step_number + 1) / (self.options.warmup + 1))
        self.optimizer.step()
        self.ledger.step(self.sigma, rate)
        self.step_number += 1
        if self.average is not None:
            decay = min(self.options.ema, self.step_number / (self.step_number + 9))
            self.average.lerp_(self.vector.detach(), 1 - decay)
        self.log.append([self.step_number, float(gradient.norm()), round(time.perf_counter() - started, 3)])

    def _errors(self, pictures, noise, timesteps, rows):
        return self.data.errors_of(pictures[rows], noise[rows], timesteps[rows])

    def contribute(self, noisy):
        """Whatever else takes part in this step's sum: nothing here, the canaries of an audit in `tuneleak.privacy.canaries`."""

    def finish(self):
        """Put the averaged weights in place, if there is an average."""
        if self.average is not None:
            with torch.no_grad():
                self.vector.copy_(self.average)


def save(base, embedder, options, folder):
    """Write what was trained below `folder`: a LoRA or the UNet, and the conditioning embedder."""
    if options.trainable == "lora":
        weights.write_lora(folder, {"unet": base.unet})
    else:
        base.unet.save_pretrained(folder / "unet", safe_serialization=True)
    if options.conditioning == "class":
        conditioned.save_contexts(folder / modelset.CLASS_FILE, embedder.contexts(), options.prompts)
    elif options.conditioning == "text-encoder":
        base.text_encoder.save_pretrained(folder / "text_encoder", safe_serialization=True)


def restore(base, options):
    """Undo `prepare`: the base is again what was loaded."""
    if options.trainable == "lora":
        weights.detach_lora(base.unet)
        base.unet.requires_grad_(False)
        if options.gradient_checkpointing:
            base.reload("unet")
    else:
        base.reload("unet")
    if options.conditioning == "text-encoder":
        base.reload("text_encoder")


def _digest(base, pictures, options):
    """Names everything the weights depend on, so that no checkpoint is continued under other circumstances."""
    here = Path(__file__).parent
    code = [files.sha256(path) for folder in (here, here.parent / "privacy") for path in sorted(folder.glob("*.py"))]
    networks = [files.sha256(path) for path in base.network_files()]
    described = {"options": options.model_dump(exclude={"checkpoint_every", "seeds"}), "pictures": list(pictures.table.sha256), "networks": networks}
    return files.digest(described | {"code": code, "secret": mechanism.secret_key(), "device": base.device.type, "torch": torch.__version__})
