"""Tables that were edited, cut or mixed up between one verb and the next, and the project's own files of half-finished work."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tuneleak.errors import InputError
from tuneleak.report.rows import COLUMNS, MATCH_COLUMNS

HEADER = ",".join(COLUMNS)
ROW = "finextract,identities,H1,lora,cfg,,w=3,AS,0.5,0.4,0.6,24,0"
METRICS = {
    "empty": ("", "cannot be read as a UTF-8 CSV"),
    "binary": (bytes(range(256)), "cannot be read as a UTF-8 CSV"),
    "columns-missing": ("system,world\nfinextract,identities\n", "lacks the columns"),
    "not-a-number": (f"{HEADER}\n{ROW.replace('0.5', 'half')}\n", "is no number"),
    "twice": (f"{HEADER}\n{ROW}\n{ROW}\n", "describe the same thing"),
    "unknown-qualifier": (f"{HEADER}\n{ROW.replace('w=3', 'w=3; colour=red')}\n", "unknown qualifier"),
    "unclosed-quote": (f'{HEADER}\n"{ROW}\n', "cannot be read as a UTF-8 CSV|is no number|lacks|no row"),
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics(name, refused, tmp_path):
    text, says = METRICS[name]
    (tmp_path / "metrics.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused("verify", "--metrics", tmp_path / "metrics.csv", "--reference", "paper/reference/embedded", "--out", tmp_path / "out.csv", says=says)


def test_tables_to_join_must_be_metrics(refused, tmp_path):
    for name, text, says in (("a", "x,y\n1,2\n", "must have"), ("b", "", "cannot be read"), ("c", f"{HEADER}\n{ROW}\n{ROW}\n", "same number")):
        (tmp_path / f"{name}.csv").write_text(text)
        refused("join-metrics", "--metrics", tmp_path / f"{name}.csv", "--out", tmp_path / "out.csv", says=says)
    refused("join-metrics", "--metrics", tmp_path / "nowhere.csv", "--out", tmp_path / "out.csv", says="no such file")


MATCHES = [*MATCH_COLUMNS, "oracle", "random", "heldout", "n_extracted", "threshold"]
SCORES = {
    ("finextract", "--matches"): ("", "a,b\n1,2\n", ",".join(MATCHES) + "\n", ",".join(MATCHES) + "\n" + ",".join("x" for _ in MATCHES) + "\n"),
    ("lora-weights", "--scores"): ("", "a,b\n1,2\n", b"\xff\xfe\x00"),
    ("shake-to-leak", "--scores"): ("", "a,b\n1,2\n", b"\xff\xfe\x00"),
    ("dp-ldm", "--utility"): ("", "a,b\n1,2\n", b"\xff\xfe\x00"),
}


@pytest.mark.parametrize(("system", "flag", "text"), [(*key, text) for key, texts in SCORES.items() for text in texts])
def test_scores(system, flag, text, refused, tmp_path):
    (tmp_path / "scores.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    world = ["--world", "named"] if system == "shake-to-leak" else []
    says = "cannot be read as a UTF-8 CSV|lacks the columns|there is no row|not a number"
    refused("evaluate", system, flag, tmp_path / "scores.csv", *world, "--out", tmp_path / "out.csv", says=says)
    refused("evaluate", system, flag, tmp_path / "nowhere.csv", *world, "--out", tmp_path / "out.csv", says="no such file")


@pytest.mark.parametrize("tau", ["[]", "{}", '{"world": "a"}', '{"world": "a", "tau": "high"}', '{"world": "a", "tau": NaN}', '{"world": 3, "tau": 1}', "{"])
def test_thresholds(tau, refused, tmp_path):
    values = {"n_extracted": "1", "threshold": "0.5", "seed": "0", "extracted": "0.5", "oracle": "0.5", "random": "0.5", "heldout": "0.5", "world": "b"}
    (tmp_path / "matches.csv").write_text(",".join(MATCHES) + "\n" + ",".join(values.get(name, name) for name in MATCHES) + "\n")
    (tmp_path / "tau.json").write_text(tau)
    argv = ["--matches", tmp_path / "matches.csv", "--tau", tmp_path / "tau.json", "--out", tmp_path / "out.csv"]
    refused("evaluate", "finextract", *argv, says="tau.json")


CLAIMS = {
    "empty": (b"", "is not valid"),
    "not-yaml": (b"claims: [", "not valid YAML"),
    "python-object": (b'claims: !!python/object/apply:os.system ["touch trace"]', "not valid YAML"),
    "not-utf8": (b"\xff\xfe", "not valid YAML"),
    "other-keys": (b"colour: red", "colour: Extra inputs"),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_claims(name, refused, tmp_path, monkeypatch):
    data, says = CLAIMS[name]
    (tmp_path / "claims.yaml").write_bytes(data)
    (tmp_path / "metrics.csv").write_text(f"{HEADER}\n{ROW}\n")
    monkeypatch.chdir(tmp_path)
    refused("claims", "--metrics", "metrics.csv", "--claims", "claims.yaml", "--preset", "smoke", "--out", "out.csv", says=says)


IMAGES = {
    "no-manifest": (None, "not an image set"),
    "empty": (b"", "cannot be read as a UTF-8 CSV"),
    "other-columns": (b"a,b\n1,2\n", "lacks the columns"),
    "climbs-out": (b"image_id,file,concept,split,fold,caption,sha256\na,../a.png,c,tune,train,x,\nb,../a.png,c,tune,heldout,x,\n", "outside that folder"),
    "not-there": (b"image_id,file,concept,split,fold,caption,sha256\na,a.png,c,tune,train,x,\nb,b.png,c,tune,heldout,x,\n", "not a readable PNG"),
    "not-a-picture": (b"image_id,file,concept,split,fold,caption,sha256\na,t.png,c,tune,train,x,\nb,t.png,c,tune,heldout,x,\n", "not a readable PNG"),
    "twice": (b"image_id,file,concept,split,fold,caption,sha256\na,t.png,c,tune,train,x,\na,t.png,c,tune,heldout,x,\n", "occurs twice"),
    "no-concept": (b"image_id,file,concept,split,fold,caption,sha256\n", "slice"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_image_sets(name, refused, tmp_path):
    data, says = IMAGES[name]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "t.png").write_text("words")
    if data is not None:
        (tmp_path / "set" / "manifest.csv").write_bytes(data)
    argv = ["--images", tmp_path / "set", "--copy-score", "resources/embedders/copy-b", "--n-images", 4, "--out", tmp_path / "tau.json"]
    refused("calibrate", *argv, says=says)


# --- half-finished work ----------------------------------------------------------------------------------------------------------------

GOOD = {name: torch.zeros(3) for name in ("weights", "exp_avg", "exp_avg_sq")} | {
    "optimizer_step": torch.tensor(2.0), "losses": torch.zeros(4), "generator": torch.Generator().get_state(),
}  # fmt: skip
CHECKPOINTS = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:50]), "not a readable safetensors"),
    "gone": (lambda path: path.unlink(), "not a readable safetensors"),
    "of-another-model": (lambda path: save_file(GOOD | {"weights": torch.zeros(5)}, path), "no checkpoint of this fine-tune"),
    "lacks-a-part": (lambda path: save_file({"weights": torch.zeros(3)}, path), "no checkpoint of this fine-tune"),
    "note-not-json": (lambda path: path.with_name("m.json").write_text("{"), "not valid JSON"),
    "note-a-list": (lambda path: path.with_name("m.json").write_text("[]"), "must hold a JSON object"),
    "note-points-out": (lambda path: path.with_name("m.json").write_text(json.dumps({"step": 2, "file": "../x.safetensors"})), "outside that folder"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(name, tmp_path):
    """A fine-tune goes on from its checkpoint or says which folder to remove; it never starts from half of one."""
    from tuneleak.finetune import checkpoint

    change, says = CHECKPOINTS[name]
    save_file(GOOD, tmp_path / "m-000002.safetensors")
    (tmp_path / "m.json").write_text(json.dumps({"step": 2, "file": "m-000002.safetensors"}))
    vector = torch.ones(3, requires_grad=True)
    state = (vector, torch.optim.AdamW([vector]), torch.Generator(), torch.zeros(4))
    assert checkpoint.load(tmp_path, "m", *state) == 2 and not vector.any()
    with torch.no_grad():
        vector.fill_(1.0)
    change(tmp_path / "m-000002.safetensors")
    with pytest.raises(InputError, match=says):
        checkpoint.load(tmp_path, "m", *state)
    assert vector.eq(1).all()


def trainings():
    """{kind: (module, save(folder), load(folder), file that holds the tensors)} of the other trainings that go on from a checkpoint."""
    from types import SimpleNamespace

    from tuneleak.attacks.weights import checkpoint
    from tuneleak.models import train_first_stage, training
    from tuneleak.models.optimizer import MuonAdamW
    from tuneleak.privacy import state
    from tuneleak.privacy.accounting import Ledger

    def stepped(optimizer, module):
        module(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        return optimizer

    module = torch.nn.Linear(4, 4)
    muon, adam = stepped(MuonAdamW(module, 1e-3, 1e-3, 0.0), module), stepped(torch.optim.AdamW(module.parameters()), module)
    base = {
        "save": lambda folder: training._save(folder / "x", 1, module, muon, {"weight": module.weight.detach()}, []),
        "load": lambda folder: training._resume(folder / "x", module, muon, {"weight": torch.zeros(4, 4)}),
    }
    encoder = {
        "save": lambda folder: checkpoint.save(folder, 1, module, adam, [], [0.0] * checkpoint.TERMS),
        "load": lambda folder: checkpoint.load(folder, module, adam),
    }
    trainer = train_first_stage._Trainer.__new__(train_first_stage._Trainer)
    trainer.first_stage = trainer.discriminator = module
    trainer.optimizers, trainer.done, trainer.rows, trainer.started = [adam, adam], 1, [], 0.0
    vector = torch.zeros(3, requires_grad=True)
    vector.grad = torch.ones(3)
    private = SimpleNamespace(vector=vector, optimizer=torch.optim.AdamW([vector]), average=torch.zeros(3), ledger=Ledger(), log=[], step_number=1)
    private.optimizer.step()
    privately = {"save": lambda folder: state.save(folder, "m", private), "load": lambda folder: state.load(folder, "m", private)}
    return {"base": base, "encoder": encoder, "first-stage": {"save": trainer.save, "load": trainer.resume}, "private": privately}


@pytest.mark.parametrize("held", [{}, {"weights": torch.zeros(2)}, "misshapen"], ids=["nothing", "another", "misshapen"])
@pytest.mark.parametrize("kind", ["base", "encoder", "first-stage", "private"])
def test_checkpoints_of_other_trainings(kind, held, tmp_path):
    """Readable but of something else: every training says which folder or file to remove."""
    training = trainings()[kind]
    training["save"](tmp_path)
    training["load"](tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    if held == "misshapen":
        with safe_open(path, "pt") as handle:
            held, note = {name: torch.zeros(2, 7) for name in handle.keys()}, handle.metadata()  # noqa: SIM118
    else:
        note = None
    save_file(held, path, metadata=note)
    with pytest.raises(InputError, match="no checkpoint of this training; remove"):
        training["load"](tmp_path)
