"""People: was this person in the set, judged from photographs of them that nothing trained on (`attack people`)?

- attack `people`, setting `photographs=<m>,caption=<kind>`: metric `AUC`, the share of (person trained on, stranger) pairs in which the person scores higher,
  with scores that are means over m photographs, averaged over disjoint sets of m; metric `rank-1`, the share of models under which the person, judged by all
  photographs, is above all strangers
- attack `pictures`, setting `caption=<kind>`: metric `AUC` of pictures trained on against other pictures of the same person, the question one level down
- `; control=base`: the same of the base's own loss, which sees no fine-tune; attack `<attack>-minus-base`: the paired difference
"""

import numpy as np

from tuneleak.metrics import reading, roc
from tuneleak.metrics.attacker_rows import BLOCK, DIFFERENCE, SHARE, mean_of_models, row

SIZES = (1, 2, 5, 10, 20)
_TEXT = ["model_id", "concept", "seed", *BLOCK, "caption", "person", "role", "image_id"]


def people(paths, options):
    """Rows of people.csv files."""
    table = reading.joined(paths, "people.csv", "attack people", _TEXT, ["base_loss", "tuned_loss"], complete=["base_loss", "tuned_loss"])
    table = table.assign(score=table.base_loss - table.tuned_loss, control=-table.base_loss)
    rows = []
    for key, group in table.groupby([*BLOCK, "caption"], sort=True):
        start, kind = dict(zip(BLOCK, key, strict=False)), key[-1]
        models = group.drop_duplicates(["model_id", "concept", "seed"])
        cells = [group[(group.model_id == model.model_id) & (group.seed == model.seed)] for model in models.itertuples()]
        fewest = min(cell[cell.role != "member"].groupby("person").size().min() for cell in cells)
        for size in [size for size in SIZES if size <= fewest]:
            setting = f"photographs={size},caption={kind}"
            rows += _compared(
                start | {"attack": "people", "setting": setting}, "AUC", cells, models, options, lambda cell, score, size=size: _auc(cell, score, size)
            )
        setting = f"photographs={fewest},caption={kind}"
        rows += _compared(start | {"attack": "people", "setting": setting}, "rank-1", cells, models, options, _first)
        rows += _compared(start | {"attack": "pictures", "setting": f"caption={kind}"}, "AUC", cells, models, options, _pictures)
    return rows


def _compared(key, metric, cells, models, options, statistic):
    mine, control = (np.array([statistic(cell, column) for cell in cells]) for column in ("score", "control"))
    difference = key | {"attack": f"{key['attack']}-minus-base"}
    return [
        row(key, metric, mean_of_models(mine, models, options, SHARE), models),
        row(key, metric, mean_of_models(control, models, options, SHARE), models, "; control=base"),
        row(difference, metric, mean_of_models(mine - control, models, options, DIFFERENCE), models),
    ]


def set_scores(values, size):
    """Means of the disjoint sets of `size` photographs, in order, `(n // size,)`; what is left over is not used."""
    values = np.asarray(values, dtype=float)
    return values[: len(values) // size * size].reshape(-1, size).mean(1)


def _auc(cell, column, size):
    mine = set_scores(cell[cell.role == "other"][column], size)
    strangers = [set_scores(part[column], size) for _, part in cell[cell.role == "stranger"].groupby("person", sort=False)]
    return roc.auc(mine, np.concatenate(strangers))


def _first(cell, column):
    mine = cell[cell.role == "other"][column].mean()
    return float(mine > cell[cell.role == "stranger"].groupby("person")[column].mean().max())


def _pictures(cell, column):
    return roc.auc(cell[cell.role == "member"][column], cell[cell.role == "other"][column])
