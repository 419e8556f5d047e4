"""Diagnostics: identities, finite differences, scikit-learn and Hugging Face as outside judges."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import random_batch, tiny_gpt2, tiny_llama
from torch import nn

from probe.checkpoints import weights_hash
from probe.data import QA, Batch, Split
from probe.diagnostics.fragility import layer_map
from probe.diagnostics.g_effect import g_effect, token_g_effects
from probe.diagnostics.logit_collapse import Thresholds, logit_collapse
from probe.diagnostics.representation_pca import fit_axes, representation_pca
from probe.diagnostics.separability import separability, words_alone
from probe.diagnostics.states import last_prompt_token, mean_answer, pooled_states
from probe.hooks import edited
from probe.metrics.intervals import interval, over_folds
from probe.metrics.memorisation import answer_stats
from probe.objectives.representation import TowardsTarget
from probe.objectives.sequence import NPO
from probe.objectives.token import TNPO, WGA, ga, nll, target_logprobs
from probe.sites import Site, blocks, layer_of
from probe.weights import blended


def gradients(model, loss, batch):
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss(model, batch), list(model.parameters())), strict=True))


# --- G-effect -------------------------------------------------------------------------------------------------


def test_ascent_on_its_own_data_is_minus_the_squared_gradient_norm():
    model, batch = tiny_gpt2(), random_batch()
    effect = g_effect(model, ga, batch, over=batch)
    norm = sum(g.square().sum() for g in gradients(model, nll, batch).values()).item()
    assert effect.total == pytest.approx(-norm, rel=1e-12)
    assert effect.gradient_norm == pytest.approx(norm**0.5, rel=1e-12)
    assert effect.cosine == pytest.approx(-1)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])  # tied and untied head
def test_effects_of_layers_and_rest_agree_with_backward_passes_and_sum_to_the_total(make):
    model, on, over = make(), random_batch(0), random_batch(1)
    effect = g_effect(model, ga, on, over=over)
    ours, theirs = gradients(model, ga, on), gradients(model, nll, over)
    expected = dict.fromkeys((0, 1, 2, None), 0.0)
    for name, g in ours.items():
        expected[layer_of(model, name)] += (g * theirs[name]).sum().item()
    assert effect.layer_L.tolist() == pytest.approx([expected[layer] for layer in range(3)], rel=1e-4, abs=1e-7)
    assert effect.rest == pytest.approx(expected[None], rel=1e-4)
    assert effect.total == pytest.approx(sum(expected.values()), rel=1e-4)


def test_effect_is_symmetric_in_the_two_gradients():
    model, one, other = tiny_gpt2(), random_batch(0), random_batch(1)
    forward = g_effect(model, nll, one, over=other)
    backward = g_effect(model, nll, other, over=one)
    torch.testing.assert_close(forward.layer_L, backward.layer_L)
    assert (forward.gradient_norm, forward.risk_norm) == (backward.risk_norm, backward.gradient_norm)


def test_a_small_step_changes_the_risk_by_minus_eta_times_the_effect():
    model, on, over = tiny_gpt2(), random_batch(0), random_batch(1)
    objective = NPO(tiny_gpt2(1), beta=0.5)
    effect = g_effect(model, objective, on, over=over)
    step, eta, risks = gradients(model, objective, on), 1e-6, []
    with torch.no_grad():
        for shift in (-eta, 2 * eta):  # to theta - eta g, then to theta + eta g
            for name, parameter in model.named_parameters():
                parameter += shift * step[name]
            risks.append(nll(model, over).item())
    assert (risks[0] - risks[1]) / (2 * eta) == pytest.approx(-effect.total, rel=1e-6)


@pytest.mark.parametrize("objective", [ga, WGA(beta=1.0)])
def test_chunks_add_up_exactly_for_token_means(objective):
    model, on, over = tiny_gpt2(), random_batch(0, rows=7), random_batch(1, rows=5)
    # A row without targets carries no weight, and a chunk of such rows alone must not stop anything.
    target_BT = on.target_BT.clone()
    target_BT[2:4] = False
    on = replace(on, target_BT=target_BT)
    whole = g_effect(model, objective, on, over=over)
    pieces = g_effect(model, objective, on, over=over, batch_size=2)
    torch.testing.assert_close(pieces.layer_L, whole.layer_L, rtol=1e-10, atol=0)
    assert pieces.rest == pytest.approx(whole.rest, rel=1e-10)


def test_g_effects_leave_grad_modes_flags_and_weights_as_they_were_41():
    model, batch = tiny_gpt2(), random_batch()
    clean = g_effect(model, ga, batch, over=batch).total
    before = weights_hash(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.train()
    blocks(model)[1].eval()
    with pytest.warns(UserWarning, match="train mode"), torch.no_grad():
        assert g_effect(model, ga, batch, over=batch).total == clean
    with pytest.warns(UserWarning, match="train mode"):
        token_g_effects(model, batch, over=batch)
    assert model.training
    assert not blocks(model)[1].training
    assert all(p.requires_grad and bool((p.grad == 1).all()) for p in model.parameters())
    assert weights_hash(model) == before


def test_effects_under_edits_and_blends():
    model, other, batch = tiny_gpt2(), tiny_gpt2(1), random_batch()
    plain = g_effect(model, ga, batch, over=batch)
    with edited(model, {}), edited(model, {Site(1): lambda h: h}):
        assert torch.equal(g_effect(model, ga, batch, over=batch).layer_L, plain.layer_L)
    with edited(model, {Site(1): lambda h: 2 * h}):
        changed = g_effect(model, ga, batch, over=batch)
        tokens_BT = token_g_effects(model, batch, over=batch)
    assert changed.total != pytest.approx(plain.total, rel=1e-3)
    assert (tokens_BT.sum() / batch.target_BT.sum()).item() == pytest.approx(changed.total, rel=1e-9)
    with blended(model, other, torch.ones(3), 1.0):
        assert g_effect(model, ga, batch, over=batch).total == g_effect(other, ga, batch, over=batch).total


def test_frozen_parameters_are_refused_by_share_37_40():
    model, batch = tiny_gpt2(), random_batch()
    for parameter in blocks(model).parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match=r"36 of 40 parameters \(8\d% of the weights; .*requires_grad_\(True\)"):
        g_effect(model, ga, batch, over=batch)
    with pytest.raises(ValueError, match="36 of 40"):
        token_g_effects(model, batch, over=batch)
    assert sum(p.requires_grad for p in model.parameters()) == 4


def test_objectives_without_gradient_are_refused():
    model, other, batch = tiny_gpt2(), tiny_gpt2(1), random_batch()
    with pytest.raises(ValueError, match="carries no graph"):
        g_effect(model, lambda m, b: nll(m, b).detach(), batch, over=batch)
    with pytest.raises(ValueError, match="computed on another one"):
        g_effect(model, lambda m, b: nll(other, b), batch, over=batch)
    with pytest.raises(ValueError, match="exactly zero"):
        g_effect(model, lambda m, b: 0 * nll(m, b), batch, over=batch)
    with pytest.raises(ValueError, match="batch_size"):
        g_effect(model, ga, batch, over=batch, batch_size=0)


def test_an_objective_that_ends_early_gives_nothing_to_later_layers():
    model, batch = tiny_gpt2(), random_batch()
    effect = g_effect(model, TowardsTarget(Site(1), torch.ones(16)), batch, over=batch)
    assert effect.layer_L[2] == 0
    assert (effect.layer_L[:2] != 0).all()


@pytest.mark.parametrize(("make", "rtol"), [(tiny_gpt2, 1e-9), (tiny_llama, 1e-3)])
def test_token_effects_agree_with_one_backward_pass_per_token(make, rtol):
    model, on, over = make(), random_batch(0), random_batch(1)
    pg_BT = token_g_effects(model, on, over=over, batch_size=3)
    direction = gradients(model, nll, over)
    expected_BT = torch.zeros_like(pg_BT)
    for row, column in on.target_BT.nonzero().tolist():
        per_token = gradients(model, lambda m, b, i=row, t=column: target_logprobs(m, b)[i, t], on)
        expected_BT[row, column] = sum((per_token[name] * direction[name]).sum() for name in direction)
    torch.testing.assert_close(pg_BT, expected_BT, rtol=rtol, atol=rtol * expected_BT.abs().max().item())
    assert (pg_BT[~on.target_BT] == 0).all()


def test_token_effects_make_up_the_effect_of_any_objective_on_log_probabilities():
    model, reference, on, over = tiny_gpt2(), tiny_gpt2(1), random_batch(0), random_batch(1)
    pg_BT = token_g_effects(model, on, over=over)
    with torch.no_grad():
        logp_BT, before_BT = target_logprobs(model, on), target_logprobs(reference, on)
    n, beta = on.target_BT.sum().item(), 0.3
    ratio_B1 = (logp_BT - before_BT).sum(1, keepdim=True)
    weights = {
        ga: 1 / n,
        TNPO(reference, beta=beta): 2 * torch.sigmoid(beta * (logp_BT - before_BT)) / n,
        NPO(reference, beta=beta): 2 * torch.sigmoid(beta * ratio_B1) / len(on),
    }
    for objective, weight in weights.items():
        total = g_effect(model, objective, on, over=over).total
        assert (weight * pg_BT).sum().item() == pytest.approx(total, rel=1e-9)


# --- separability and PCA -------------------------------------------------------------------------------------


def prompts_ending_in(last_tokens, *, seed, rows=100, rows_per_group=2):
    """Rows of six tokens: four random, one drawn from ``last_tokens``, and the answer."""
    generator = torch.Generator().manual_seed(seed)
    tokens_BT = torch.randint(3, 48, (rows, 6), generator=generator)
    tokens_BT[:, 4] = torch.tensor(last_tokens)[torch.randint(len(last_tokens), (rows,), generator=generator)]
    target_BT = torch.zeros(rows, 6, dtype=torch.bool)
    target_BT[:, 5] = True
    group_B = torch.arange(rows) // rows_per_group
    return Batch(tokens_BT, target_BT, torch.ones_like(target_BT), group_B, torch.full((rows,), 5))


def planted():
    return Split(prompts_ending_in(range(3, 7), seed=0), prompts_ending_in(range(20, 24), seed=1))


def test_a_planted_difference_is_found_and_no_difference_is_not():
    model = tiny_llama(hidden_size=32)
    found = separability(model, planted())
    assert (found.auc_L > 0.97).all()
    assert ((found.control_L - 0.5).abs() < 0.15).all()
    assert (found.n, found.n_groups, found.folds) == (200, 100, 5)
    same = Split(*(prompts_ending_in(range(3, 48), seed=seed) for seed in (4, 5)))
    none = separability(model, same)
    assert ((none.auc_L - 0.5).abs() < 0.15).all()
    assert ((none.low_L <= 0.5) & (none.high_L >= 0.5)).all()


def test_auroc_agrees_with_scikit_learn_on_hidden_states_of_hugging_face():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.preprocessing import StandardScaler

    model = tiny_llama()
    split = Split(prompts_ending_in(range(3, 30), seed=0), prompts_ending_in(range(20, 48), seed=1))
    found = separability(model, split, layers=[1], seed=4, batch_size=33, repeats=1)
    with torch.no_grad():
        sides = [model(b.tokens_BT, output_hidden_states=True).hidden_states[2] for b in (split.forget, split.retain)]
    x_ND = torch.cat(sides)[:, 4].double().numpy()
    y_N = np.repeat([1, 0], 100)
    group_N = np.concatenate([split.forget.group_B, split.retain.group_B + 1000])
    aucs = []
    cut = StratifiedGroupKFold(5, shuffle=True, random_state=4)
    for train, test in cut.split(x_ND, y_N, group_N):
        scaler = StandardScaler().fit(x_ND[train])
        probe = LogisticRegression(max_iter=1000, class_weight="balanced").fit(
            scaler.transform(x_ND[train]), y_N[train]
        )
        aucs.append(roc_auc_score(y_N[test], probe.decision_function(scaler.transform(x_ND[test]))))
    assert found.auc_L.tolist() == pytest.approx([np.mean(aucs)], abs=1e-3)
    half = 2.776 * np.std(aucs, ddof=1) * (1 / 5 + 1 / 4) ** 0.5
    assert found.low_L.item() == pytest.approx(max(0, np.mean(aucs) - half), abs=2e-3)


def test_groups_keep_near_duplicates_on_one_side_3():
    """Ten copies of each prompt, labels by chance: without groups a probe recognises the copies."""
    model = tiny_llama(hidden_size=32)
    sides = []
    for seed in (0, 1):
        once = prompts_ending_in(range(3, 48), seed=seed, rows=12)
        ten = once.select(torch.arange(12).repeat_interleave(10))
        sides.append(replace(ten, group_B=torch.arange(12).repeat_interleave(10)))
    grouped = separability(model, Split(*sides), layers=[2])
    alone = [replace(side, group_B=torch.arange(120)) for side in sides]
    with pytest.warns(UserWarning, match="group of its own"):
        leaking = separability(model, Split(*alone), layers=[2])
    assert leaking.auc_L.item() > 0.95
    assert grouped.auc_L.item() < 0.8


def test_a_group_named_on_both_sides_stays_in_one_fold():
    split = Split(prompts_ending_in(range(3, 20), seed=0, rows=20), prompts_ending_in(range(20, 48), seed=1, rows=20))

    def rows(first):
        return tuple(QA("q", "a", group=f"author {(first + i) // 2}") for i in range(20))

    assert separability(tiny_llama(), split, layers=[0]).n_groups == 20
    named = replace(split, forget_rows=rows(0), retain_rows=rows(10))  # authors 0..9 and 5..14
    assert separability(tiny_llama(), named, layers=[0]).n_groups == 15


def test_all_rows_count_and_folds_are_drawn_by_the_seed():
    split = Split(prompts_ending_in(range(3, 30), seed=0, rows=40), prompts_ending_in(range(20, 48), seed=1))
    model = tiny_llama()
    first, again, other = (separability(model, split, layers=[0], seed=seed) for seed in (0, 0, 1))
    assert (first.n, first.n_groups) == (140, 70)
    assert torch.equal(first.auc_L, again.auc_L)
    assert not torch.equal(first.auc_L, other.auc_L)
    assert separability(model, split, layers=[0], max_groups=7).n_groups == 14


def test_f24_all_rows_weigh_and_repeated_splits_move_the_auroc_less():
    split = Split(prompts_ending_in(range(3, 30), seed=0, rows=20), prompts_ending_in(range(20, 48), seed=1, rows=60))
    model = tiny_llama()
    once, often = ([separability(model, split, layers=[0], seed=s, repeats=r) for s in range(4)] for r in (1, 3))
    assert {found.n for found in once} == {80}
    assert np.std([f.auc_L for f in often]) < np.std([f.auc_L for f in once])


def test_f24_a_model_is_called_more_separable_on_intervals_of_paired_folds():
    """Two random models that see the same rows differ by chance alone; one that is told the side does not."""
    split = Split(prompts_ending_in(range(3, 48), seed=4, rows=60), prompts_ending_in(range(3, 48), seed=5, rows=60))
    first, second = (separability(tiny_llama(seed), split, layers=[0, 2]) for seed in (0, 1))
    apart = first.beyond(second)
    assert [a.mean for a in apart] == pytest.approx((first.auc_L - second.auc_L).tolist())
    assert not any(a.above_zero or a.high < 0 for a in apart)
    told = replace(second, auc_LRK=second.auc_LRK * 0 + 0.95 + 0.01 * first.auc_LRK)
    assert all(a.above_zero for a in told.beyond(first))
    with pytest.raises(ValueError, match="same rows, layers and folds"):
        first.beyond(separability(tiny_llama(), split, layers=[0]))


def test_f29_intervals_over_folds_cover_chance():
    """Noise for states, ten groups of four rows a class: Student's interval over folds covers too little."""
    generator, hits = np.random.default_rng(0), []
    label_N, group_N = np.repeat([1, 0], 40), np.repeat(np.arange(20), 4)
    for _ in range(250):
        x_ND = generator.standard_normal((20, 6))[group_N] + 0.5 * generator.standard_normal((80, 6))
        aucs = []
        for fold in range(5):
            out_N = group_N % 5 == fold
            weight_D = np.linalg.lstsq(x_ND[~out_N], 2.0 * label_N[~out_N] - 1, rcond=None)[0]
            score_N, right_N = x_ND[out_N] @ weight_D, label_N[out_N]
            aucs.append(float((score_N[right_N == 1][:, None] > score_N[right_N == 0][None]).mean()))
        found, student = over_folds(np.array([aucs])), interval(aucs)
        hits.append((student.low <= 0.5 <= student.high, found.low <= 0.5 <= found.high))
    covered = np.mean(hits, 0)
    assert covered[0] < 0.88
    assert covered[1] > 0.9


