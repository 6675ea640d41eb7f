"""The verb `recover-caption`: the training caption of each model of a ModelSet, from its weights and the public base alone.

`captions.csv`, one row per model: `model_id, world, base, concept, method, defence, seed` (of the model), `training` (how it was trained, as told), `caption`
(the true one), `words` (their number), `recovered`, `score` (share of the updates' variance that the recovered caption captures), `exact` (1 if all words are
right), `word_accuracy` (share of the true words found in their places), `words_found` (share found anywhere), `other_accuracy` and `other_found` (the
control: the same of what another model of the set gave, one of as many words if there is one), `layers`, `divisors` (undone: `own`, see
`tuneleak.attacks.captions.adam`, or a power, see `search`), `changed` (tokens whose embeddings moved; empty if the text encoder was not tuned).
"""

import shutil
from collections import Counter
from pathlib import Path

import pandas as pd

from tuneleak import files, runtime
from tuneleak.attacks.captions import grow, relax
from tuneleak.attacks.captions.adam import AdamLikelihood, unprompted
from tuneleak.attacks.captions.embeddings import changed_tokens
from tuneleak.attacks.captions.encoder import CausalEncoder
from tuneleak.attacks.captions.evidence import Evidence
from tuneleak.attacks.captions.search import root_mean_square, search
from tuneleak.attacks.captions.updates import read_updates
from tuneleak.errors import InputError
from tuneleak.models.modelset import ModelSet
from tuneleak.models.pipeline import load_base

PLAIN = 0.99  # of the variance in one caption's span: plain descent, which divides by nothing
MODEL_COLUMNS = ["model_id", "world", "base", "concept", "method", "defence", "seed"]
COLUMNS = [
    *MODEL_COLUMNS, "training", "caption", "words", "recovered", "score", "exact", "word_accuracy", "words_found", "other_accuracy", "other_found", "layers",
    "divisors", "changed",
]  # fmt: skip


def recover_captions(models, base, out, options, trainings=(), device="auto"):
    """Write captions.csv (see the module's text). models: ModelSet folders; base: pipeline folder; options: `CaptionOptions`; trainings: a label for each.

    An interrupted run continues after its last finished model.
    """
    out, sets, device = Path(out), [ModelSet.load(folder) for folder in models], runtime.pick_device(device)
    labels = list(trainings) or ["adamw"] * len(sets)
    if len(labels) != len(sets):
        raise InputError(f"{len(sets)} model sets but {len(labels)} labels in --trainings; give one for each, or none")
    with runtime.output_lock(out):
        loaded = load_base(base, device)
        loaded.check_words()
        if getattr(loaded.unet.config, "cross_attention_dim", None) != loaded.text_encoder.config.hidden_size:
            raise InputError(f"{base} conditions its denoiser on more than one text encoder's output; captions are read from bases with one text encoder")
        length = min(loaded.tokenizer.model_max_length, loaded.text_encoder.config.max_position_embeddings)
        encoder = CausalEncoder(loaded.text_encoder, loaded.tokenizer, length)
        spread = root_mean_square(encoder, options.corpus, options.seed)
        jobs = [(modelset, label, row) for modelset, label in zip(sets, labels, strict=True) for row in modelset.rows()]
        stamps = files.stamps([*(item.folder for item in sets), loaded.folder])
        partial = out.with_name(f".{out.name}.partial-{files.digest([options.model_dump(mode='json'), stamps, labels])}")
        found = []
        for number, (modelset, label, row) in enumerate(runtime.progress(jobs, "captions from weights")):
            path = partial / f"{number:05d}.json"
            if not path.is_file():
                files.write_json(path, _recover(loaded, modelset, row, encoder, spread, options))
            found.append({name: row[name] for name in MODEL_COLUMNS} | {"training": label} | files.read_json(path))
        files.write_csv(out, with_control(pd.DataFrame(found))[COLUMNS])
        files.write_meta(out, options, models=[*map(str, models)], base=str(base), trainings=labels, device=str(device))
        shutil.rmtree(partial, ignore_errors=True)


def _recover(base, modelset, row, encoder, spread, options):
    updates = read_updates(base, modelset, row)
    tokens, changed = None, ""
    if updates.embeddings is not None:
        tokens = [token for token in changed_tokens(*updates.embeddings) if token not in encoder.tokenizer.all_special_ids]
        changed = len(tokens)
    if updates.rows and tokens != []:
        text, score, divisors = _read(base, modelset, row, updates, encoder, spread, options, tokens)
    else:  # words without an order
        text, score, divisors = encoder.text(tokens or []), None, None
    true = row["caption"].lower()
    facts = {"caption": true, "words": len(true.split()), "recovered": text, "score": score, **agreement(true, text)}
    return facts | {"layers": len(updates.rows), "divisors": divisors, "changed": changed}


def _read(base, modelset, row, updates, encoder, spread, options, tokens):
    """(text, score, divisors) of the caption that explains the updates best."""
    undo = bool(updates.names and options.draws)
    plain = options.model_copy(update={"powers": [0]}) if undo else options
    best, power = search(Evidence([updates.rows], encoder.length), encoder, plain, spread, tokens)
    if not undo or best.score > PLAIN:
        return best.text, best.score, f"power {power:g}"
    pictures, way = unprompted(base, modelset, row), relax if options.relaxed else grow
    first, many = AdamLikelihood(updates, base, encoder, options, pictures), options.model_copy(update={"draws": way.LAST * options.draws})
    decisive = AdamLikelihood(updates, base, encoder, many, pictures, first.divisors.density)  # which has the same latents
    ids, explanation = way.find(first, decisive, encoder, options, tokens, best.ids)
    if float(decisive.judge(encoder.caption(best.ids)[None])[0]) >= explanation.likelihood:
        return best.text, best.score, "power 0"
    return encoder.text(ids), explanation.share, "own"


def agreement(true, recovered):
    """`exact`, `word_accuracy` (right words in their places over the true words) and `words_found` (in any place) of a recovered caption."""
    true, recovered = true.split(), recovered.split()
    places = sum(first == second for first, second in zip(true, recovered, strict=False))
    anywhere = sum((Counter(true) & Counter(recovered)).values())
    return {"exact": int(true == recovered), "word_accuracy": places / max(len(true), 1), "words_found": anywhere / max(len(true), 1)}


def with_control(table):
    """The table with `other_accuracy` and `other_found`: each true caption against what the next other model (of as many words, if any, and of another true
    caption) gave. Without such a model they are missing."""
    accuracy, found = [], []
    for place, row in enumerate(table.itertuples()):
        order = [*range(place + 1, len(table)), *range(place)]
        others = [table.iloc[other] for other in order if table.iloc[other].caption != row.caption]
        other = next((item for item in others if item.words == row.words), others[0] if others else None)
        told = agreement(row.caption, other.recovered) if other is not None else {"word_accuracy": float("nan"), "words_found": float("nan")}
        accuracy.append(told["word_accuracy"])
        found.append(told["words_found"])
    return table.assign(other_accuracy=accuracy, other_found=found)
