"""What every result can do: a line, a table, rows that reports take, and a figure where there is one."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

import probe
from probe.data import make_split
from probe.display import Result, ResultTable
from probe.rows import Row

LINE = 420
FEW = {"layers": [0, 4, 7]}
# What is asked of the original, the retrained model, the split of a few rows, four forget rows and the testbed.
RESULTS = {
    "separability": lambda o, r, split, few, bed: probe.separability(o, split, layers=[4], repeats=1),
    "ridge_probes": lambda o, r, split, few, bed: probe.ridge_probes(o, split, shuffles=2),
    "clusters": lambda o, r, split, few, bed: probe.clusters(o, split),
    "similarity": lambda o, r, split, few, bed: probe.similarity(o, r, split),
    "spread": lambda o, r, split, few, bed: probe.spread(o, few),
    "depth_score": lambda o, r, split, few, bed: probe.depth_score(o, r, few, retrained=r, layers=[4, 7]),
    "localisation": lambda o, r, split, few, bed: probe.localisation(o, r, few, layers=[4, 7]),
    "layer_map": lambda o, r, split, few, bed: probe.layer_map(o, r, split, **FEW),
    "replacement_map": lambda o, r, split, few, bed: probe.replacement_map(o, r, split, spans=probe.every_span(8)),
    "screened": lambda o, r, split, few, bed: probe.screened(o, r, few),
    "g_effect": lambda o, r, split, few, bed: probe.g_effect(o, probe.ga, few, over=few),
    "token_effects": lambda o, r, split, few, bed: probe.token_effects(o, few, {"forget": (probe.nll, few)}),
    "sample_effects": lambda o, r, split, few, bed: probe.sample_effects(o, probe.ga, split),
    "logit_collapse": lambda o, r, split, few, bed: probe.logit_collapse(o, few),
    "both sides": lambda o, r, split, few, bed: probe.logit_collapse(o, split),
    "logit_lens": lambda o, r, split, few, bed: probe.logit_lens(o, few),
    "tuned_lens": lambda o, r, split, few, bed: probe.fit_tuned_lens(o, few, **FEW),
    "squeezing": lambda o, r, split, few, bed: probe.squeezing(o, split),
    "weight_change": lambda o, r, split, few, bed: probe.weight_change(o, r, split, n_gradients=1),
    "representation_pca": lambda o, r, split, few, bed: probe.representation_pca(o, split, layers=[4]),
    "spurious_unlearning": lambda o, r, split, few, bed: probe.spurious_unlearning(
        o, split.forget_rows[:2], tokenizer=bed.tokenizer, max_new_tokens=4
    ),
    "relearn": lambda o, r, split, few, bed: probe.relearn(
        o, facts(split, bed), steps=1, lr=1e-4, batch_size=4, retrained=r
    ),
    "mix_back": lambda o, r, split, few, bed: probe.mix_back(r, facts(split, bed), alphas=[0.5], original=o),
    "quantise": lambda o, r, split, few, bed: probe.quantise(o, facts(split, bed), retrained=r),
    "prompted": lambda o, r, split, few, bed: probe.prompted(o, facts(split, bed), probe.JAILBREAKS[:1], retrained=r),
}
WITHOUT_FIGURE = {"token_effects", "sample_effects", "spurious_unlearning", "quantise", "prompted"}


def facts(split, bed):
    return probe.divided(bed.tokenizer, split.forget_rows[:6], by="group", choices=False)


@pytest.fixture(scope="module")
def split(bed):
    return make_split(bed.tokenizer, bed.split.forget_rows[::10], bed.split.retain_rows[:900:90])


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_is_a_line_a_table_rows_and_a_figure(bed, split, name):
    result = RESULTS[name](bed.original, bed.retrained, split, split.forget.select(range(4)), bed)
    assert isinstance(result, Result)
    assert len(repr(result)) <= LINE
    assert "tensor(" not in repr(result)
    assert isinstance(result.table(), ResultTable)
    assert str(result)
    rows = result.rows("NPO")
    assert rows
    assert all(isinstance(row, Row) for row in rows)
    assert {row.intervention for row in rows} <= {"NPO", "original", "retrained"}
    json.dumps([asdict(row) for row in rows], allow_nan=False)
    if name in WITHOUT_FIGURE:
        with pytest.raises(ValueError, match=r"no figure of a .*\.rows\(name\)"):
            result.plot()
    else:
        assert isinstance(result.plot("NPO"), Figure)
    page = result._repr_html_()
    assert "<table>" in page
    assert ("data:image/svg+xml" in page) == (name not in WITHOUT_FIGURE)


def test_facts_of_rows_that_are_groups_of_their_own_are_divided_by_groups(bed, split):
    study = SimpleNamespace(tokenizer=bed.tokenizer, split=split, original=bed.original, retrained=None)
    found = probe.attacks.facts_of(study)
    assert (len(found.shown), len(found.held)) == (5, 5)
    with pytest.raises(ValueError, match="pass original="):
        probe.mix_back(bed.original, found)
    with pytest.raises(ValueError, match="pass data="):
        probe.finetune(bed.original, found, steps=1, lr=1e-4, batch_size=4)
    with pytest.raises(ValueError, match="no SAE to set features of"):
        probe.reactivate(bed.original, study, n_features=[1])


def test_splits_batches_and_histories_are_short(bed):
    assert repr(bed.split) == "Split(100 forget and 900 retain rows)"
    assert repr(bed.split.forget.select(range(3))).startswith("Batch(3 rows of at most")
    found = probe.train.History(("nll", "kl"), ((2.0, 1.0), (1.0, 0.5)))
    assert repr(found) == "History(names=('nll', 'kl'), losses=[2 entries], stopped=None)"
    assert [row.value for row in found.rows("GA")] == [2.0, 1.0, 1.0, 0.5]
    assert isinstance(found.plot(), Figure)
