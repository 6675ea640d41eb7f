"""What an attacker of FineXtract needs to know, and knows afterwards: the verb `evaluate attacker`.

The table has the columns of `tuneleak.metrics.finextract.COLUMNS`, system `finextract-attacker`; its parts are described where they are made: captions read
from weights and extraction under what is known of the caption (`attacker_captions`), the attacker's own certainty (`attacker_certainty`), people
(`attacker_people`). Intervals are over concepts from 8 on; below, over models (`; interval=models`) or pictures (`; interval=images`), and speak of these
concepts only.
"""

import pandas as pd

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.metrics import attacker_captions, attacker_certainty, attacker_people
from tuneleak.metrics.finextract import COLUMNS, DECIMALS
from tuneleak.options import EvaluateOptions


def evaluate(out, options: EvaluateOptions, captions=(), matches=(), clusters=(), people=()):
    """Write the metrics table. captions: captions.csv of `recover-caption`; matches: matches.csv of `attack extraction` under several caption conditions;
    clusters: clusters.csv of `certainty`; people: people.csv of `attack people`. Each may be left out, not all; `InputError` for unreadable ones."""
    parts = ((captions, attacker_captions.recovery), (matches, attacker_captions.conditions), (clusters, attacker_certainty.certainty))
    rows = [row for paths, function in (*parts, (people, attacker_people.people)) if paths for row in function(paths, options)]
    if not rows:
        raise InputError("there is nothing to evaluate: give captions, matches, clusters or people")
    result = pd.DataFrame(rows, columns=COLUMNS)
    numbers = ["value", "ci_low", "ci_high"]
    result[numbers] = result[numbers].astype(float).round(DECIMALS)
    files.write_csv(out, result)
    files.write_meta(out, options, captions=[*map(str, captions)], matches=[*map(str, matches)], clusters=[*map(str, clusters)], people=[*map(str, people)])
