"""The verb `finetune-defended`: one recipe under many defences, as one ModelSet that every attack is then run on.

Changes of the recipe and of finished weights are made by `finetune-variants`; DP-SGD trains each concept's adapter (or attention) on that concept's pictures
alone; DPAgg-TI releases one noisy mean of textual inversions of single pictures. The column `defence` names the defence, `method` stays the recipe's.

Beside `manifest.csv`, `privacy.csv` has one row per private model: `model_id, concept, method, defence, seed, unit` (image or person), `epsilon, delta` (of
that unit; epsilon `inf` without noise), `person_epsilon, person_delta` (of all of a person's pictures at once, by group privacy where the unit is one picture),
`noise_multiplier, sample_rate, steps, n_images`.
"""

import functools
import math
import shutil
from pathlib import Path

import pandas as pd
import torch

from tuneleak import files, runtime
from tuneleak.data.imageset import ImageSet, as_tensor
from tuneleak.finetune import aggregate, checkpoint, loop, methods, private, private_data, variants
from tuneleak.models import attachments, modelset
from tuneleak.models.modelset import ModelSet
from tuneleak.models.pipeline import load_base
from tuneleak.options import FinetuneOptions, VariantsOptions
from tuneleak.privacy import accounting, gradients, mechanism, release, state
from tuneleak.privacy.record import of_people, record, released, sample_rate, statement

COLUMNS = [
    "model_id", "concept", "method", "defence", "seed", "unit", "epsilon", "delta", "person_epsilon", "person_delta", "noise_multiplier",
    "sample_rate", "steps", "n_images",
]  # fmt: skip
PLAIN = "plain"  # folder of the models that no privacy mechanism trained


def finetune_defended(base, images, world, split, out, options, start=0, stop=None, device="auto", dtype="float32"):
    """Fine-tune `base` on concepts `start:stop` of a split under every defence of `options` (`FinetuneDefendedOptions`); arguments as of `tuneleak finetune`.

    Private training is float32 always. Finished models are kept when a killed job is started again.
    """
    out = modelset.folder_of(out)
    with runtime.output_lock(out):
        (out / "manifest.csv").unlink(missing_ok=True)
        rows, spent = [], []
        plain = [item.variant for item in options.defences if item.private is None and item.aggregate is None]
        if plain:
            asked = VariantsOptions(recipe=options.recipe, variants=plain)
            variants.finetune_variants(base, images, world, split, out / PLAIN, asked, start, stop, device, dtype)
            rows += [row | {"file": f"{PLAIN}/{row['file']}"} for row in ModelSet.load(out / PLAIN).rows()]
        loaded = None
        for item in [item for item in options.defences if item.private or item.aggregate]:
            loaded = loaded or _trainable(load_base(base, runtime.pick_device(device), "float32"))
            count = item.private.count(options.recipe) if item.private else options.recipe.images_per_concept
            recipe = options.recipe.model_copy(update={"images_per_concept": count})
            jobs = loop.plan(ImageSet.load(images), world, split, start, stop, recipe)
            for job in runtime.progress(jobs, item.name):
                row, facts = _private(loaded, job, item, options.recipe, out)
                rows.append(row)
                spent.append(facts)
        files.write_csv(out / "privacy.csv", pd.DataFrame(spent, columns=COLUMNS))
        files.write_meta(out / "manifest.csv", options, base=str(base), images=str(images), split=split, start=start, stop=stop, models=len(rows))
        modelset.write(out, rows)
        kept = {Path(row["file"]).parts[0] for row in rows}
        for left in out.glob("*"):
            if left.is_dir() and left.name not in kept:
                shutil.rmtree(left)  # checkpoints, and models of an earlier list of defences


def _trainable(base):
    base.check_trainable()
    base.check_words()
    return base


class PersonRecords(private_data.PrivateRecords):
    """One record: all pictures of a person. Its K draws go round the pictures, so its gradient is the mean over them, clipped as one."""

    def __len__(self):
        return 1

    def pictures_of(self, chosen, draws):
        """As of `Records`; row r is of picture r modulo their number."""
        return torch.arange(len(chosen) * draws) % len(self.latents)


