"""Which features matter: activity and rules against hand counts and scikit-learn, effects against autograd."""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import random_batch, tiny_gpt2, tiny_llama
from planted import ANSWERS, concept
from planted import WIDTH as WIDTH_OF
from scipy.stats import chi2_contingency, spearmanr
from sklearn.metrics import roc_auc_score

from probe.data import Batch
from probe.dictionaries.autoencoder import Autoencoder
from probe.dictionaries.coding import JumpRelu, Linear, Relu, TopKCoding
from probe.dictionaries.dictionary import delta
from probe.features import activity as activity_module
from probe.features import effects as effects_module
from probe.features.ablation import ByAblation, exact_ablation, greedy_selection
from probe.features.accounting import account
from probe.features.activity import Activity, Side, observe
from probe.features.attribution import ByEffect, attribute, integrated
from probe.features.output_score import lens_tokens, output_scores
from probe.features.ranking import matched_features, rank, rank_features
from probe.features.rules import (
    Auroc,
    ChiSquared,
    Crisp,
    CrispRaw,
    Frequency,
    FrequencyRatio,
    MeanDifference,
    MeanSquareRatio,
    Saeuron,
    SquaredMeanRatio,
)
from probe.features.separation import Values
from probe.features.trials import trials
from probe.hooks import captured, edited, our_hooks
from probe.interventions.suppression import Suppress
from probe.interventions.targets import Multiply, Zero
from probe.objectives.distribution import KLToUniform
from probe.objectives.token import GA, nll
from probe.positions import At, NotIds
from probe.sites import Site

WIDTH, FEATURES, SPECIAL = 16, 40, (1, 2)
NO = -math.inf


def made(kind: str = "relu", *, seed: int = 0, dtype: torch.dtype = torch.float32, **more) -> Autoencoder:
    """A random dictionary of each way to encode."""
    generator = torch.Generator().manual_seed(seed)
    encoder_DF, rows_FD = (
        torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((WIDTH, FEATURES), (FEATURES, WIDTH))
    )
    bias_F = torch.randn(FEATURES, generator=generator, dtype=dtype) * 0.05
    zero_D = torch.zeros(WIDTH, dtype=dtype)
    code = {
        "relu": Relu(bias_F),
        "jumprelu": JumpRelu(bias_F, torch.full((FEATURES,), 0.1, dtype=dtype)),
        "topk": TopKCoding(bias_F, 5),
        "abstopk": TopKCoding(bias_F, 5, signed=True),
    }[kind]
    return Autoencoder(Linear(encoder_DF, zero_D, code), rows_FD, zero_D, **more)


def keep(batch: Batch) -> torch.Tensor:
    return batch.attention_BT & ~torch.isin(batch.tokens_BT, torch.tensor(SPECIAL))


def states(model, batch: Batch, site: Site) -> torch.Tensor:
    with torch.no_grad(), captured(model, [site]) as found:
        model(**batch.inputs)
    return found[site]


def sides() -> tuple[Batch, Batch]:
    return random_batch(0, rows=6), random_batch(1, rows=7)


def side(**given) -> Side:
    """A corpus of one block, counts per feature."""
    tokens, rows = given.pop("tokens"), given.pop("rows", 1.0)
    n = len(next(iter(given.values())))
    columns = {
        name: torch.tensor([given.get(name, [0.0] * n)]).double() for name in ("on", "total", "square", "rows_on")
    }
    one = torch.ones(1, dtype=torch.float64)
    return Side(one * tokens, one * rows, columns["on"], columns["total"], columns["square"], columns["rows_on"], one)


