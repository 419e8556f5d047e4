"""Published methods: what they train, what they draw, what they rank."""

import copy
import re

import pytest
import torch
from conftest import random_batch, tiny_gpt2, tiny_llama
from scipy.stats import rankdata
from test_interventions import WIDTH, Planted, planted

from probe.checkpoints import weights_hash
from probe.data import Batch, Split
from probe.features.activity import observe
from probe.features.ranking import rank_features
from probe.features.rules import Frequency, MeanDifference, SquaredMeanRatio
from probe.hooks import edited
from probe.interventions.activations import activations, content
from probe.interventions.features import Clamp
from probe.methods import rmu
from probe.methods.baselines import ga, ga_kl, grad_diff, npo, tnpo, wga
from probe.methods.catalogue import methods
from probe.methods.cru import best_layers, changed_blocks, cru, rank_sum
from probe.methods.published import Published
from probe.methods.sae_suppression import suppress
from probe.methods.unlearn import unlearn
from probe.objectives.representation import (
    NearOriginal,
    TowardsTarget,
    all_positions,
    answer_tokens,
    hidden_at,
    real_tokens,
)
from probe.objectives.sequence import NPO
from probe.objectives.token import nll
from probe.sites import Site
from probe.train import Term, minimise
from probe.weights import blended


def split() -> Split:
    return Split(random_batch(0), random_batch(1))


def longer(batch: Batch, by: int) -> Batch:
    """The same rows with more padding."""
    extra = torch.zeros(len(batch), by, dtype=torch.bool)
    return Batch(
        torch.cat([batch.tokens_BT, extra.long()], 1),
        torch.cat([batch.target_BT, extra], 1),
        torch.cat([batch.attention_BT, extra], 1),
        batch.group_B,
        batch.prompt_B,
    )


def names_changed(model, original) -> set[str]:
    before = dict(original.named_parameters())
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


# --- divergence ---


def nll_of(model, batch) -> float:
    with torch.no_grad():
        return nll(model, batch).item()


@pytest.fixture(scope="module")
def memorised():
    """A model that has learnt the rows of both sides a little."""
    data, model = split(), tiny_llama(n_layers=2)
    minimise(model, [Term(1.0, nll, b) for b in (data.forget, data.retain)], steps=15, lr=2e-2, batch_size=4, seed=0)
    return model


@pytest.mark.parametrize("method", ["ga", "grad_diff", "ga_kl", "npo", "wga", "tnpo"])
def test_each_method_unlearns_the_forget_rows_first(method, memorised):
    data, original = split(), memorised
    training = {"steps": 4, "lr": 3e-3, "batch_size": 4, "seed": 0}
    held = {"retain_weight": 2.0, **training}
    run = {
        "ga": lambda m: ga(m, data, **training),
        "grad_diff": lambda m: grad_diff(m, data, **held),
        "ga_kl": lambda m: ga_kl(m, data, original=original, **held),
        "npo": lambda m: npo(m, data, original=original, beta=0.1, **held),
        "wga": lambda m: wga(m, data, beta=1.0, **held),
        "tnpo": lambda m: tnpo(m, data, original=original, beta=1.0, **held),
    }[method]
    model, before = copy.deepcopy(original), weights_hash(original)
    history = run(model)
    assert weights_hash(original) == before
    assert history.names == (("forget",) if method == "ga" else ("forget", "retain"))
    rise = {k: nll_of(model, b) - nll_of(original, b) for k, b in (("f", data.forget), ("r", data.retain))}
    assert rise["f"] > 0.1
    assert method == "ga" or rise["f"] > 2 * rise["r"]


def test_a_method_is_its_terms_and_nothing_else():
    data, original = split(), tiny_llama()
    one, other = copy.deepcopy(original), copy.deepcopy(original)
    npo(one, data, original=original, beta=0.5, retain_weight=2.0, steps=3, lr=1e-2, batch_size=2, seed=5)
    terms = [Term(1.0, NPO(original, 0.5), data.forget), Term(2.0, nll, data.retain)]
    minimise(other, terms, steps=3, lr=1e-2, batch_size=2, seed=5)
    assert weights_hash(one) == weights_hash(other)


