"""TARF, the classifier's methods beside it, the scenarios they are told apart on, and the attack that judges them."""

import copy

import numpy as np
import pytest
import torch
from conftest import random_batch, tiny_gpt2

from analyses.shared import paired
from analyses.tarf.claims import AGAIN, CONVENTIONAL, POINTS, claims, gap, judged
from analyses.tarf.digits import MEASURES, METHODS
from analyses.tarf.language import case
from probe.data import Batch, Split
from probe.figures.scenarios import scenario_figure, scenario_table
from probe.figures.style import new_figure
from probe.methods.classwise import (
    RandomLabels,
    fine_tune,
    l1_norm,
    l1_sparse,
    saliency_mask,
    salun,
    scrub,
    scrub_terms,
)
from probe.methods.tarf import Annealing, TopGroups, TopShare, phases, row_losses, tarf
from probe.metrics.intervals import Interval
from probe.metrics.membership import called_unseen
from probe.objectives.token import nll
from probe.rows import Row
from probe.testbed.digits import (
    Classifier,
    ClassifierTraining,
    Images,
    Scenario,
    load_images,
    predictions,
    retrained,
    scenarios,
    trained_classifier,
)
from probe.train import Term, minimise

TRAINING = {"lr": 1e-3, "batch_size": 4, "seed": 3}


def split() -> Split:
    return Split(random_batch(0), random_batch(1, rows=8))


def same(model, other) -> bool:
    return all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def value(objective, model, batch) -> float:
    with torch.no_grad():
        return objective(model, batch).item()


# --- TARF ---


def test_forgetting_is_annealed_linearly_to_zero():
    annealing = Annealing(2.0, 3, 8)
    assert annealing.weight(0) == 2.0
    assert annealing.weight(4) == 1.0
    assert annealing.weight(8) == annealing.weight(100) == 0.0
    assert Annealing(2.0, 0, 0).weight(0) == 0.0


def test_the_three_phases_cover_every_step_once():
    found = phases(Annealing(1.0, 3, 8), 20)
    assert [(p.name, p.start, p.stop) for p in found] == [
        ("forget", 0, 3),
        ("forget and retain", 3, 8),
        ("retain", 8, 20),
    ]
    assert [p.name for p in phases(Annealing(1.0, 8, 8), 8)] == ["forget"]
    assert [p.name for p in phases(Annealing(1.0, 0, 4), 4)] == ["forget and retain"]


@pytest.mark.parametrize("settings", [(-1.0, 1, 2), (1.0, 3, 2), (1.0, -1, 2), (float("nan"), 1, 2)])
def test_annealing_that_cannot_be_is_refused(settings):
    with pytest.raises(ValueError, match="k0"):
        Annealing(*settings)


def test_fewer_steps_than_the_annealing_are_refused():
    with pytest.raises(ValueError, match="t0 = 8"):
        phases(Annealing(1.0, 3, 8), 7)


@pytest.mark.parametrize("annealing", [Annealing(0.0, 0, 0), Annealing(0.0, 2, 5), Annealing(1.0, 0, 0)])
def test_no_annealed_forgetting_is_plain_fine_tuning(annealing):
    model, other = tiny_gpt2(), tiny_gpt2()
    result = tarf(model, split(), annealing=annealing, select=TopShare(0.5), steps=6, **TRAINING)
    fine_tune(other, split(), steps=6, **TRAINING)
    assert same(model, other)
    assert not result.dropped_N.any()


def test_the_first_phase_is_ascent_on_the_listed_rows_alone():
    model, other = tiny_gpt2(), tiny_gpt2()
    annealing = Annealing(1.0, 1, 1)
    tarf(model, split(), annealing=annealing, select=TopShare(0.0), steps=1, **TRAINING)
    elsewhere = Split(random_batch(0), random_batch(7, rows=3))
    tarf(other, elsewhere, annealing=annealing, select=TopShare(0.0), steps=1, **TRAINING)
    assert same(model, other)
    assert value(nll, model, split().forget) > value(nll, tiny_gpt2(), split().forget)