# --- activity ---


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk", "abstopk"])
def test_counts_are_those_of_whole_matrices_at_every_site(kind, monkeypatch):
    model, (forget, retain) = tiny_llama(), sides()
    given = {Site(0): made(kind), Site(2): made(kind, seed=1), Site(1, "mlp"): made(kind, seed=2)}
    whole = observe(model, given, forget, retain, special_ids=SPECIAL)
    monkeypatch.setattr(activity_module, "_ENTRIES", 17 * FEATURES)
    found = observe(model, given, forget, retain, special_ids=SPECIAL, batch_size=2, values=True)
    for site, sae in given.items():
        for batch, one in ((forget, found[site].forget), (retain, found[site].retain)):
            f_BTF = sae.encode(states(model, batch, site))
            on_BTF = sae.active(f_BTF) & keep(batch)[..., None]
            assert one.tokens == int(keep(batch).sum())
            assert one.rows == len(batch)
            assert torch.equal(one.active_F, on_BTF.sum((0, 1)).double())
            assert torch.equal(one.active_rows_F, on_BTF.any(1).sum(0).double())
            kept_BTF = torch.where(on_BTF, f_BTF, 0.0).double()
            torch.testing.assert_close(one.sum_F, kept_BTF.sum((0, 1)), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(
                one.mean_square_F, kept_BTF.square().sum((0, 1)) / one.tokens, rtol=1e-5, atol=1e-5
            )
        torch.testing.assert_close(found[site].forget.sum_GF, whole[site].forget.sum_GF, rtol=1e-5, atol=1e-5)
    assert not our_hooks(model)


def test_groups_are_joined_beyond_sixty_four():
    batch = random_batch(0, rows=70)
    model = tiny_llama()
    found = observe(model, {Site(1): made()}, batch, random_batch(1), special_ids=())[Site(1)]
    assert found.blocks == (64, 4)
    assert found.forget.rows_G.tolist() == [2.0] * 6 + [1.0] * 58


def test_areas_are_those_of_scikit_learn():
    model, (forget, retain) = tiny_llama(), sides()
    for kind in ("topk", "abstopk", "jumprelu"):
        sae = made(kind)
        found = observe(model, {Site(1): sae}, forget, retain, special_ids=SPECIAL, values=True)[Site(1)]
        tokens, rows, label_N, label_R = [], [], [], []
        for batch, label in ((forget, 1), (retain, 0)):
            f_BTF = sae.encode(states(model, batch, Site(1)))
            f_BTF = torch.where(sae.active(f_BTF), f_BTF, 0.0)
            tokens.append(f_BTF[keep(batch)])
            hidden_BTF = f_BTF.masked_fill(~keep(batch)[..., None] | (f_BTF == 0), -math.inf)
            rows.append(hidden_BTF.amax(1).masked_fill((hidden_BTF == -math.inf).all(1), 0.0))
            label_N += [label] * len(tokens[-1])
            label_R += [label] * len(rows[-1])
        for values, score_XF, label_X in (
            (found.by_token, torch.cat(tokens), label_N),
            (found.by_row, torch.cat(rows), label_R),
        ):
            unit = "token" if values is found.by_token else "row"
            counts = [getattr(s, f"{unit}s_G") for s in (found.forget, found.retain)]
            area_F = values.auroc_F(*counts, found.forget.weight_G, found.retain.weight_G)
            expected = [roc_auc_score(label_X, score_XF[:, j].numpy()) for j in range(FEATURES)]
            np.testing.assert_allclose(area_F.numpy(), expected, atol=1e-12)
            score_F = Auroc(unit)(found)
            assert [j for j in range(FEATURES) if score_F[j] > NO] == [
                j for j in range(FEATURES) if expected[j] > 0.5 and found.fires_F[j]
            ]


def test_weighted_areas_are_those_of_repeated_blocks():
    generator = torch.Generator().manual_seed(0)
    n, blocks = 60, 3
    value = {s: torch.randint(0, 4, (n, 2), generator=generator).float() for s in ("forget", "retain")}
    block = {s: torch.randint(0, blocks, (n,), generator=generator) for s in value}
    weight = {"forget": torch.tensor([2.0, 0.0, 1.0]), "retain": torch.tensor([0.0, 3.0, 1.0])}

    def entries(name):
        token_M, feature_M = value[name].nonzero(as_tuple=True)
        return feature_M.int(), value[name][token_M, feature_M], block[name][token_M].to(torch.int16)

    found = Values.of([entries("forget")], [entries("retain")], 2)
    counts = [torch.bincount(block[s], minlength=blocks).double() for s in value]
    area_F = found.auroc_F(*counts, weight["forget"].double(), weight["retain"].double())
    repeated = {s: torch.repeat_interleave(value[s], weight[s][block[s]].long(), 0) for s in value}
    label = [1] * len(repeated["forget"]) + [0] * len(repeated["retain"])
    both = torch.cat([repeated["forget"], repeated["retain"]])
    expected = [roc_auc_score(label, both[:, j].numpy()) for j in range(2)]
    np.testing.assert_allclose(area_F.numpy(), expected, atol=1e-12)
    assert Values.of([], [], 3).auroc_F(*counts, *counts).tolist() == [0.5] * 3


def test_chi_squared_is_scipys():
    found = Activity(
        side(tokens=50.0, rows=8.0, on=[30.0, 5.0, 0.0, 50.0], rows_on=[7.0, 3.0, 0.0, 8.0]),
        side(tokens=80.0, rows=9.0, on=[10.0, 40.0, 0.0, 80.0], rows_on=[2.0, 2.0, 0.0, 9.0]),
    )
    for unit, n, on in (
        ("token", (50, 80), [(30, 10), (5, 40)]),
        ("row", (8, 9), [(7, 2), (3, 2)]),
    ):
        score_F = ChiSquared(unit)(found)
        for j, (a, b) in enumerate(on):
            table = [[a, n[0] - a], [b, n[1] - b]]
            expected = chi2_contingency(table, correction=False).statistic
            assert score_F[j].item() == pytest.approx(expected if a / n[0] > b / n[1] else NO)
        # Never and always on tell nothing.
        assert score_F[2:].tolist() == [NO, NO]


# --- rules ---


def test_rules_by_hand():
    found = Activity(
        side(tokens=10.0, on=[5.0, 2.0, 0.0, 9.0], total=[10.0, 30.0, 0.0, 40.0], square=[20.0, 450.0, 0.0, 200.0]),
        side(tokens=200.0, on=[0.0, 1.0, 0.0, 100.0], total=[0.0, 20.0, 0.0, 1000.0], square=[0.0, 400.0, 0.0, 6000.0]),
    )

    def scores(rule):
        return rule(found).tolist()

    assert scores(Frequency(0.01)) == pytest.approx([0.5, 0.2, NO, NO])
    assert scores(Frequency(0.001)) == pytest.approx([0.5, NO, NO, NO])
    assert scores(Frequency(1.0)) == pytest.approx([0.5, 0.2, NO, 0.9])
    assert scores(FrequencyRatio(0.1)) == pytest.approx([0.5 / 0.0025, 0.2 / 0.005, NO, 0.9 / 0.5])
    assert scores(FrequencyRatio(0.3)) == pytest.approx([0.5 / 0.0025, NO, NO, 0.9 / 0.5])
    assert scores(MeanDifference()) == pytest.approx([1.0, 2.9, NO, NO])
    # Squares of means 1, 9, 0, 16; ratios 1e21, 900, 0, 0.64; the silent feature is the weakest and goes first.
    assert scores(SquaredMeanRatio(40.0)) == pytest.approx([1.0, 9.0, NO, NO])
    # Means of squares 2, 45, 20; ratios 2e21, 22.5, 0.67.
    assert scores(MeanSquareRatio(40.0)) == pytest.approx([NO, 45.0, NO, NO])
    assert scores(MeanSquareRatio(0.0)) == pytest.approx([NO, 45.0, NO, 20.0])
    # Rates differ by 0.5, 0.195, 0, 0.4; means' ratios 1e8, 30, 0, 0.8.
    assert scores(Crisp(4)) == pytest.approx([0.5, 0.195, NO, NO])
    assert scores(Crisp(1)) == pytest.approx([0.5, NO, NO, NO])
    assert scores(Crisp(4, tau=31.0)) == pytest.approx([0.5, NO, NO, NO])
    # Counts differ by 5, 1, 0, -91; sums' ratios with 1 added 10, 30 / 21, 0, 40 / 1001.
    assert scores(CrispRaw(1)) == pytest.approx([5.0, NO, NO, NO])
    assert scores(CrispRaw(1, tau=1.4)) == pytest.approx([5.0, 1.0, NO, NO])
    assert scores(CrispRaw(1, tau=0.03)) == pytest.approx([5.0, 1.0, NO, -91.0])
    share = [1 / 8, 3 / 8 - 0.1 / 5.1, 0.0, 4 / 8 - 5 / 5.1]
    assert scores(Saeuron(50.0)) == pytest.approx([share[0], share[1], NO, NO])
    assert scores(Saeuron(99.0)) == pytest.approx([NO, share[1], NO, NO])


def random_activity(n_features: int) -> Activity:
    """A third of the features never fire; the others' rates and strengths are log-normal, apart on both sides."""
    drawn = np.random.default_rng(0)
    made_sides = []
    for tokens in (200.0, 300.0):
        rate = np.minimum(drawn.lognormal(-4, 1.5, n_features), 0.9) * (np.arange(n_features) % 3 > 0)
        on = np.rint(rate * tokens)
        total = on * drawn.lognormal(0, 1, n_features)
        made_sides.append(side(tokens=tokens, on=on.tolist(), total=total.tolist()))
    return Activity(*made_sides)


def test_p12_the_released_rule_of_dsg_takes_its_percentiles_over_all_features():
    found = random_activity(600)
    forget, retain = (s.mean_F.square().numpy() for s in (found.forget, found.retain))
    ratio = forget / (retain + 1e-21)
    judged = (forget >= np.percentile(forget, 5)) & (ratio >= np.percentile(ratio, 95.0))
    order = [j for j in np.argsort(-forget, kind="stable") if judged[j]]
    table = rank(SquaredMeanRatio(95.0), found, Site(1))
    assert list(table.order) == order
    assert len(order) == 30
    # The paper's own form leaves out what never fires before it counts.
    fires = int((forget > 0).sum())
    assert rank(MeanSquareRatio(95.0), found, Site(1)).available < 0.06 * fires


def test_p13_the_released_rule_of_crisp_looks_at_ten_times_as_many_and_asks_for_no_surplus():
    found, k = random_activity(600), 10
    more = (found.forget.active_F - found.retain.active_F).numpy()
    ratio = (found.forget.sum_F / (found.retain.sum_F + 1)).numpy()
    candidates = np.argsort(-more, kind="stable")[: 10 * k]
    kept = [j for j in candidates if ratio[j] >= 3.0]
    assert list(rank(CrispRaw(k), found, Site(1)).order) == kept
    assert rank(Crisp(k), found, Site(1)).available <= k < len(kept)


def test_settings_out_of_range_are_refused():
    for bad in (0.0, 1.5):
        with pytest.raises(ValueError, match="share of tokens"):
            Frequency(bad)
        with pytest.raises(ValueError, match="share of tokens"):
            FrequencyRatio(bad)
    for rule in (SquaredMeanRatio, MeanSquareRatio, Saeuron):
        with pytest.raises(ValueError, match="percentile"):
            rule(100.0)
    for bad in ({"candidates": 0}, {"candidates": 3, "tau": 0.0}, {"candidates": 3, "epsilon": 0.0}):
        with pytest.raises(ValueError, match="CRISP"):
            Crisp(**bad)
    one = side(tokens=3.0, on=[1.0])
    with pytest.raises(ValueError, match="values=True"):
        Auroc("token")(Activity(one, one))


def test_a_forget_set_in_which_nothing_fires_is_refused_with_numbers():
    model, (forget, retain) = tiny_llama(), sides()
    silent = made("jumprelu")
    code = JumpRelu(silent.encoder.activation.bias_F, torch.full((FEATURES,), 1e9))
    silent = Autoencoder(
        Linear(silent.encoder.encoder_DF, torch.zeros(WIDTH), code), silent.directions_FD, torch.zeros(WIDTH)
    )
    n = int(keep(forget).sum())
    with pytest.raises(ValueError, match=rf"none of the 40 features is on at any of {n} forget tokens of 6 rows"):
        rank_features(model, silent, Site(1), forget, retain, rule=MeanDifference(), special_ids=SPECIAL)
    given = observe(model, {Site(1): made("topk")}, forget, retain, special_ids=SPECIAL)[Site(1)]
    quiet = (~given.fires_F).nonzero().flatten().tolist()
    with pytest.raises(ValueError, match=f"none of the {len(quiet)} candidate features"):
        rank(MeanDifference(), given, Site(1), candidates=quiet)
    with pytest.raises(ValueError, match="no token of the 6 forget rows"):
        observe(model, {Site(1): made()}, forget, retain, special_ids=range(48))
    with pytest.raises(ValueError, match="no dictionary"):
        observe(model, {}, forget, retain, special_ids=())


def test_a_table_says_how_stable_its_first_features_are():
    model, (forget, retain) = tiny_llama(), sides()
    given = observe(model, {Site(1): made("topk")}, forget, retain, special_ids=SPECIAL, values=True)[Site(1)]
    for rule in (MeanDifference(), Auroc("token"), ChiSquared("row"), Crisp(30), MeanSquareRatio(50.0)):
        table = rank(rule, given, Site(1), stable_at=(3, 1000), resamples=20)
        assert table.rule == repr(rule)
        assert table.role == "detect"
        assert table.available == len(table.order) == int((table.score_F > NO).sum())
        assert list(table.score_F[list(table.order)]) == sorted(table.score_F[list(table.order)], reverse=True)
        three, every = table.stability
        assert three.n == min(3, table.available)
        assert every.n == table.available
        assert 0 <= three.low <= three.overlap <= three.high <= 1
        assert three.blocks == (6, 7)
        assert rank(rule, given, Site(1), stable_at=(3,), resamples=20).stability == (three,)
    # Rows that are all alike cannot change the order.
    same, other = (b.select([0] * 4) for b in (forget, retain))
    alike = [Batch(b.tokens_BT, b.target_BT, b.attention_BT, torch.arange(4), b.prompt_B) for b in (same, other)]
    table = rank_features(model, made("topk"), Site(1), *alike, rule=MeanDifference(), special_ids=(), stable_at=(4,))
    assert (table.stability[0].low, table.stability[0].overlap) == (1.0, 1.0)
    one = Batch(same.tokens_BT, same.target_BT, same.attention_BT, torch.zeros(4).long(), same.prompt_B)
    with pytest.raises(ValueError, match="single group"):
        rank_features(model, made(), Site(1), one, retain, rule=MeanDifference(), special_ids=(), stable_at=(4,))
    allowed = table.order[1:3]
    only = rank(MeanDifference(), given, Site(1), candidates=allowed)
    assert set(only.order) <= set(allowed)


def test_f32_random_controls_fire_as_often_as_the_chosen_are_none_of_them_and_come_in_several_draws():
    found = random_activity(600)
    rate_F, table = found.forget.rate_F, rank(Frequency(0.05), found, Site(1))
    chosen = table.order[20:60]
    draws = [matched_features(table.rate_F, chosen, seed=seed) for seed in range(3)]
    on_F = rate_F > 0
    for drawn in draws:
        assert len(set(drawn)) == 40
        assert not set(drawn) & set(chosen)
        assert bool(on_F[list(drawn)].all())
        assert float(rate_F[list(drawn)].mean() / rate_F[list(chosen)].mean()) == pytest.approx(1, abs=0.15)
    # Drawn without regard to rates they fire half as often.
    assert float(rate_F[on_F].mean() / rate_F[list(chosen)].mean()) < 0.6
    assert draws[0] == matched_features(table.rate_F, chosen, seed=0)
    assert len(set(draws)) == 3
    few_F = torch.zeros(9)
    few_F[:5] = 0.1
    assert set(matched_features(few_F, (0, 1, 2), seed=0)) == {3, 4}
    with pytest.raises(ValueError, match="no feature but the 5 chosen ones is ever active"):
        matched_features(few_F, range(5), seed=0)


# --- attribution ---


def spliced(model, sae, batch: Batch, site: Site, objective=nll, to: Site | None = None) -> torch.Tensor:
    """-f dL/df with the dictionary in the graph and its error held constant."""
    h_BTD, out_BTE = states(model, batch, site), states(model, batch, to or site)
    f_BTF = sae.encode(h_BTD).detach().requires_grad_()
    error_BTE = (out_BTE - sae.decode(f_BTF, h_BTD)).detach()

    def splice(x_BTE):
        return torch.where(keep(batch)[..., None], sae.decode(f_BTF, h_BTD) + error_BTE, x_BTE)

    with edited(model, {to or site: splice}):
        value = objective(model, batch)
    (g_BTF,) = torch.autograd.grad(value, f_BTF)
    return (-f_BTF * g_BTF)[keep(batch)].detach().double()


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk", "abstopk", "layer_norm"])
def test_effects_equal_the_spliced_model_with_its_error_held(kind, monkeypatch):
    model, (forget, retain) = tiny_llama(), sides()
    more = {"normaliser": "layer_norm"} if kind == "layer_norm" else {}
    kind = "jumprelu" if more else kind
    given = {site: made(kind, seed=i, **more) for i, site in enumerate((Site(0), Site(2), Site(1, "mlp")))}
    flags = [p.requires_grad for p in model.parameters()]
    found = {}
    for dense in (0.0, 1.0):
        monkeypatch.setattr(effects_module, "_DENSE", dense)
        found[dense] = attribute(model, given, forget, retain, objective=nll, special_ids=SPECIAL)
    for site, sae in given.items():
        for batch, one, other in (
            (forget, found[0.0][site].forget, found[1.0][site].forget),
            (retain, found[0.0][site].retain, found[1.0][site].retain),
        ):
            a_NF = spliced(model, sae, batch, site)
            tolerance = {"rtol": 1e-5, "atol": 1e-5 * float(a_NF.abs().sum(0).max())}
            for effects in (one, other):
                torch.testing.assert_close(effects.total("signed"), a_NF.sum(0), **tolerance)
                torch.testing.assert_close(effects.total("positive"), a_NF.clamp(min=0).sum(0), **tolerance)
                torch.testing.assert_close(effects.total("absolute"), a_NF.abs().sum(0), **tolerance)
                torch.testing.assert_close(effects.total("l2"), a_NF.square().sum(0).sqrt(), **tolerance)
                assert effects.value == pytest.approx(float(nll(model, batch).detach()), abs=1e-6)
            assert torch.equal(one.active_GF, other.active_GF)
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())
    assert not our_hooks(model)