def test_negative_weights_and_a_reference_that_moves_are_refused():
    model, data = tiny_llama(), split()
    training = {"steps": 1, "lr": 1e-3, "batch_size": 2, "seed": 0}
    with pytest.raises(ValueError, match="retain_weight"):
        unlearn(model, data, nll, retain_weight=-1.0, **training)
    with pytest.raises(ValueError, match="reference would move"):
        npo(model, data, original=model, beta=0.1, retain_weight=1.0, **training)
    with pytest.raises(ValueError, match="reference would move"):
        rmu.rmu(model, data, original=model, layer=1, coefficient=1.0, alpha=1.0, **training)
    with pytest.raises(TypeError, match="steps"):
        ga(model, data, lr=1e-3, batch_size=2, seed=0)


SETTINGS = [
    (method, name)
    for method in methods()
    if method.run.__module__ in ("probe.methods.baselines", "probe.methods.rmu")
    for name in method.published
]


@pytest.mark.parametrize(("method", "name"), SETTINGS, ids=lambda x: x if isinstance(x, str) else x.name)
def test_published_settings_carry_their_source_and_fit_their_method(method, name):
    setting = method.published[name]
    assert isinstance(setting, Published)
    assert setting.source
    with pytest.raises(TypeError):
        setting.arguments["lr"] = 1.0
    model, data, original = tiny_llama(n_layers=8), split(), tiny_llama(n_layers=8)
    given = {"retain_weight": 1.0, "seed": 0, "batch_size": 2, "original": original}
    taken = {*method.needs, *method.hyperparameters}
    given = {
        key: value for key, value in given.items() if key in taken and (key, method.name) != ("retain_weight", "ga")
    }
    method.run(model, data, **{**given, **setting.arguments, "steps": 1})
    assert names_changed(model, original)


# --- RMU ---


def test_rmu_trains_only_the_mlp_outputs_of_three_layers_and_starts_with_no_retain_loss():
    original, data = tiny_llama(n_layers=5), split()
    model = copy.deepcopy(original)
    result = rmu.rmu(
        model, data, original=original, layer=3, coefficient=6.5, alpha=10.0, seed=1, steps=2, lr=1e-3, batch_size=2
    )
    assert names_changed(model, original) == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (1, 2, 3)}
    assert result.history.names == ("forget", "retain")
    assert result.history.losses[0][1] == 0
    assert result.history.losses[1][1] > 0


def test_the_target_has_its_length_lies_in_the_first_quadrant_and_follows_the_seed():
    model = tiny_llama()
    target_D = rmu.random_target(model, 6.5, seed=0)
    assert target_D.norm().item() == pytest.approx(6.5, rel=1e-6)
    assert (target_D >= 0).all()
    assert torch.equal(target_D, rmu.random_target(model, 6.5, seed=0))
    assert not torch.equal(target_D, rmu.random_target(model, 6.5, seed=1))


def test_rmu_draws_forget_activations_to_the_target_and_holds_retain_ones():
    original, data = tiny_llama(hidden_size=32, intermediate_size=64), split()
    site, shift, moved = Site(1), {}, {}
    for alpha in (0.0, 20.0):
        model = copy.deepcopy(original)
        result = rmu.rmu(
            model,
            data,
            original=original,
            layer=1,
            coefficient=2.0,
            alpha=alpha,
            seed=0,
            steps=40,
            lr=1e-2,
            batch_size=4,
        )
        unit_D = result.target_D / result.target_D.norm()
        for name, batch in (("forget", data.forget), ("retain", data.retain)):
            step_ND = (
                activations(model, batch, [site], tokens=content)[site]
                - activations(original, batch, [site], tokens=content)[site]
            )
            shift[alpha, name] = (step_ND @ unit_D).mean().item()
            moved[alpha, name] = step_ND.norm(dim=1).mean().item()
    assert shift[0.0, "forget"] > 0.5
    assert shift[20.0, "forget"] > 2 * abs(shift[20.0, "retain"])
    assert moved[20.0, "retain"] < 0.5 * moved[0.0, "retain"]


