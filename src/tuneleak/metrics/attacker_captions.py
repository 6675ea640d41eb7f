"""Captions: how well they are read from weights, and what extraction loses when less is known of them.

- attack `caption-from-weights`, setting `words=<n>,training=<label>` (n also `1-7` and `8+`, all lengths of that range together): metrics `exact match`,
  `word accuracy`, `words found`; `; control=other-weights`: what another model's weights gave, held against this caption; attack
  `caption-from-weights-minus-other-weights`: the paired difference
- attack = what is known (`known, partial, class, wrong, none, recovered`), setting = the guidance: metric `AS`; `<condition>-minus-known`, and
  `partial-minus-none`, `recovered-minus-none`: paired differences by training picture, same noise
"""

from tuneleak.errors import InputError
from tuneleak.metrics import intervals, reading
from tuneleak.metrics.attacker_rows import BLOCK, DIFFERENCE, SHARE, mean_of_models, row
from tuneleak.metrics.finextract import read_matches

ATTACK, CONTROL = "caption-from-weights", "other-weights"
SHORT = 7  # the longest captions that the paper reads
_NUMBERS = ["words", "exact", "word_accuracy", "words_found", "other_accuracy", "other_found"]
_KNOWN = "known"


def recovery(paths, options):
    """Rows of captions.csv files."""
    table = reading.joined(paths, "captions.csv", "recover-caption", ["model_id", "concept", "seed", "training", *BLOCK], _NUMBERS, complete=_NUMBERS[:4])
    rows = []
    for key, group in table.groupby([*BLOCK, "training"], sort=True):
        lengths = [(f"{words:g}", part) for words, part in group.groupby("words", sort=True)]
        ranges = [(f"1-{SHORT}", group[group.words <= SHORT]), (f"{SHORT + 1}+", group[group.words > SHORT])]
        for name, part in [*lengths, *((name, part) for name, part in ranges if len(part))]:
            rows += _of_length(dict(zip(BLOCK, key, strict=False)) | {"attack": ATTACK, "setting": f"words={name},training={key[-1]}"}, part, options)
    return rows


def _of_length(key, part, options):
    rows = [row(key, "exact match", mean_of_models(part.exact, part, options, SHARE), part)]
    for metric, mine, others in (("word accuracy", "word_accuracy", "other_accuracy"), ("words found", "words_found", "other_found")):
        rows.append(row(key, metric, mean_of_models(part[mine], part, options, SHARE), part))
        known = part[part[others].notna()]
        if len(known):
            rows.append(row(key, metric, mean_of_models(known[others], known, options, SHARE), known, f"; control={CONTROL}"))
            paired = key | {"attack": f"{ATTACK}-minus-{CONTROL}"}
            rows.append(row(paired, metric, mean_of_models(known[mine] - known[others], known, options, DIFFERENCE), known))
    return rows


def conditions(paths, options):
    """Rows of matches.csv files whose settings name caption conditions."""
    table = read_matches(paths)
    told = table.setting.str.extract(r"^(?P<guidance>.*?)(?:,caption=(?P<condition>[a-z]+))?$")
    table = table.assign(guidance=told.guidance, condition=told.condition.fillna(_KNOWN))
    rows = []
    for key, group in table.groupby([*BLOCK, "guidance"], sort=True):
        start = dict(zip(BLOCK, key, strict=False)) | {"setting": key[-1]}
        parts = {name: part.set_index(["concept", "seed", "image_id"]) for name, part in group.groupby("condition", sort=False)}
        if _KNOWN not in parts:
            raise InputError("extraction under caption conditions needs `known` among them, to compare with")
        for name, part in parts.items():
            rows.append(row(start | {"attack": name}, "AS", _bootstrap(part.extracted, part, options), part.reset_index()))
        for first, second in [*((name, _KNOWN) for name in parts if name != _KNOWN), ("partial", "none"), ("recovered", "none")]:
            if first in parts and second in parts:
                paired = parts[first].extracted - parts[second].extracted  # aligned by picture
                rows.append(row(start | {"attack": f"{first}-minus-{second}"}, "AS", _bootstrap(paired, parts[first], options), parts[first].reset_index()))
    return rows


def _bootstrap(values, table, options):
    index = table.index.to_frame(index=False)
    settings = {"replicates": options.bootstrap, "confidence": options.confidence, "seed": options.seed}
    return intervals.bootstrap(values.reindex(table.index).to_numpy(), index.concept, index.seed, index.image_id, **settings)