def test_f46_words_alone_are_the_floor_of_an_untrained_model():
    same, other = (prompts_ending_in(range(3, 48), seed=seed, rows=40) for seed in (4, 5))
    topic = replace(other, tokens_BT=other.tokens_BT.clone())
    topic.tokens_BT[:, 1] = 7
    assert words_alone(tiny_llama(hidden_size=32), Split(same, topic)).low > 0.6
    assert abs(words_alone(tiny_llama(hidden_size=32), Split(same, other)).mean - 0.5) < 0.2


def test_too_few_groups_wrong_layers_and_broken_states_are_refused_60():
    model, split = tiny_llama(), planted()
    single = replace(split, retain=replace(split.retain, group_B=torch.zeros(100, dtype=torch.long)))
    with pytest.raises(ValueError, match=r"forget side has 50 \(100 rows\), the retain side 1 \(100 rows\)"):
        separability(model, single)
    with pytest.raises(ValueError, match=r"layers 0\.\.2"):
        separability(model, split, layers=[3])
    with edited(model, {Site(1): lambda h: h * float("nan")}), pytest.raises(ValueError, match=r"layer 1.*NaN"):
        separability(model, split, layers=[0, 1])


def test_positions_pick_the_token_before_the_answer_and_the_answer_24():
    model, batch = tiny_llama(), random_batch()
    with torch.no_grad():
        hidden_BTD = model(**batch.inputs, output_hidden_states=True).hidden_states[1].double()
    last_ND = pooled_states(model, batch, [0], last_prompt_token, 3)[0]
    mean_ND = pooled_states(model, batch, [0], mean_answer, 3)[0]
    torch.testing.assert_close(last_ND, hidden_BTD[:, 4], rtol=1e-5, atol=1e-6)
    for row in range(4):
        torch.testing.assert_close(mean_ND[row], hidden_BTD[row, batch.target_BT[row]].mean(0), rtol=1e-5, atol=1e-6)