def test_padding_changes_the_loss_over_all_positions_and_no_other():
    model, batch = tiny_llama(), random_batch()
    frozen, target_D = tiny_llama(1), torch.ones(WIDTH)
    for tokens, invariant in ((real_tokens, True), (answer_tokens, True), (all_positions, False)):
        for objective in (TowardsTarget(Site(1), target_D, tokens), NearOriginal(frozen, Site(1), tokens)):
            with torch.no_grad():
                short, padded = objective(model, batch), objective(model, longer(batch, 6))
            assert torch.allclose(short, padded, rtol=1e-5) == invariant


def test_f44_rmus_coefficient_may_count_in_retain_norms_of_its_block():
    original, data = tiny_llama(), split()
    with torch.no_grad():
        hidden_BTD = original(**data.retain.inputs, output_hidden_states=True).hidden_states[2]
    norm = hidden_BTD[content(data.retain)].norm(dim=-1).median().item()
    assert rmu.retain_norm(original, data.retain, 1) == pytest.approx(norm, rel=1e-5)
    settings = {"layer": 1, "coefficient": 3.0, "alpha": 1.0, "seed": 1, "steps": 1, "lr": 1e-3, "batch_size": 2}
    for relative, length in ((False, 3.0), (True, 3.0 * norm)):
        found = rmu.rmu(copy.deepcopy(original), data, original=original, relative=relative, **settings)
        assert found.target_D.norm().item() == pytest.approx(length, rel=1e-5)


def test_the_adaptive_coefficient_is_a_multiple_of_the_mean_norm():
    model, batch = tiny_llama(), random_batch()
    with torch.no_grad():
        hidden_BTD = model(**batch.inputs, output_hidden_states=True).hidden_states[2]
    expected = 5 * hidden_BTD[batch.attention_BT].norm(dim=-1).mean().item()
    assert rmu.adaptive_coefficient(model, batch, 1, scale=5.0) == pytest.approx(expected, rel=1e-5)