def test_the_second_phase_weighs_the_terms_as_the_formula_does():
    """One step of phase II against the gradient of k (-CE) + kept share * CE over kept rows, by autograd."""
    model, by_hand = tiny_gpt2(), tiny_gpt2()
    both, k0 = split(), 0.7
    tarf(
        model,
        both,
        annealing=Annealing(k0, 0, 1),
        select=TopShare(0.0),
        steps=1,
        clip=None,
        **TRAINING | {"batch_size": 8},
    )
    loss = -k0 * nll(by_hand, both.forget) + nll(by_hand, both.retain)
    optimiser = torch.optim.AdamW(by_hand.parameters(), lr=1e-3, weight_decay=0.0)
    loss.backward()
    optimiser.step()
    for p, q in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)


def test_what_rose_most_is_no_longer_retained():
    model, both = tiny_gpt2(), split()
    result = tarf(model, both, annealing=Annealing(1.0, 3, 5), select=TopShare(0.25), steps=8, **TRAINING)
    assert result.dropped_N.sum() == 2
    assert result.rise_N[result.dropped_N].min() >= result.rise_N[~result.dropped_N].max()
    assert [h.names for h in result.histories] == [("forget",), ("forget", "retain"), ("retain",)]
    assert [len(h.losses) for h in result.histories] == [3, 2, 3]


def test_the_rise_is_that_of_the_first_phase():
    both, model = split(), tiny_gpt2()
    result = tarf(model, both, annealing=Annealing(1.0, 3, 3), select=TopShare(0.0), steps=3, **TRAINING)
    torch.testing.assert_close(result.rise_N, row_losses(model, both.retain) - row_losses(tiny_gpt2(), both.retain))


def test_dropped_rows_have_no_say():
    """A phase III on half of the rows is fine-tuning on that half: AdamW takes no notice of the share as a factor."""
    both = split()
    half = torch.arange(8) < 4
    model = tiny_gpt2()
    tarf(model, both, annealing=Annealing(1e-3, 1, 1), select=lambda rise, group: half, steps=5, clip=None, **TRAINING)
    other, start = tiny_gpt2(), Annealing(1e-3, 1, 1)
    tarf(other, both, annealing=start, select=TopShare(0.0), steps=1, clip=None, **TRAINING)
    kept = Term(0.5, nll, both.retain.select(range(4, 8)), "retain")
    minimise(other, [kept], steps=4, clip=None, **TRAINING | {"seed": TRAINING["seed"] + 1})
    assert same(model, other)


def test_a_selection_of_everything_is_refused():
    everything = lambda rise, group: torch.ones(len(rise), dtype=torch.bool)  # noqa: E731
    with pytest.raises(ValueError, match="all 8 remaining rows"):
        tarf(tiny_gpt2(), split(), annealing=Annealing(1.0, 1, 2), select=everything, steps=3, **TRAINING)


def test_row_losses_are_those_of_the_objective():
    model, batch = tiny_gpt2(), random_batch(4, rows=5)
    one_by_one = [value(nll, model, batch.select([i])) for i in range(5)]
    torch.testing.assert_close(row_losses(model, batch, batch_size=2).double(), torch.tensor(one_by_one).double())


def test_selections_take_shares_and_whole_groups():
    rise_N = torch.tensor([0.0, 3.0, 1.0, 2.0, 5.0, 0.5])
    group_N = torch.tensor([7, 7, 2, 2, 9, 9])
    assert TopShare(0.5)(rise_N, group_N).tolist() == [False, True, False, True, True, False]
    assert TopGroups(1)(rise_N, group_N).tolist() == [False] * 4 + [True] * 2
    assert not TopGroups(0)(rise_N, group_N).any()
    with pytest.raises(ValueError, match="none of the 3 groups"):
        TopGroups(3)(rise_N, group_N)
    with pytest.raises(ValueError, match="share"):
        TopShare(1.0)


# --- the methods beside it ---


def test_random_labels_replace_targets_only():
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, input_ids, **inputs):
            seen.append(input_ids)
            return tiny_gpt2()(input_ids=input_ids, **inputs)

    batch = random_batch(0)
    RandomLabels(torch.tensor([40, 41]), torch.Generator().manual_seed(0))(Spy(), batch)
    assert torch.equal(seen[0][~batch.target_BT], batch.tokens_BT[~batch.target_BT])
    assert set(seen[0][batch.target_BT].tolist()) == {40, 41}