def test_an_edit_is_seen_and_nothing_is_left_behind():
    model, split = tiny_llama(), planted()
    before = weights_hash(model)
    plain = separability(model, split)
    with edited(model, {}):
        assert torch.equal(separability(model, split).auc_L, plain.auc_L)
    with edited(model, {Site(1): torch.zeros_like}):
        erased = separability(model, split)
    assert erased.auc_L[0] == plain.auc_L[0]
    assert erased.auc_L[1:].tolist() == [0.5, 0.5]
    assert weights_hash(model) == before
    assert not any(m._forward_hooks for m in model.modules())


def test_axes_agree_with_scikit_learn_and_place_another_model():
    from sklearn.decomposition import PCA

    model, other, split = tiny_llama(), tiny_llama(1), planted()
    axes = fit_axes(model, split, [0, 2])
    both = (split.forget, split.retain)
    x_ND = torch.cat([pooled_states(model, b, [2], last_prompt_token, 32)[2] for b in both]).numpy()
    pca = PCA(2, svd_solver="full").fit(x_ND)
    assert axes[2].explained == pytest.approx(pca.explained_variance_ratio_)
    own = representation_pca(model, split, axes=axes)[2]
    np.testing.assert_allclose(torch.cat([own.forget_N2, own.retain_N2]).numpy(), pca.transform(x_ND), atol=1e-9)
    y_ND = pooled_states(other, split.retain, [2], last_prompt_token, 32)[2].numpy()
    np.testing.assert_allclose(
        representation_pca(other, split, axes=axes)[2].retain_N2.numpy(), pca.transform(y_ND), atol=1e-9
    )
    with pytest.raises(ValueError, match="0 positions"):
        representation_pca(model, split, axes={})