def test_effects_do_not_depend_on_chunks_and_follow_any_objective():
    model, (forget, retain) = tiny_llama(), sides()
    given = {Site(1): made("topk")}
    for objective in (nll, GA(2.0)):
        whole, cut = (
            attribute(model, given, forget, retain, objective=objective, special_ids=SPECIAL, batch_size=batch_size)[
                Site(1)
            ]
            for batch_size in (32, 2)
        )
        torch.testing.assert_close(whole.forget.positive_GF, cut.forget.positive_GF, rtol=1e-4, atol=1e-7)
        a_NF = spliced(model, given[Site(1)], forget, Site(1), objective)
        torch.testing.assert_close(whole.forget.total("signed"), a_NF.sum(0), rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match="does not depend"):
        attribute(model, given, forget, retain, objective=lambda m, b: torch.zeros(()), special_ids=())
    with pytest.raises(ValueError, match="no token of the 6 forget rows"):
        attribute(model, given, forget, retain, objective=nll, special_ids=range(48))


def test_a_transcoder_is_credited_where_it_writes():
    model, (forget, retain) = tiny_gpt2(), sides()
    double = {"dtype": torch.float64, "skip_DE": torch.eye(WIDTH).double() * 0.3}
    sae = made("jumprelu", transcodes=True, **double)
    site, to = Site(1, "mlp", "in"), Site(1, "mlp")
    found = attribute(
        model, {site: sae}, forget, retain, objective=nll, special_ids=SPECIAL, writes={site: to}, error=True
    )[site]
    a_NF = spliced(model, sae, forget, site, to=to)
    torch.testing.assert_close(found.forget.total("signed"), a_NF.sum(0), rtol=1e-9, atol=1e-12)
    h_BTD, out_BTD = (states(model, forget, s) for s in (site, to))
    given = account(model, sae, site, forget, retain, objective=nll, special_ids=SPECIAL, writes=to)
    with edited(model, {to: lambda x: torch.where(keep(forget)[..., None], sae.decode(sae.encode(h_BTD), h_BTD), x)}):
        assert given.forget.reconstruction_only == pytest.approx(float(nll(model, forget).detach()), abs=1e-5)
    left_BTD = out_BTD - delta(sae, sae.encode(h_BTD), h_BTD)
    with edited(model, {to: lambda x: torch.where(keep(forget)[..., None], left_BTD, x)}):
        assert given.forget.error_only == pytest.approx(float(nll(model, forget).detach()), abs=1e-5)
    with pytest.raises(ValueError, match="transcoder; say in writes"):
        attribute(model, {site: sae}, forget, retain, objective=nll, special_ids=())
    with pytest.raises(ValueError, match="transcoder"):
        trials(model, sae, site, forget, (0,), objective=nll, special_ids=())