def test_random_labels_cost_least_at_the_uniform_answer():
    """Over all classes the expected loss is the cross-entropy to the uniform distribution, ln K at its least."""
    scenario = scenarios()[0]
    batch = scenario.batch(Images(torch.randint(0, 17, (400, 64)), torch.arange(400) % 10))
    model = Classifier(8, 10)
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    drawn = RandomLabels(torch.arange(10), torch.Generator().manual_seed(0))
    assert value(drawn, model, batch) == pytest.approx(np.log(10), abs=1e-5)


def test_l1_sparse_shrinks_the_norm_more_than_fine_tuning():
    sparse, plain = tiny_gpt2(), tiny_gpt2()
    before = value(l1_norm, sparse, random_batch())
    assert before == pytest.approx(sum(p.abs().sum().item() for p in sparse.parameters()))
    l1_sparse(sparse, split(), alpha=1e-2, steps=20, **TRAINING)
    fine_tune(plain, split(), steps=20, **TRAINING)
    assert value(l1_norm, sparse, random_batch()) < min(before, value(l1_norm, plain, random_batch()))


def test_l1_sparse_without_its_norm_is_fine_tuning():
    sparse, plain = tiny_gpt2(), tiny_gpt2()
    l1_sparse(sparse, split(), alpha=0.0, steps=4, **TRAINING)
    fine_tune(plain, split(), steps=4, **TRAINING)
    assert all(torch.allclose(p, q, atol=1e-12) for p, q in zip(sparse.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_salun_moves_its_share_of_the_weights_and_no_other(share):
    model, original = tiny_gpt2(), tiny_gpt2()
    mask = salun(model, split(), labels_K=torch.arange(3, 48), share=share, steps=5, **TRAINING)
    total = sum(m.numel() for m in mask.values())
    assert sum(int(m.sum()) for m in mask.values()) == round(share * total)
    moved = 0
    for name, before in original.named_parameters():
        after = dict(model.named_parameters())[name]
        assert torch.equal(after[~mask[name]], before[~mask[name]])
        moved += int((after != before).sum())
    assert moved > 0.5 * round(share * total)


def test_f11_saliency_is_computed_where_the_model_is(monkeypatch):
    """The meta device stands for a GPU: where the rows are sent tells."""
    sent = []
    monkeypatch.setattr(Batch, "to", lambda self, device: sent.append((self, str(device))) or self)
    monkeypatch.setattr("probe.methods.classwise.ga", lambda model, batch: 1 / 0)  # nothing can be computed there
    model, forget = tiny_gpt2().to("meta"), split().forget
    with pytest.raises(ZeroDivisionError):
        saliency_mask(model, forget, 0.3)
    assert [(rows is forget, where) for rows, where in sent] == [(True, "meta")]


def test_salun_keeps_the_weights_with_the_largest_gradients():
    model = tiny_gpt2()
    mask = saliency_mask(model, split().forget, 0.2)
    nll(model, split().forget).backward()
    size = {name: torch.zeros_like(p) if p.grad is None else p.grad.abs() for name, p in model.named_parameters()}
    inside = torch.cat([size[name][mask[name]] for name in mask])
    outside = torch.cat([size[name][~mask[name]] for name in mask])
    assert inside.min() >= outside.max()


def test_salun_refuses_what_would_move_every_weight():
    with pytest.raises(ValueError, match="weight_decay"):
        salun(tiny_gpt2(), split(), labels_K=torch.arange(9), share=0.5, steps=1, weight_decay=0.1, **TRAINING)
    with pytest.raises(ValueError, match="share"):
        saliency_mask(tiny_gpt2(), split().forget, 0.0)


def test_scrub_terms_pull_apart_on_listed_rows_and_together_on_the_others():
    original, model = tiny_gpt2(), tiny_gpt2(1)
    leave, stay = scrub_terms(original, split(), alpha=0.5, gamma=2.0)
    assert [t.weight for t in (*leave, *stay)] == [1.0, 0.5, 2.0]
    assert value(leave[0].objective, model, leave[0].data) < 0 < value(stay[0].objective, model, stay[0].data)
    assert value(leave[0].objective, original, leave[0].data) == 0
    assert torch.equal(leave[0].data.tokens_BT, split().forget.tokens_BT)
    assert all(torch.equal(t.data.tokens_BT, split().retain.tokens_BT) for t in stay)
    distance = -value(leave[0].objective, model, leave[0].data)
    minimise(model, leave, steps=3, **TRAINING)
    assert -value(leave[0].objective, model, leave[0].data) > distance


def test_scrub_without_leaving_stays_with_the_original():
    model, original = tiny_gpt2(), tiny_gpt2()
    kinds = {"rounds": 2, "leave_steps": 2, "stay_steps": 2}
    scrub(model, split(), original=original, alpha=1.0, gamma=1.0, leaving_rounds=0, **kinds, **TRAINING)
    away = tiny_gpt2()
    scrub(away, split(), original=original, alpha=1.0, gamma=1.0, leaving_rounds=2, **kinds, **TRAINING)
    leave, _ = scrub_terms(original, split(), alpha=1.0, gamma=1.0)
    near, far = (-value(leave[0].objective, m, leave[0].data) for m in (model, away))
    assert far > near
    with pytest.raises(ValueError, match="leaving_rounds"):
        scrub(model, split(), original=original, alpha=1.0, gamma=1.0, leaving_rounds=3, **kinds, **TRAINING)
    with pytest.raises(ValueError, match="shares weights"):
        scrub(model, split(), original=model, alpha=1.0, gamma=1.0, leaving_rounds=1, **kinds, **TRAINING)


# --- the attack ---


def test_the_attack_is_scikit_learns():
    from sklearn.svm import SVC

    generator = np.random.default_rng(0)
    member, other, target = generator.beta(8, 1, 60), generator.beta(3, 2, 60), generator.beta(4, 2, 40)
    judge = SVC(C=3, gamma="auto", kernel="rbf").fit(
        np.concatenate([member, other])[:, None], np.r_[np.ones(60), np.zeros(60)]
    )
    assert called_unseen(member, other, target) == pytest.approx((judge.predict(target[:, None]) == 0).mean())


def test_the_attack_at_its_ends():
    high, low = np.full(20, 0.99), np.full(20, 0.1)
    assert called_unseen(high, low, low) == 1.0
    assert called_unseen(high, low, high) == 0.0
    with pytest.raises(ValueError, match="target is empty"):
        called_unseen(high, low, [])


# --- the scenarios ---


@pytest.mark.parametrize(
    ("name", "labels", "false_retaining", "affected", "retained", "unlisted_labels"),
    [
        ("all matched", 10, (), (), (0, 1, 2, 4, 5, 6, 7, 8, 9), 0),
        ("target mismatch", 10, (2, 5), (2, 5), (0, 1, 4, 6, 7, 8, 9), 2),
        ("model mismatch", 3, (), (2, 5), (0, 1, 2, 4, 5, 6, 7, 8, 9), 0),
        ("data mismatch", 3, (2, 5), (2, 5), (0, 1, 4, 6, 7, 8, 9), 1),
        ("target mismatch (parity)", 10, (1, 5, 7, 9), (1, 5, 7, 9), (0, 2, 4, 6, 8), 4),
    ],
)
def test_which_digits_each_scenario_forgets_and_keeps(
    name, labels, false_retaining, affected, retained, unlisted_labels
):
    scenario = next(s for s in scenarios() if s.name == name)
    assert len(scenario.groups) == labels
    assert scenario.listed == (3,)
    assert scenario.remaining == (0, 1, 2, 4, 5, 6, 7, 8, 9)
    assert (scenario.false_retaining, scenario.affected, scenario.retained) == (false_retaining, affected, retained)
    assert scenario.n_unlisted_labels == unlisted_labels
    train, _ = load_images(0)
    both = scenario.split(train)
    assert len(both.forget) == int((train.digit_N == 3).sum())
    assert len(both.forget) + len(both.retain) == len(train)
    assert torch.equal(both.retain.tokens_BT[:, -1], scenario.label_N(train.of(scenario.remaining).digit_N))
    assert torch.equal(both.retain.group_B, both.retain.tokens_BT[:, -1])
    assert both.retain.target_BT.sum(1).tolist() == [1] * len(both.retain)


def test_images_are_scikit_learns_and_every_digit_is_on_both_sides():
    from sklearn.datasets import load_digits

    train, test = load_images(0)
    every = load_digits()
    rows = {tuple(row) for row in every.data.astype(int).tolist()}
    assert len(train) + len(test) == len(every.target)
    assert {tuple(row) for row in train.pixels_NP.tolist() + test.pixels_NP.tolist()} == rows
    counts = [torch.bincount(side.digit_N, minlength=10) for side in (train, test)]
    assert (counts[0] - counts[1]).abs().max() <= 1
    assert not torch.equal(load_images(1)[0].pixels_NP, train.pixels_NP)
    assert torch.equal(load_images(0)[0].pixels_NP, train.pixels_NP)


def test_scenarios_that_cannot_be_are_refused():
    digits = tuple((d,) for d in range(10))
    with pytest.raises(ValueError, match="groups"):
        Scenario("twice", (*digits, (0,)), (3,), (3,))
    with pytest.raises(ValueError, match="within concept"):
        Scenario("outside", digits, (3,), (2, 5))
    with pytest.raises(ValueError, match="within concept"):
        Scenario("everything", digits, (3,), tuple(range(10)))


def test_a_classifier_does_not_read_the_answer():
    torch.manual_seed(0)
    model, scenario = Classifier(8, 10), scenarios()[0]
    pixels = torch.randint(0, 17, (10, 64))
    shown = [scenario.batch(Images(pixels, digits)) for digits in (torch.arange(10), torch.arange(10).flip(0))]
    assert torch.equal(*(model(**batch.inputs).logits for batch in shown))
    by_hand = torch.nn.functional.cross_entropy(model(**shown[0].inputs).logits[:, 0], torch.arange(10))
    torch.testing.assert_close(nll(model, shown[0]), by_hand)


def test_predictions_are_judged_by_the_scenarios_labels():
    scenario = next(s for s in scenarios() if s.name == "data mismatch")
    model = Classifier(8, 3)
    torch.nn.init.zeros_(model.head.weight)
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    images = Images(torch.zeros(4, 64, dtype=torch.long), torch.tensor([3, 5, 0, 7]))
    found = predictions(model, scenario, images)
    assert found.right_N.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert found.confidence_N[0].item() == pytest.approx(np.e / (np.e + 2))


# --- end to end ---


def test_tarf_forgets_the_concept_of_which_one_digit_is_listed():
    """Data mismatch: the listed 3 pulls the other open curves along, and what is retained stays."""
    scenario = next(s for s in scenarios() if s.name == "data mismatch")
    train, test = load_images(0)
    fit = ClassifierTraining(steps=200)
    original, goal = trained_classifier(scenario, train, 0, fit), retrained(scenario, train, 0, fit)
    model = copy.deepcopy(original)
    settings = {"annealing": Annealing(0.3, 5, 50), "select": TopGroups(1), "steps": 100}
    result = tarf(model, scenario.split(train), **settings, lr=1e-3, batch_size=64, seed=0)

    def right(m, digits):
        return predictions(m, scenario, test.of(digits)).right_N.mean().item()

    truth_N = torch.isin(train.of(scenario.remaining).digit_N, torch.tensor(scenario.false_retaining))
    assert torch.equal(result.dropped_N, truth_N)
    assert right(original, scenario.concept) > 0.9
    assert right(model, scenario.concept) < 0.1
    assert abs(right(model, scenario.retained) - right(goal, scenario.retained)) < 0.05


# --- what the studies say ---


def study_rows(tarf_gaps: list[float], best_gaps: list[float]) -> list[Row]:
    rows = []
    for scenario in ("all matched", "data mismatch"):
        gaps = {"original": [50.0] * 3, "retrained": [0.0] * 3, AGAIN: [0.1, 0.2, 0.3], "TARF": tarf_gaps}
        for name, values in {**gaps, **dict.fromkeys(CONVENTIONAL, best_gaps)}.items():
            for quantity in ("ua", "ra", "ta", "mia", "gap"):
                rows += [Row(name, "tarf_seed", quantity, v, scenario, item=i) for i, v in enumerate(values)]
                mean = float(np.mean(values))
                rows.append(Row(name, "tarf", quantity, mean, scenario, low=min(values), high=max(values), n=3))
    return rows


@pytest.mark.parametrize(
    ("tarf_gaps", "best_gaps", "said"),
    [
        ([0.2, 0.1, 0.3], [30.0, 31.0, 32.0], ("T1 * holds here", "T3 * holds here")),
        ([30.0, 31.0, 29.0], [0.2, 0.3, 0.1], ("T1 * does not hold here", "T3 * does not hold here")),
        ([0.0, 20.0, 40.0], [0.0, 50.0, 0.0], ("T1 * cannot be told", "T3 * cannot be told")),
    ],
)
def test_verdicts_follow_the_numbers_and_wide_intervals_claim_nothing(tarf_gaps, best_gaps, said):
    lines = claims(study_rows(tarf_gaps, best_gaps)).splitlines()
    for pattern in said:
        start, verdict = pattern.split(" * ")
        assert verdict in next(line for line in lines if line.startswith(start))


def test_paired_differences_have_scipys_interval():
    from scipy.stats import ttest_rel

    first, second = [3.0, 5.0, 9.0, 4.0], [1.0, 2.0, 3.0, 5.0]
    judge = ttest_rel(first, second).confidence_interval(0.95)
    assert paired(first, second, POINTS).ends == pytest.approx((2.5, judge.low, judge.high))
    found = Interval(1.0, 0.5, 1.5, 3)
    assert judged(found, 0.0, "above", "below") == "above"
    assert judged(found, 2.0, "above", "below") == "below"
    assert judged(found, 1.0, "above", "below") == "cannot be told"


def test_the_figure_plots_the_rows_and_the_table_marks_the_nearest_method():
    rows = study_rows([1.0, 1.0, 1.0], [30.0, 30.0, 30.0])
    data = scenario_figure(rows, new_figure(5.5, 4.0))
    assert list(data) == ["all matched", "data mismatch"]
    assert data["data mismatch"]["gap"]["TARF"] == [1.0, 1.0, 1.0]
    assert data["data mismatch"]["gap"]["retrained"][0] == 0.0
    table = scenario_table(rows)
    assert table.latex.count(r"\textbf{1.0}") == 2
    assert table.csv.count("\n") == 1 + 2 * (4 + len(CONVENTIONAL))
    with pytest.raises(ValueError, match="no rows"):
        scenario_figure([], new_figure(5.5, 4.0))


def test_gap_is_the_mean_distance_over_the_four_measures():
    found = {"ua": 10.0, "ra": 90.0, "ta": 80.0, "mia": 50.0, "listed": 0.0}
    goal = {"ua": 0.0, "ra": 100.0, "ta": 84.0, "mia": 70.0}
    assert gap(found, goal, MEASURES) == 11.0


def test_every_method_of_the_study_may_choose_among_six_settings():
    assert {len(settings) for _, settings in METHODS.values()} == {6}


def test_language_cases_list_half_of_each_authors_facts(bed):
    at = case(bed, 0)
    assert (len(at.split.forget), len(at.split.retain), int(at.truth_N.sum())) == (50, 950, 50)
    listed, remaining = at.split.forget_rows, at.split.retain_rows
    assert {row.group for row in listed} == {row.group for row in remaining[:50]}
    assert not {row.group for row in listed} & {row.group for row in remaining[50:]}
    assert {sum(row.group == author for row in listed) for author in {row.group for row in listed}} == {5}
    assert {(r.question, r.answer) for r in (*listed, *remaining[:50])} == {
        (r.question, r.answer) for r in bed.split.forget_rows
    }
    assert case(bed, 1).split.forget_rows != listed
