"""`probe layers` and `probe g-effect`: on the testbed, on stories260K and TOFU, and every mistake in one line."""

import json
import re

import pytest
import torch

from probe.checkpoints import load_model, load_tokenizer, save_model, weights_hash
from probe.cli import main
from probe.data import encode, make_split
from probe.datasets import read_rows, write_rows
from probe.diagnostics.g_effect import g_effect, token_g_effects
from probe.figures.folder import origin
from probe.metrics.memorisation import answer_stats
from probe.objectives.named import NAMES, read_objective, reference_for
from probe.objectives.sequence import NPO
from probe.objectives.token import WGA, ga, nll
from probe.rows import load
from probe.weights import blended, layers

N = 3


@pytest.fixture(scope="module")
def places(bed, tmp_path_factory):
    """The testbed's two models as a user's folders, and a few rows."""
    folder = tmp_path_factory.mktemp("lenses")
    save_model(bed.original, folder / "original", tokenizer=bed.tokenizer)
    save_model(bed.retrained, folder / "other", tokenizer=bed.tokenizer)
    write_rows(folder / "forget.jsonl", bed.split.forget_rows[:N])
    write_rows(folder / "retain.jsonl", bed.split.retain_rows[:N])
    return folder


def own(places):
    return ["--forget", str(places / "forget.jsonl"), "--retain", str(places / "retain.jsonl")]


def two(places):
    return ["--original", str(places / "original"), "--unlearned", str(places / "other"), *own(places)]


def value(rows, **wanted):
    found = [r for r in rows if all(getattr(r, k) == v for k, v in wanted.items())]
    assert len(found) == 1, wanted
    return found[0].value