def test_effects_are_derivatives_and_integrated_ones_add_up():
    model, (forget, retain) = tiny_gpt2(), sides()
    sae, site = made("topk", dtype=torch.float64), Site(1)
    given = {"objective": nll, "special_ids": SPECIAL}
    found = attribute(model, {site: sae}, forget, retain, **given)[site]

    def value(factor: float, ids: tuple[int, ...]) -> float:
        with torch.no_grad(), edited(model, {site: At(Suppress(sae, ids, Multiply(factor)), NotIds(SPECIAL))}):
            return float(nll(model, forget))

    step = 1e-5
    for j in found.fires_F.nonzero().flatten().tolist()[:6]:
        slope = (value(1 - step, (j,)) - value(1 + step, (j,))) / (2 * step)
        assert found.forget.total("signed")[j].item() == pytest.approx(slope, rel=1e-5, abs=1e-9)
    summed = integrated(model, {site: sae}, forget, retain, **given, steps=60)[site].forget.total("signed").sum()
    assert float(summed) == pytest.approx(value(0.0, tuple(range(FEATURES))) - value(1.0, ()), rel=2e-2)
    with pytest.raises(ValueError, match="at least one step"):
        integrated(model, {site: sae}, forget, retain, **given, steps=0)


# --- ablation ---