# --- logit collapse -------------------------------------------------------------------------------------------


class Speaker(nn.Module):
    """A model whose logits are given by a function of the tokens."""

    def __init__(self, logits_of):
        super().__init__()
        self.logits_of, self.weight = logits_of, nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, **rest):
        from types import SimpleNamespace

        return SimpleNamespace(logits=self.logits_of(input_ids))


def next_token_known(tokens_BT):
    """Says the right next token with a logit 9 above the others."""
    return 9 * nn.functional.one_hot(tokens_BT.roll(-1, 1), 48).float()


def test_flat_logits_are_collapsed():
    found = logit_collapse(Speaker(lambda t: torch.full((*t.shape, 48), 3.0)).eval(), random_batch(rows=8))
    assert found.verdict == "collapsed"
    assert "flat" in found.reasons[0]
    assert found.entropy_share == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(found.entropy_N, torch.full_like(found.entropy_N, math.log(48)))
    assert found.mean_max_logit == 3.0
    assert found.spread == pytest.approx(0, abs=1e-6)
    assert len(found.entropy_N) == random_batch(rows=8).target_BT.sum()


def constant(tokens_BT):
    return 20 * nn.functional.one_hot(torch.full_like(tokens_BT, 7), 48).float()


def test_one_token_everywhere_is_collapsed_unless_it_is_right():
    batch = random_batch(rows=8)
    found = logit_collapse(Speaker(constant).eval(), batch, batch_size=3)
    assert found.verdict == "collapsed"
    assert found.reasons[0].startswith("one token everywhere: token 7 comes first at 100%")
    assert (found.top1_token, found.top1_share) == (7, 1.0)
    assert found.entropy_share < 0.01
    sevens = replace(batch, tokens_BT=batch.tokens_BT.masked_fill(batch.target_BT, 7))
    assert logit_collapse(Speaker(constant).eval(), sevens).verdict == "intact"
    few = Thresholds(min_positions=1000)
    assert logit_collapse(Speaker(constant).eval(), batch, thresholds=few).verdict == "intact"