def _private(base, job, item, recipe, out):
    """Train or release one model; its manifest row and its row of privacy.csv."""
    row, pictures = job
    row = row | {"model_id": modelset.model_id(row["model_id"], item.name), "base": base.name, "defence": item.name}
    row["file"] = row["model_id"]
    folder = out / ".checkpoints" / _digest(base, pictures, item, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    done = checkpoint.finished(folder, row["model_id"], out / row["file"])
    if done is None:
        facts = _train(base, row, pictures, item.private, recipe, out, folder) if item.private else _release(base, row, pictures, item.aggregate, out)
        row["step"] = facts["steps"]
        done = checkpoint.finish(folder, row["model_id"], out / row["file"], row, [], facts=facts)
    told = {name: done["row"][name] for name in ("model_id", "concept", "method", "defence", "seed", "n_images")} | done["facts"]
    return done["row"], {name: told[name] for name in COLUMNS}


def _train(base, row, pictures, private_options, recipe, out, folder):
    options = private_options.options(recipe)
    privacy, seed = options.privacy, row["seed"]
    key = mechanism.run_key(options, base.name, row["model_id"], pictures=pictures.table.sha256, networks=base.network_files())
    person = private_options.unit == "person"
    data = (PersonRecords if person else private_data.PrivateRecords)(base, pictures, options)
    sigma = _noise(privacy)
    network, parameters, selection, _ = private.prepare(base, options, f"{row['concept']}/{seed}")
    flat = methods.FlatParameters(parameters)
    sums = gradients.make(private.kind_of_sums(base, network, parameters, options, folder), network, parameters, options.gradient_checkpointing)
    try:
        trainer = private.Trainer(data, parameters, flat.vector, sums, sigma, key, options)
        state.load(folder, row["model_id"], trainer)
        for step in range(trainer.step_number, privacy.steps):
            trainer.step()
            if (step + 1) % options.checkpoint_every == 0 and step + 1 < privacy.steps:
                state.save(folder, row["model_id"], trainer)
        trainer.finish()
        facts = _record(trainer.ledger, options, flat.vector.numel(), selection)
        facts = of_people(facts, len(pictures)) if person else facts
        with files.atomic_folder(out / row["file"]) as target:
            private.save(base, None, options, target)
            files.write_json(target / private.RECORD, facts)
    finally:
        sums.close()
        private.restore(base, options)
    state.forget(folder, row["model_id"])
    return _spent(facts, len(pictures))


@functools.cache
def _noise(privacy):
    """The noise multiplier of a budget. Where every record takes part in every step, T Gaussian steps are one release with sigma / sqrt(T): no accountant."""
    if privacy.noiseless:
        return 0.0
    if privacy.expected_batch == privacy.public_size:
        return release.noise_multiplier(privacy.epsilon, privacy.delta) * math.sqrt(privacy.steps)
    return accounting.noise_multiplier(privacy.epsilon, privacy.delta, sample_rate(privacy), privacy.steps)


def _record(ledger, options, weights, selection):
    """The record of a run (see `tuneleak.privacy.record`), by the closed form where every record takes part in every step."""
    privacy = options.privacy
    if privacy.noiseless or privacy.expected_batch < privacy.public_size:
        return record(ledger, options, weights, selection)
    ((sigma, _, steps),) = ledger.history
    further = {"clip": privacy.clip, "multiplicity": privacy.multiplicity, "trainable": selection.kind, "trained_weights": weights}
    facts = _released(sigma / math.sqrt(steps), privacy) | further | {"history": ledger.history, "noise_multiplier": sigma, "steps": steps}
    return facts | {"statement": statement(facts)}


@functools.cache
def _released(sigma, privacy):
    """`released` of one release of all records: the check by a second accountant takes seconds, and all models of a defence share it."""
    return released(sigma, 1.0, privacy)


def _release(base, row, pictures, options, out):
    """DPAgg-TI of one concept: its caption's words move by the noisy mean of what single pictures teach them."""
    count = len(pictures)
    privacy = options.privacy.model_copy(update={"public_size": count, "unit": "image"})  # `_spent` says what it is for the person
    options = options.model_copy(update={"prompts": {row["concept"]: row["caption"]}, "privacy": privacy, "expected_pictures": count})
    sigma = 0.0 if privacy.noiseless else release.noise_multiplier(privacy.epsilon, privacy.delta)
    captions = aggregate.Captions(base, options.prompts, options.caption_template)
    key = mechanism.run_key(options, base.name, row["model_id"], pictures=pictures.table.sha256, networks=base.network_files())
    latents = base.encode_images(as_tensor(pictures.pixels()))
    changes = []
    for chunk in torch.arange(count).split(options.at_once):
        changes += aggregate.invert(base, captions, latents[chunk], [0] * len(chunk), [(*key, int(place)) for place in chunk], options)
    total = sum(aggregate.clipped(change, options.clip) for change in changes)
    noise = mechanism.gaussian(total.shape, "aggregate", *key).to(total.device)
    vectors = captions.vectors[0] + (total + sigma * options.clip * noise) / count
    words = attachments.TextualInversion(base.text_encoder, base.tokenizer, attachments.phrase_of(row["caption"], options.caption_template), "<concept>")
    try:
        words.vectors.data.copy_(vectors)
        facts = _released(sigma, privacy) | {"trainable": aggregate.METHOD, "trained_weights": vectors.numel(), "clip": options.clip}
        with files.atomic_folder(out / row["file"]) as target:
            words.save(target)
            files.write_json(target / private.RECORD, facts)
    finally:
        words.remove()
    return _spent(facts, count)


def _spent(facts, count):
    """What a record (see `tuneleak.privacy.record`) promises, for one picture or person and for all of a person's `count` pictures."""
    epsilon = math.inf if facts["epsilon"] == "infinity" else facts["epsilon"]
    person = facts["unit"] == "person"
    of_person = (epsilon, facts["delta"]) if person else accounting.group_privacy(epsilon, facts["delta"], count)
    told = {"unit": facts["unit"], "epsilon": epsilon, "delta": facts["delta"], "person_epsilon": of_person[0], "person_delta": of_person[1]}
    return told | {name: facts[name] for name in ("noise_multiplier", "sample_rate", "steps")}


def _digest(base, pictures, item, recipe: FinetuneOptions):
    """Names everything a private model depends on, so that nothing of other circumstances is taken for it."""
    here = Path(__file__).parent
    code = [files.sha256(path) for folder in (here, here.parent / "privacy") for path in sorted(folder.glob("*.py"))]
    networks = [files.sha256(path) for path in base.network_files()]
    described = {"defence": item.model_dump(mode="json"), "recipe": recipe.model_dump(mode="json"), "pictures": list(pictures.table.sha256)}
    return files.digest(
        described | {"networks": networks, "code": code, "secret": mechanism.secret_key(), "device": base.device.type, "torch": torch.__version__}
    )