@pytest.mark.parametrize("site", [Site(1), Site(1, side="in"), Site(2), Site(0, "mlp"), Site(1, "attention")])
def test_resumed_trials_equal_whole_forwards(site):
    model, (forget, retain) = tiny_llama(), sides()
    for kind in ("jumprelu", "topk"):
        sae, ids = made(kind), (0, 3, 7, 11)
        given = {"objective": nll, "special_ids": SPECIAL, "batch_size": 2}
        found = exact_ablation(model, sae, site, forget, retain, ids, **given)
        assert not found.why
        tried = trials(model, sae, site, forget, ids, **given)
        edits = [(Suppress(sae, (j,), Zero()), float(found.forget_K[i])) for i, j in enumerate(ids)]
        several = Suppress(sae, ids, Multiply(-2.0))
        for edit, change in [*edits, (several, tried.value(several) - tried.plain)]:
            with torch.no_grad():
                plain = float(nll(model, forget))
                with edited(model, {site: At(edit, NotIds(SPECIAL))}):
                    assert change == pytest.approx(float(nll(model, forget)) - plain, abs=2e-6)
    assert not our_hooks(model)


def test_what_cannot_be_resumed_runs_whole_forwards_and_says_so():
    model, forget = tiny_llama(), sides()[0]
    sae, site = made("topk"), Site(1)
    for where, objective, why in (
        (site, KLToUniform(), "not only log-probabilities"),
        (Site(0, "embedding"), nll, "outside the blocks"),
    ):
        with pytest.warns(UserWarning, match="runs the whole model"):
            tried = trials(model, sae, where, forget, (1, 2), objective=objective, special_ids=SPECIAL)
        assert why in tried.why
        assert not tried.resumed
        edit = Suppress(sae, (1, 2), Multiply(-3.0))
        with torch.no_grad(), edited(model, {where: At(edit, NotIds(SPECIAL))}):
            expected = float(objective(model, forget))
        assert tried.value(edit) == pytest.approx(expected, abs=1e-5)