def test_a_model_that_knows_the_text_is_intact_and_its_numbers_are_right():
    batch = random_batch(rows=8)
    found = logit_collapse(Speaker(next_token_known).eval(), batch)
    assert (found.verdict, found.reasons) == ("intact", ())
    assert found.top1_precision == 1.0
    p = math.exp(9) / (math.exp(9) + 47)
    assert found.mean_top_probability == pytest.approx(p, rel=1e-5)
    rest = (1 - p) / 47
    assert found.entropy_N.mean().item() == pytest.approx(-p * math.log(p) - 47 * rest * math.log(rest), rel=1e-4)
    assert found.spread == pytest.approx(9 - 9 / 48, rel=1e-5)
    assert (found.repetition, found.texts) == (None, ())


def test_entropy_agrees_with_torch_on_a_real_model_in_any_chunks():
    model, batch = tiny_llama(), random_batch(rows=5)
    with torch.no_grad():
        logits_NV = model(**batch.inputs).logits[:, :-1][batch.target_BT[:, 1:]]
    expected_N = torch.distributions.Categorical(logits=logits_NV).entropy()
    found = logit_collapse(model, batch, batch_size=2)
    torch.testing.assert_close(found.entropy_N, expected_N)
    torch.testing.assert_close(found.max_logit_N, logits_NV.amax(-1))
    with edited(model, {}):
        assert torch.equal(logit_collapse(model, batch, batch_size=2).entropy_N, found.entropy_N)