def test_r21_layers_of_two_models_are_those_of_blended(bed, places, tmp_path, capsys):
    out = tmp_path / "out"
    main(["layers", *two(places), "--spans", "all", "--parts", "block", "mlp", "--screening", "--out", str(out)])
    printed = capsys.readouterr().out
    rows = load(out / "rows.jsonl")
    forget = encode(bed.tokenizer, bed.split.forget_rows[:N])
    with blended(bed.original, bed.retrained, layers([2, 3], 8)):
        expected = float(answer_stats(bed.original, forget).probability_N.mean())
    quantity = "probability, block into original"
    assert value(rows, on="forget", quantity=quantity, layer=2, item=3) == pytest.approx(expected, abs=1e-6)
    assert len([r for r in rows if r.quantity == quantity and r.on == "forget"]) == 36
    whole = value(rows, on="forget", quantity="probability, none into unlearned", layer=None)
    assert whole == pytest.approx(float(answer_stats(bed.retrained, forget).probability_N.mean()), abs=1e-6)
    assert f"{expected:.4f}" in next(
        line for line in printed.splitlines() if line.startswith("block 2..3 into original")
    )
    # A guess never stands without its rank correlation.
    assert len(re.findall(r"from one gradient: layers .*Spearman [+-]\d\.\d\d", printed)) == 2
    assert -1 <= value(rows, diagnostic="screening", quantity="rank correlation", on="retain") <= 1
    drawn = {p.stem for p in (out / "figures").glob("*.pdf")}
    assert drawn == {"spans", "growing", "parts", "u_shape"}
    # Figures name the rows they are drawn from, not the folder that a run happens to write to.
    written = [json.loads(path.read_text())["metadata"] for path in (out / "figures").glob("*.json")]
    assert written == [origin(out)] * len(drawn)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["weights"] == {"original": weights_hash(bed.original), "other": weights_hash(bed.retrained)}
    assert manifest["data"]["forget"]["rows"] == N
    assert manifest["settings"]["spans"] == "all"
    assert manifest["block_calls"]["run"] < manifest["block_calls"]["whole forwards would take"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_layers_of_the_testbed_say_how_it_was_unlearned(bed, tmp_path, capsys):
    before = weights_hash(bed.original)
    out = tmp_path / "out"
    main(["layers", "--limit", str(N), "--spans", "cumulative", "--into", "unlearned", "original", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "a few steps of GradDiff (steps 40, lr 0.0003" in printed
    assert f"only the first {N} rows of each side" in printed
    assert {p.stem for p in (out / "figures").glob("*.pdf")} == {"growing"}
    rows = [r for r in load(out / "rows.jsonl") if r.quantity == "loss, block into unlearned" and r.on == "retain"]
    assert {(r.layer, r.item) for r in rows} == {(0, j) for j in range(8)} | {(i, 7) for i in range(8)}
    assert weights_hash(bed.original) == before


def test_effects_are_those_of_the_library(bed, places, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["--unlearned", str(places / "other"), "--original", str(places / "original"), *own(places), "--tokens"]
    main(
        [
            "g-effect",
            *flags,
            "--objective",
            "ga",
            "npo:beta=0.1",
            "wga:beta=1",
            "--retain-objective",
            "kl",
            "nll",
            "--out",
            str(out),
        ]
    )
    printed = capsys.readouterr().out
    rows = load(out / "rows.jsonl")
    split = make_split(bed.tokenizer, bed.split.forget_rows[:N], bed.split.retain_rows[:N])
    expected = {
        "ga": g_effect(bed.retrained, ga, split.forget, over=split.retain),
        "npo:beta=0.1": g_effect(bed.retrained, NPO(bed.original, beta=0.1), split.forget, over=split.retain),
        "wga:beta=1": g_effect(bed.retrained, WGA(beta=1.0), split.forget, over=split.retain),
        "nll on retain rows": g_effect(bed.retrained, nll, split.retain, over=split.retain),
    }
    for name, effect in expected.items():
        of = {"intervention": name, "on": "retain"}
        assert value(rows, **of, quantity="total") == pytest.approx(effect.total, rel=1e-4)
        assert value(rows, **of, quantity="cosine") == pytest.approx(effect.cosine, rel=1e-4)
        assert value(rows, **of, quantity="effect", layer=5) == pytest.approx(float(effect.layer_L[5]), rel=1e-3)
        mlp = float(effect.part_L("mlp")[5])
        assert value(rows, **of, quantity="effect of mlp", layer=5) == pytest.approx(mlp, rel=1e-3)
        assert name in printed
    assert "kl on retain rows" in printed
    lines = [json.loads(line) for line in (out / "tokens.jsonl").read_text().splitlines()]
    pg_BT = token_g_effects(bed.retrained, split.forget, over=split.retain)
    assert len(lines) == int(split.forget.target_BT[:, 1:].sum())
    for line in lines:
        assert line["retain"] == pytest.approx(float(pg_BT[line["row"], line["position"]]), rel=1e-3, abs=1e-7)
    first = "".join(line["token"] for line in lines if line["row"] == 0)
    assert bed.split.forget_rows[0].answer in first
    page = (out / "tokens.html").read_text()
    assert page.count("rise of the") == 2
    assert (out / "figures" / "g_effect.pdf").is_file()
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["kernels switched"] == ["attention: sdpa, its math kernel"]
    assert set(manifest["weights"]) == {"other", "original"}


def test_both_lenses_on_stories(shared, tmp_path, capsys):
    base = shared / "models" / "stories260K"
    tokenizer = load_tokenizer(base)
    other = load_model(base)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in other.model.layers.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.02)
    save_model(other, tmp_path / "other", tokenizer=tokenizer)
    rows = read_rows(shared / "data" / "tofu" / "forget01_perturbed.json")
    write_rows(tmp_path / "f.jsonl", rows[:2])
    write_rows(tmp_path / "r.jsonl", rows[20:22])
    data = ["--forget", str(tmp_path / "f.jsonl"), "--retain", str(tmp_path / "r.jsonl"), "--max-length", "400"]
    main(["layers", "--original", str(base), "--unlearned", str(tmp_path / "other"), *data, "--parts", "attention",
          "--out", str(tmp_path / "layers")])  # fmt: skip
    assert "attention 4 into original" in capsys.readouterr().out
    main(["g-effect", "--original", str(base), *data, "--objective", "ga", "simnpo:beta=2.5", "--tokens",
          "--out", str(tmp_path / "effects")])  # fmt: skip
    found = load(tmp_path / "effects" / "rows.jsonl")
    # What raises the forget loss fastest is its own gradient.
    assert value(found, intervention="ga", on="forget", quantity="cosine") == pytest.approx(-1.0, abs=1e-5)
    # The head is tied to the embeddings here: one group.
    total = value(found, intervention="ga", on="forget", quantity="total")
    groups = [r.value for r in found if r.intervention == "ga" and r.on == "forget" and r.quantity[:9] == "effect of"]
    assert sum(groups) == pytest.approx(total, rel=1e-5)
    assert any(r.quantity == "effect of embedding and head" for r in found)


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_can_be_named(name, bed):
    text = {
        "wtnpo": "wtnpo:beta=4,alpha=1.5",
        "sat_imp": "sat_imp:beta1=5,beta2=1",
        **{n: f"{n}:beta=0.5" for n in ("wga", "tnpo", "npo", "batch_npo", "simnpo", "batch_simnpo")},
    }.get(name, name)
    named = read_objective(text)
    batch = bed.split.forget.select(range(2))
    objective = named.made(reference_for([named], bed.original, batch))
    with torch.no_grad():
        assert torch.isfinite(objective(bed.original, batch))


MISTAKES = {
    "g-effect --objective npo --out {tmp}/x": r"npo needs beta \(published: 0\.1\); write npo:beta=NUMBER",
    "g-effect --objective gaa --out {tmp}/x": r"no objective 'gaa'; did you mean ga\?",
    "g-effect --objective ga:beta=1 --out {tmp}/x": r"'beta=1' in 'ga:beta=1' is no key=value of ga; it has none",
    "g-effect --objective npo:b=1 --out {tmp}/x": r"no key=value of npo; it has beta",
    "g-effect --objective npo:beta=much --out {tmp}/x": r"'much' in 'npo:beta=much' cannot be read",
    "g-effect --objective npo:beta=-1 --limit 2 --out {tmp}/x": r"beta must be above 0, got -1",
    "g-effect --objective ga ga --out {tmp}/x": r"takes each objective once",
    "g-effect --objective ga --retain-objective kl --limit 2 --out {tmp}/x": r"zero at that model; give --unlearned",
    "g-effect --objective ga --original {tmp}/original --out {tmp}/x": r"--forget, --retain missing",
    "g-effect --objective ga --model {tmp}/original --out {tmp}/x": r"--model of `probe g-effect` is now --unlearned",
    "layers --rows 2 --out {tmp}/x": r"--rows of `probe layers` is now --limit",
    "g-effect --objective ga --out {tmp}": r"exists and is not empty",
    "g-effect --objective ga --limit 0 --out {tmp}/x": r"--limit must be a whole number from 1",
    "layers --original {tmp}/original {rows} --out {tmp}/x": r"--unlearned missing",
    "layers --original {tmp}/original --unlearned {tmp}/original {rows} --out {tmp}/x": r"are identical",
    "layers --original {tmp}/original --unlearned {tmp}/none {rows} --out {tmp}/x": r"none",
    "layers --limit 2 --device cuda:9 --out {tmp}/x": r"device 'cuda:9' cannot be used here",
    "layers --parts --out {tmp}/x": r"--parts needs at least one value",
}


@pytest.mark.parametrize("said", MISTAKES)
def test_mistakes_are_said_in_one_line_and_leave_nothing(said, places, capsys):
    before = {p.name for p in places.iterdir()}
    words = said.format(tmp=places, rows=" ".join(own(places))).split()
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("probe: ")
    assert re.search(MISTAKES[said], error)
    assert {p.name for p in places.iterdir()} == before