def test_ablations_make_a_table_and_greedy_selection_keeps_its_budget():
    model, (forget, retain) = tiny_llama(), sides()
    sae, site = made("topk"), Site(1)
    ids = tuple(range(12))
    given = {"objective": nll, "special_ids": SPECIAL, "batch_size": 2}
    found = exact_ablation(model, sae, site, forget, retain, ids, **given)
    table = rank(ByAblation(), found, site, stable_at=(2,), resamples=10)
    assert table.role == "edit"
    assert set(table.order) <= set(ids)
    assert table.score_F.shape == (FEATURES,)
    best = max(ids, key=lambda j: float((found.forget_K - found.retain_K)[ids.index(j)]))
    assert table.order[0] == best
    tried = [trials(model, sae, site, batch, ids, **given) for batch in (forget, retain)]

    def edit_of(chosen):
        return Suppress(sae, chosen, Multiply(-3.0))

    free = greedy_selection(*tried, edit_of=edit_of, size=3, budget=1e9)
    single = [tried[0].value(edit_of((j,))) for j in ids]
    assert free.features[0] == ids[int(np.argmax(single))]
    assert list(free.forget) == sorted(free.forget)
    pairs = {j: tried[0].value(edit_of((free.features[0], j))) for j in ids if j != free.features[0]}
    assert free.features[1] == max(pairs, key=lambda j: pairs[j])
    tight = greedy_selection(*tried, edit_of=edit_of, size=12, budget=1e-3)
    assert all(value - tight.plain[1] <= 1e-3 for value in tight.retain)
    assert not set(tight.over_budget) & set(tight.features)
    assert tight.reason in ("nothing fits the budget", "nothing gains", "size reached")
    for bad in ({"size": 0, "budget": 1.0}, {"size": 1, "budget": -1.0}):
        with pytest.raises(ValueError, match="size must be 1"):
            greedy_selection(*tried, edit_of=edit_of, **bad)
    with pytest.raises(ValueError, match="different candidates"):
        greedy_selection(tried[0], trials(model, sae, site, retain, (1,), **given), edit_of=edit_of, size=1, budget=1.0)