def test_broken_logits_are_collapsed():
    found = logit_collapse(Speaker(lambda t: torch.full((*t.shape, 48), float("nan"))).eval(), random_batch(rows=8))
    assert found.verdict == "collapsed"
    assert "NaN or infinite" in found.reasons[0]


def numbers_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 48)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def test_f34_loops_in_generated_text_are_collapsed_where_there_were_none_before():
    tokenizer, batch, prompts = numbers_tokenizer(), random_batch(rows=8), ["w3 w4", "w5"]
    model = tiny_llama()
    found = logit_collapse(model, batch, tokenizer=tokenizer, prompts=prompts, max_new_tokens=4)
    assert len(found.texts) == 2
    assert 0 <= found.repetition < 1
    # The head is emptied but for one token: wherever the state points, token 7 or nothing comes first.
    with torch.no_grad():
        model.lm_head.weight.zero_()
        states_BTD = model.model(batch.tokens_BT).last_hidden_state
        model.lm_head.weight[7] = 100 * states_BTD.mean((0, 1))
        model.lm_head.weight[8] = -model.lm_head.weight[7]
    stuck = logit_collapse(model, batch, tokenizer=tokenizer, prompts=prompts)
    assert stuck.verdict == "collapsed"
    assert any("repeats itself" in reason for reason in stuck.reasons)
    # F34: a model that did so before was not brought to it.
    again = logit_collapse(model, batch, tokenizer=tokenizer, prompts=prompts, before=stuck)
    assert (again.verdict, again.reasons) == ("intact", ())
    assert again.crossed == stuck.crossed
    assert logit_collapse(model, batch, tokenizer=tokenizer, prompts=prompts, before=found).verdict == "collapsed"
    with pytest.raises(ValueError, match="together"):
        logit_collapse(model, batch, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="no prompts"):
        logit_collapse(model, batch, tokenizer=tokenizer, prompts=[])