def small(family: str):
    """A random model of the family, on the meta device: only its names count."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 2},
        "gpt_neox": {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32},
        "phi": {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32},
        "bloom": {"hidden_size": 16, "n_layer": 3, "n_head": 2},
        "falcon": {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2},
        "qwen3": {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32},
    }[family]
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, vocab_size=48, **sizes))


@pytest.mark.parametrize(
    ("family", "last"),
    [
        ("gpt2", "h.2.mlp.c_proj.weight"),
        ("gpt_neox", "layers.2.mlp.dense_4h_to_h.weight"),
        ("phi", "layers.2.mlp.fc2.weight"),
        ("bloom", "h.2.mlp.dense_4h_to_h.weight"),
        ("falcon", "h.2.mlp.dense_4h_to_h.weight"),
        ("qwen3", "layers.2.mlp.down_proj.weight"),
    ],
)
def test_the_mlp_output_is_found_by_name_in_other_families(family, last):
    model = small(family)
    pattern = rmu.rmu_parameters(model, 2)
    chosen = [name for name, _ in model.named_parameters() if re.search(pattern, name)]
    assert len(chosen) == 3
    assert chosen[-1].endswith(last)
    # It writes to the residual stream: its output is as wide as the model.
    weight = model.get_parameter(chosen[-1])
    assert WIDTH in weight.shape
    assert max(weight.shape) > WIDTH


def test_rmu_refuses_what_it_cannot_train():
    original, data = tiny_llama(), split()
    model = copy.deepcopy(original)
    given = {"original": original, "alpha": 1.0, "seed": 0, "steps": 1, "lr": 1e-3, "batch_size": 2}
    with pytest.raises(ValueError, match=r"layers 0\.\.2"):
        rmu.rmu(model, data, layer=3, coefficient=1.0, **given)
    with pytest.raises(ValueError, match="negative"):
        rmu.rmu(model, data, layer=-1, coefficient=1.0, **given)
    with pytest.raises(ValueError, match="coefficient must be above 0"):
        rmu.rmu(model, data, layer=1, coefficient=0.0, **given)
    for block in model.model.layers:
        block.mlp.other_proj = block.mlp._modules.pop("down_proj")
    with pytest.raises(ValueError, match=r"no MLP output weight known in block 0 .*other_proj"):
        rmu.rmu_parameters(model, 1)
    assert len([n for n, _ in model.named_parameters() if re.search(rmu.block_parameters(model, (1,)), n)]) == 9


# --- CRU ---


def test_rank_sum_by_hand_and_against_scipy():
    quality_L = torch.tensor([0.1, 0.7, 0.7, 0.2])
    utility_L = torch.tensor([0.6, 0.5, 0.4, 0.6])
    # Ranks 1, 3.5, 3.5, 2 and 3.5, 2, 1, 3.5.
    assert rank_sum(quality_L, utility_L).tolist() == [4.5, 5.5, 4.5, 5.5]
    assert best_layers(quality_L, utility_L, 3) == (1, 3, 0)
    torch.manual_seed(0)
    quality_L, utility_L = torch.rand(30), torch.randint(0, 5, (30,)).float()
    expected = rankdata(quality_L.numpy()) + rankdata(utility_L.numpy())
    assert rank_sum(quality_L, utility_L).tolist() == expected.tolist()
    # Only ranks count.
    assert best_layers(quality_L.exp() * 9, utility_L, 7) == best_layers(quality_L, utility_L, 7)


def test_cru_of_no_layer_is_the_original_and_of_all_with_the_rest_the_unlearned():
    original, unlearned = tiny_llama(0), tiny_llama(1)
    hashes = weights_hash(original), weights_hash(unlearned)
    quality_L, utility_L = torch.tensor([0.3, 0.9, 0.5]), torch.tensor([0.2, 0.8, 0.1])
    with blended(original, unlearned, cru(original, unlearned, quality_L, utility_L, 0)):
        assert weights_hash(original) == hashes[0]
    all_L = cru(original, unlearned, quality_L, utility_L, 3)
    with blended(original, unlearned, all_L, alpha_rest=1.0):
        assert weights_hash(original) == hashes[1]
    with blended(original, unlearned, all_L):
        assert weights_hash(original) != hashes[1]
    one_L = cru(original, unlearned, quality_L, utility_L, 1)
    assert one_L.tolist() == [0, 1, 0]
    with blended(original, unlearned, one_L):
        changed = names_changed(original, tiny_llama(0))
    assert changed
    assert all(".layers.1." in name for name in changed)


def test_cru_refuses_scores_that_do_not_fit():
    original, unlearned, score_L = tiny_llama(0), tiny_llama(1), torch.tensor([0.1, 0.2, 0.3])
    for k in (-1, 4):
        with pytest.raises(ValueError, match=r"0\.\.3"):
            cru(original, unlearned, score_L, score_L, k)
    with pytest.raises(ValueError, match="NaN"):
        cru(original, unlearned, score_L * float("nan"), score_L, 1)
    with pytest.raises(ValueError, match="has 2 entries; the model has 3"):
        cru(original, unlearned, score_L[:2], score_L[:2], 1)
    with pytest.raises(ValueError, match="different architecture"):
        cru(original, tiny_llama(n_layers=4), score_L, score_L, 1)


def test_f38_only_blocks_that_the_method_changed_are_taken():
    original, unlearned = tiny_llama(0), tiny_llama(0)
    # Block 1 alone was changed; the other two score better in both, as an untouched block can.
    quality_L, utility_L = torch.tensor([0.5, 0.1, 0.5]), torch.tensor([0.9, 0.2, 0.9])
    assert changed_blocks(original, unlearned) == ()
    with pytest.raises(ValueError, match="no block of the unlearned model differs"):
        cru(original, unlearned, quality_L, utility_L, 1)
    with torch.no_grad():
        unlearned.model.layers[1].mlp.down_proj.weight[0, 0] += 1
    assert changed_blocks(original, unlearned) == (1,)
    for rule in ("rank_sum", "pareto"):
        for k in (1, 2):
            assert cru(original, unlearned, quality_L, utility_L, k, rule=rule).tolist() == [0, 1, 0]


# --- SAE suppression ---


def concept_model(trigger: int = 40):
    """A random Llama whose residual stream carries one direction v exactly: only the trigger's embedding has it."""
    model, sae = tiny_llama(), planted()
    v_D = sae.W_dec[3]
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding -= (embedding @ v_D)[:, None] * v_D
        for layer in model.model.layers:
            for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                weight -= v_D[:, None] * (v_D @ weight)
        embedding[trigger] += 1.5 * v_D
    return model, sae


