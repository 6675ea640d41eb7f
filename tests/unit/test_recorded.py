"""Of every system the largest recorded run stands beside a new one."""

from tuneleak import files
from tuneleak.report import recorded

CLAIMS = "id,family,system,value,status\na,f,finextract,{0},inconclusive\nb,g,dp-ldm,{0},not-run\n"


def put(reference, preset, *systems, value="0.1"):
    for system in systems:
        files.write_text(reference / preset / system / "metrics.csv", "system\n")
        files.write_json(reference / preset / system / "run.meta.json", {"rules": {f"of {system}": {"seconds": 1}, "shared": {"from": system}}})
    files.write_text(reference / preset / "claims.csv", CLAIMS.format(value))


def test_nothing_recorded(tmp_path):
    assert recorded.preset_of(tmp_path, "finextract") == "" and recorded.metrics_of(tmp_path, "finextract") is None
    assert recorded.systems(tmp_path) == {} and recorded.claims(tmp_path) is None and recorded.costs(tmp_path) is None
    assert recorded.described(tmp_path) == ""


def test_the_full_run_of_a_system_comes_first_and_others_fall_back(tmp_path):
    put(tmp_path, "embedded", "finextract", "dp-ldm")
    assert recorded.described(tmp_path) == "embedded" and set(recorded.claims(tmp_path).preset) == {"embedded"}
    put(tmp_path, "full", "dp-ldm", value="0.9")
    assert recorded.systems(tmp_path) == {"dp-ldm": "full", "finextract": "embedded"}
    assert recorded.metrics_of(tmp_path, "dp-ldm") == tmp_path / "full/dp-ldm/metrics.csv"
    table = recorded.claims(tmp_path).set_index("system")
    assert table.preset.to_dict() == {"dp-ldm": "full", "finextract": "embedded"} and table.value.to_dict() == {"dp-ldm": "0.9", "finextract": "0.1"}
    assert recorded.described(tmp_path) == "full (dp-ldm); embedded (finextract)"


def test_costs_are_the_largest_presets_and_within_one_the_latest_runs(tmp_path):
    put(tmp_path, "embedded", "finextract", "shake-to-leak")
    put(tmp_path, "full", "dp-ldm")
    assert recorded.costs(tmp_path)["shared"] == {"from": "dp-ldm"}
    for system, finished in (("finextract", "2026-02-02"), ("shake-to-leak", "2026-01-01")):
        path = tmp_path / "embedded" / system / "run.meta.json"
        files.write_json(path, files.read_json(path) | {"finished": finished})
    assert recorded.rules(tmp_path, "embedded")["shared"] == {"from": "finextract"} and recorded.costs(tmp_path)["of finextract"] == {"seconds": 1}


def test_a_part_recorded_again_tells_its_own_rules_and_hides_no_jobs_that_all_share(tmp_path):
    reference = tmp_path / "paper/reference"
    put(reference, "embedded", "finextract", "dp-ldm")
    files.write_text(tmp_path / "workflow/rules/privacy.smk", "rule private:\n    input: 1\n\n\nrule sample:\n    input: 1\n")
    ran = {
        "finextract": ("2026-01-01", {"render": {"jobs": 9}, "private": {"jobs": 2, "seconds": 5}, "sample": {"jobs": 6}, "old": {"jobs": 1}}),
        "dp-ldm": ("2026-01-02", {"render": {"jobs": 1}, "private": {"jobs": 2, "seconds": 7}, "sample": {"jobs": 4}}),
    }
    for system, (finished, rules) in ran.items():
        files.write_json(reference / "embedded" / system / "run.meta.json", {"finished": finished, "rules": rules})
    told = {"render": {"jobs": 9}, "private": {"jobs": 2, "seconds": 7}, "sample": {"jobs": 4}, "old": {"jobs": 1}}
    assert recorded.rules(reference, "embedded") == told


def test_costs_are_of_all_recorded_runs(tmp_path):
    put(tmp_path, "embedded", "finextract", "dp-ldm")
    assert recorded.costs(tmp_path) == {"of dp-ldm": {"seconds": 1}, "of finextract": {"seconds": 1}, "shared": {"from": "finextract"}}
