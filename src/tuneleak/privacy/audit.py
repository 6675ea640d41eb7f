"""The verb `audit`: trains with canaries and writes what epsilon the training cannot be below, beside what its accountant claims.

`audit.csv` has the columns of the metrics table; `attack` is audit-dirac or audit-pictures, `metric`: audited epsilon (one run: the first, so that
the confidence is not split over all), audited epsilon (many runs: the first canary over all runs), beside both their ceiling, which
is what they would be were every guess right, and correct guesses. The bound over many runs is left out where its ceiling is below `WORTH` of the claim:
it would say nothing of the training (at a claim of 10 it takes about 100 runs). A lower bound has `ci_low` = `value` and no upper end, which is printed
as the value too.
"""

import json

import pandas as pd
import torch
from pydantic import ValidationError

from tuneleak import files, runtime
from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError
from tuneleak.finetune import methods, private, private_data
from tuneleak.metrics.finextract import COLUMNS
from tuneleak.privacy import accounting, auditing, canaries, gradients
from tuneleak.privacy.record import sample_rate

WORTH = 0.25  # of the claimed epsilon: what a bound must be able to reach to be reported


def audit(base, images, world, training, out, options, device="auto"):
    """Audit the training that `training` describes: `PrivateFinetuneOptions` as JSON, or the path of a file with it.

    base: pipeline folder; images: ImageSet whose fold train stands beside the canaries; options: `AuditOptions`; out: the CSV file.
    """
    from tuneleak.models.pipeline import load_base
    from tuneleak.options import PrivateFinetuneOptions

    text = str(training)
    try:
        values = json.loads(text) if text.startswith("{") else files.read_json(text)
        recipe, device = PrivateFinetuneOptions.model_validate(values), runtime.pick_device(device)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise InputError(f"--training is not valid, mend it: {told}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"--training must be JSON or a file with it ({error})") from None
    if options.guesses > options.count or options.guesses % 2:
        raise InputError(f"guesses must be even and at most count, not {options.guesses} of {options.count}")
    privacy = recipe.privacy
    sigma = 0.0 if privacy.noiseless else accounting.noise_multiplier(privacy.epsilon, privacy.delta, sample_rate(privacy), privacy.steps)
    loaded = load_base(base, device, "float32")
    runs = []
    for run in runtime.progress(range(options.runs), "audit"):
        key = ("audit", world, private.epsilon_name(privacy), options.seed, run)
        if options.canaries == "pictures":
            runs.append(_picture_run(loaded, images, recipe, sigma, key, options))
        else:
            runs.append(_dirac_run(loaded, images, recipe, sigma, key, options))
    facts = {"system": "dp-ldm", "world": world, "base": loaded.name, "method": private.method_name(recipe), "attack": f"audit-{options.canaries}"}
    facts |= {"defence": f"epsilon={private.epsilon_name(privacy)}", "setting": "", "seeds": ";".join(str(options.seed + run) for run in range(options.runs))}
    files.write_csv(out, pd.DataFrame(table(runs, privacy, options, facts), columns=COLUMNS))
    files.write_meta(out, options, training=recipe.model_dump(mode="json"), sigma=sigma, base=str(base), images=str(images))


def table(runs, privacy, options, facts):
    """Rows of the metrics table; runs: list of (scores `(m,)`, members `(m,)`)."""
    guesses = [auditing.guess(scores, members, options.guesses // 2, options.guesses // 2) for scores, members in runs]
    bound, ceiling = (
        auditing.epsilon_one_run(options.count, options.guesses, correct, privacy.delta, options.confidence) for correct in (guesses[0][1], options.guesses)
    )
    rows = _bounded("audited epsilon (one run)", bound, ceiling, options.count)
    total = sum(made for made, _ in guesses)
    rows.append(_fact("correct guesses", sum(correct for _, correct in guesses) / total, total))
    if options.canaries == "dirac" and len(runs) > 1 and len({bool(members[0]) for _, members in runs}) == 2:
        bound, ceiling = _many_runs(runs, privacy, options)
        if privacy.noiseless or ceiling >= WORTH * privacy.epsilon:
            rows += _bounded("audited epsilon (many runs)", bound, ceiling, len(runs))
    return [facts | row for row in rows]


def _bounded(metric, bound, ceiling, n):
    return [_fact(metric, bound, n), _fact(auditing.CEILING + metric, ceiling, n)]


def _fact(metric, value, n):
    return {"metric": metric, "value": value, "ci_low": value, "ci_high": value, "n": n}


def _many_runs(runs, privacy, options):
    """(bound, its ceiling) of the first canary over all runs, at the threshold half-way to what a canary that is in adds on average; fixed beforehand."""
    threshold = 0.5 * privacy.steps / privacy.public_size
    reached = [(bool(members[0]), float(scores[0]) >= threshold) for scores, members in runs]
    inside, outside = ([hit for member, hit in reached if member is wanted] for wanted in (True, False))
    return tuple(
        auditing.epsilon_many_runs(reached_in, len(inside), reached_out, len(outside), privacy.delta, options.confidence)
        for reached_in, reached_out in ((sum(inside), sum(outside)), (len(inside), 0))
    )


def _dirac_run(base, images, recipe, sigma, key, options):
    if not options.pictures:
        found = canaries.train_on_canaries_alone(canaries.DiracCanaries(options.count, 4 * options.count, recipe.privacy, *key), sigma)
        return found.scores.numpy(), found.members.numpy()
    pictures = private_data.training_set(images, recipe)
    pictures = ImageSet(pictures.folder, pictures.table[: options.pictures].reset_index(drop=True))
    with _training(base, private_data.PrivateRecords(base, pictures, recipe), recipe, sigma, key) as trainer:
        found = canaries.DiracCanaries(options.count, trainer.vector.numel(), recipe.privacy, *key)
        trainer.contribute = lambda noisy: noisy.add(_as_parameters(found.contribution(trainer.step_number), trainer.parameters))
        for _ in range(recipe.privacy.steps):
            trainer.step()
            found.watch(trainer.vector.grad)
    return found.scores.numpy(), found.members.numpy()


def _picture_run(base, images, recipe, sigma, key, options):
    """Noise pictures with labels of others: the score is how much better the model denoises one than the base does."""
    data = private_data.PrivateRecords(base, private_data.training_set(images, recipe), recipe)
    random = runtime.generator("canary-pictures", *key)
    size = base.image_size
    pixels = torch.rand(options.count, 3, *size, generator=random) * 2 - 1
    latents = base.encode_images(pixels)
    conditions = data.conditions[torch.randint(len(data.conditions), (options.count,), generator=random)]
    members = canaries.coins(options.count, *key)
    data.latents = torch.cat([data.latents, latents[members]])
    data.conditions = torch.cat([data.conditions, conditions[members]])
    with _training(base, data, recipe, sigma, key) as trainer:
        network = trainer.sums.network
        data.latents, data.conditions = torch.cat([data.latents, latents]), torch.cat([data.conditions, conditions])
        every = torch.arange(len(data.latents) - options.count, len(data.latents))
        before = _losses(data, network, every, key, options)
        kept = data.latents, data.conditions
        data.latents, data.conditions = kept[0][: -options.count], kept[1][: -options.count]
        for _ in range(recipe.privacy.steps):
            trainer.step()
        trainer.finish()
        data.latents, data.conditions = kept
        scores = before - _losses(data, network, every, key, options)
    return scores.numpy(), members.numpy()


@torch.no_grad()
def _losses(data, network, chosen, key, options, batch=64):
    """Mean denoising error of each record over `options.draws` timesteps and noises, the same before and after."""
    random = runtime.generator("canary-losses", *key)
    losses = []
    for part in chosen.split(batch):
        rows = len(part) * options.draws
        noise = torch.randn(rows, *data.latents.shape[1:], generator=random)
        timesteps = torch.linspace(50, len(data.base.alphas_cumprod) - 50, options.draws).long().repeat(len(part))
        losses.append(data.errors_of(data.pictures_of(part, options.draws), noise, timesteps)(network).view(len(part), -1).mean(1).cpu())
    return torch.cat(losses)


class _training:
    """A trainer ready to step, on a base that is given back as it was."""

    def __init__(self, base, data, recipe, sigma, key):
        self.base, self.data, self.recipe, self.sigma, self.key = base, data, recipe, sigma, key

    def __enter__(self):
        network, parameters, *_ = private.prepare(self.base, self.recipe, 0)
        flat = methods.FlatParameters(parameters)
        self.sums = gradients.make("hooks" if self.recipe.gradients == "hooks" else "ghost", network, parameters, self.recipe.gradient_checkpointing)
        return private.Trainer(self.data, parameters, flat.vector, self.sums, self.sigma, self.key, self.recipe)

    def __exit__(self, *_):
        self.sums.close()
        private.restore(self.base, self.recipe)


def _as_parameters(vector, parameters):
    parts, start = [], 0
    for parameter in parameters:
        parts.append(vector[start : start + parameter.numel()].view(parameter.shape).to(parameter.device))
        start += parameter.numel()
    return parts