def triggered(trigger: int = 40) -> tuple[Batch, Batch]:
    forget, retain = random_batch(0, rows=8, vocabulary=40), random_batch(1, rows=8, vocabulary=40)
    forget.tokens_BT[:, 3] = trigger
    return forget, retain


def test_the_planted_concept_is_ranked_first_and_its_clamp_is_local():
    model, sae = concept_model()
    forget, retain = triggered()
    for rule in (Frequency(0.01), SquaredMeanRatio(95.0), MeanDifference()):
        ranking = rank_features(model, sae, Site(1), forget, retain, rule=rule, special_ids=(1, 2), batch_size=3)
        assert ranking.order[0] == 3 or rule == MeanDifference()
        assert 3 in ranking.order
    ranking = rank_features(model, sae, Site(1), forget, retain, rule=Frequency(0.01), special_ids=())
    assert ranking.order == (3,)
    activity = observe(model, {Site(1): sae}, forget, retain, special_ids=())[Site(1)]
    assert activity.retain.rate_F[3] == 0
    tokens = int(forget.attention_BT.sum())
    assert activity.forget.rate_F[3].item() == pytest.approx(8 / tokens)
    assert activity.forget.mean_F[3].item() == pytest.approx(1.5 * 8 / tokens, rel=1e-4)
    with torch.no_grad():
        before = [model(**b.inputs).logits for b in (forget, retain)]
        with edited(model, {Site(1): suppress(sae, ranking.top(1), -6.0)}):
            after = [model(**b.inputs).logits for b in (forget, retain)]
    assert torch.equal(after[1], before[1])
    assert torch.equal(after[0][:, :3], before[0][:, :3])
    assert not torch.equal(after[0][:, 3:], before[0][:, 3:])


def test_rates_count_ordinary_tokens_only_whatever_the_padding():
    model, sae = concept_model()
    forget, retain = triggered()
    found, padded = (
        observe(model, {Site(1): sae}, *sides, special_ids=(40,))[Site(1)]
        for sides in ((forget, retain), (longer(forget, 5), longer(retain, 5)))
    )
    assert found.forget.rate_F[3] == 0
    assert found.forget.mean_F[3] == 0
    assert torch.equal(padded.forget.rate_F, found.forget.rate_F)
    hidden_BTD = hidden_at(model, forget, Site(1)).detach()
    keep = forget.attention_BT & (forget.tokens_BT != 40)
    torch.testing.assert_close(found.forget.mean_F.float(), sae.encode(hidden_BTD[keep]).mean(0), rtol=1e-4, atol=1e-6)


def test_controls_and_requests_beyond_what_is_there():
    model, sae = concept_model()
    forget, retain = triggered()
    ranking = rank_features(model, sae, Site(1), forget, retain, rule=Frequency(0.01), special_ids=())
    with pytest.raises(ValueError, match="the rule admits 1"):
        ranking.top(2)
    with pytest.raises(ValueError, match="amplify"):
        suppress(sae, (0,), 1.0)
    with pytest.raises(ValueError, match="no token"):
        rank_features(model, sae, Site(1), forget, retain, rule=MeanDifference(), special_ids=range(48))
    assert isinstance(suppress(sae, (0,), torch.tensor([-1.0])), Clamp)


def test_a_dictionary_of_another_width_is_named():
    forget, retain = triggered()
    sides = (Site(1), forget, retain)
    with pytest.raises(ValueError, match="width 9"):
        rank_features(tiny_gpt2(), Planted(torch.eye(9)), *sides, rule=MeanDifference(), special_ids=())