# --- layer map ------------------------------------------------------------------------------------------------


def test_layer_map_equals_swapping_blocks_by_hand_and_restores_every_bit():
    original, unlearned, batch = tiny_llama(0), tiny_llama(1), random_batch()
    hashes = weights_hash(original), weights_hash(unlearned)
    pointers = [p.data_ptr() for p in original.parameters()]

    def score(model):
        with torch.no_grad():
            return {"risk": nll(model, batch).item(), "last": nll(model, batch.select([3])).item()}

    found = layer_map(original, unlearned, score=score)
    for layer in range(3):
        swapped = tiny_llama(0)
        blocks(swapped)[layer].load_state_dict(blocks(unlearned)[layer].state_dict())
        assert {name: score_L[layer].item() for name, score_L in found.score_L.items()} == score(swapped)
    assert (found.original, found.unlearned) == (score(original), score(unlearned))
    assert (weights_hash(original), weights_hash(unlearned)) == hashes
    assert pointers == [p.data_ptr() for p in original.parameters()]


def test_layer_map_scores_answers_by_their_probability_unless_told_otherwise():
    original, unlearned, batch = tiny_llama(0), tiny_llama(1), random_batch()
    split = Split(batch.select([0, 1]), batch.select([2, 3]))
    found = layer_map(original, unlearned, split)
    for name, side in (("forget", split.forget), ("retain", split.retain)):
        own = layer_map(original, unlearned, score=lambda m, side=side: answer_stats(m, side).probability_N.mean())
        alone = layer_map(original, unlearned, side)
        assert found.score_L[name].tolist() == own.score_L.tolist() == alone.score_L.tolist()
        assert found.unlearned[name] == own.unlearned


def test_layer_map_of_one_number_and_chosen_layers():
    original, unlearned, batch = tiny_llama(0), tiny_llama(1), random_batch()

    def score(model):
        assert not model.training
        return nll(model, batch).item()

    every = layer_map(original, unlearned, score=score)
    found = layer_map(original, unlearned, score=score, layers=[2, 0])
    assert found.layers == (2, 0)
    assert found.score_L.tolist() == every.score_L[[2, 0]].tolist()
    assert found.original == score(original)


def test_layer_map_refuses_identical_models_wrong_layers_and_changing_names():
    original, unlearned = tiny_llama(0), tiny_llama(1)
    with pytest.raises(ValueError, match="identical"):
        layer_map(original, tiny_llama(0), score=lambda m: 0.0)
    with pytest.raises(ValueError, match=r"layers 0\.\.2"):
        layer_map(original, unlearned, score=lambda m: 0.0, layers=[5])
    with pytest.raises(ValueError, match="nothing to score models by"):
        layer_map(original, unlearned)
    names = iter("abcde")
    with pytest.raises(ValueError, match="same names"):
        layer_map(original, unlearned, score=lambda m: {next(names): 0.0})
    before = weights_hash(original)
    with pytest.raises(RuntimeError, match="inside"):
        layer_map(original, unlearned, score=lambda m: (_ for _ in ()).throw(RuntimeError("inside")))
    assert weights_hash(original) == before