# --- a concept known exactly ---


@pytest.fixture(scope="module")
def known():
    return concept()


@pytest.mark.parametrize("layer", range(4))
def test_the_planted_atom_comes_first_and_its_removal_is_local(known, layer):
    site = Site(layer)
    given = {"objective": nll, "special_ids": SPECIAL}
    assert known.answer_probability(known.forget).mean() == pytest.approx(0.96, abs=0.015)
    found = attribute(known.model, {site: known.oracle}, known.forget, known.retain, **given)[site]
    for aggregate, against in itertools.product(("positive", "signed"), ("retain", "ratio", "nothing")):
        assert rank(ByEffect(aggregate, against), found, site).order[0] == 0
    with torch.no_grad():
        before = known.model(**known.retain.inputs).logits
        with edited(known.model, {site: Suppress(known.oracle, (0,), Zero())}):
            after = known.model(**known.retain.inputs).logits
            assert known.answer_probability(known.forget).mean() == pytest.approx(0.04, abs=0.015)
    assert (after - before).abs().max() <= 1e-5


def test_rules_find_the_planted_atom(known):
    given = observe(known.model, {Site(1): known.oracle}, known.forget, known.retain, special_ids=SPECIAL, values=True)
    for rule in (Frequency(0.001), MeanSquareRatio(), SquaredMeanRatio(), CrispRaw(30), Saeuron(99.0), Auroc("row")):
        assert rank(rule, given[Site(1)], Site(1)).order[0] == 0
    assert rank(Frequency(0.001), given[Site(1)], Site(1)).available == 1


def test_the_error_share_rises_as_predicted_when_atoms_are_left_out(known):
    site, whole = Site(1), known.oracle
    given = {"objective": nll, "special_ids": SPECIAL}
    full = account(known.model, whole, site, known.forget, known.retain, **given)
    assert full.forget.outside.value < 1e-5
    assert full.ceiling == pytest.approx(1.0, abs=1e-5)
    assert full.forget.reconstruction_only == pytest.approx(full.forget.plain, abs=1e-5)
    a_NF = spliced(known.model, whole, known.forget, site)
    # Atoms come in pairs of opposite signs: leave out every second pair, the planted one once among them, once not.
    for start in (0, 1):
        pair_F = torch.arange(whole.n_features) % WIDTH_OF
        kept_F = pair_F % 2 != start
        rows_FD, encoder = whole.directions_FD[kept_F], whole.encoder
        code = Linear(encoder.encoder_DF[:, kept_F], encoder.shift_D, encoder.activation.of(kept_F.nonzero()[:, 0]))
        half = Autoencoder(code, rows_FD, whole.bias_E)
        found = account(known.model, half, site, known.forget, known.retain, **given)
        error = a_NF[:, ~kept_F].sum(1).clamp(min=0).sum()
        inside = a_NF[:, kept_F].clamp(min=0).sum()
        assert found.forget.outside.value == pytest.approx(float(error / (error + inside)), rel=1e-3)
        assert found.forget.outside.low <= found.forget.outside.value <= found.forget.outside.high
        assert found.forget.outside.value > 0.1
        with edited(known.model, {site: At(lambda h, s=half: h - s.decode(s.encode(h)), NotIds(SPECIAL))}):
            assert found.forget.error_only == pytest.approx(float(nll(known.model, known.forget)), abs=1e-5)
        if start == 0:
            # The concept lies outside: removing every feature leaves its answers more likely than the full oracle does.
            assert found.most < full.most


def test_the_output_score_tells_atoms_that_write_from_atoms_that_do_not(known):
    tokens, _ = lens_tokens(known.model, known.oracle, (0, 5), len(ANSWERS))
    assert set(tokens[0].tolist()) == set(ANSWERS)
    scores = output_scores(
        known.model, known.oracle, Site(1), known.retain, range(0, 128, 8), dose=3.0, tokens=8, special_ids=SPECIAL
    )
    assert scores.features[int(scores.score_K.argmax())] == 0
    assert scores.features[int(scores.rise_K.argmax())] == 0
    given = attribute(
        known.model, {Site(1): known.oracle}, known.forget, known.retain, objective=nll, special_ids=SPECIAL
    )[Site(1)]
    table = rank(ByEffect(), given, Site(1))
    kept = scores.filtered(table, float(scores.score_K.max()))
    assert kept.order == (0,)
    assert kept.role == "edit"
    with pytest.raises(ValueError, match="dose above 0"):
        output_scores(known.model, known.oracle, Site(1), known.retain, (0,), dose=-1.0, tokens=8, special_ids=SPECIAL)


# --- the testbed ---


@pytest.mark.slow
def test_the_positive_part_follows_exact_ablation_on_the_testbed(bed):
    forget = bed.split.forget
    retain = bed.split.retain.select(range(0, len(bed.split.retain), 100))
    given = {"objective": nll, "special_ids": bed.tokenizer.all_special_ids}
    site = bed.sae_site
    effects = attribute(bed.original, {site: bed.sae}, forget, retain, **given)[site]
    on_K = effects.fires_F.nonzero().flatten()
    ids = on_K[torch.randperm(len(on_K), generator=torch.Generator().manual_seed(0))[:100]].tolist()
    found = exact_ablation(bed.original, bed.sae, site, forget, retain, ids, **given, batch_size=10)
    assert not found.why
    costs = found.forget_K > 0

    def correlation(aggregate, chosen):
        return spearmanr(effects.forget.total(aggregate)[ids][chosen], found.forget_K[chosen]).statistic

    every = torch.ones_like(costs)
    assert correlation("positive", every) > 0.7
    # Removing a quarter of these features lowers the loss, which a positive part cannot say.
    assert correlation("positive", costs) >= 0.8
    for other in ("signed", "absolute", "l2"):
        assert correlation("positive", every) > correlation(other, every)
