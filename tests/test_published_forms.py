"""What published codes compute, beside what their papers say: each by its name, from Python and from the shell."""

import copy
import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from conftest import random_batch, tiny_gpt2, tiny_llama
from torch.nn.functional import cross_entropy, kl_div, mse_loss

from probe.cli import main
from probe.commands.arguments.hyperparameters import hyperparameters, read_value
from probe.commands.unlearn import Unlearn
from probe.data import Batch, Split
from probe.methods import adversarial, distribution, elm, flat, pdu, preference, representation, rmu
from probe.methods import baselines as base
from probe.methods.catalogue import method_named, methods
from probe.objectives.distribution import UNDIAL, ELMErase, LogitMargin
from probe.objectives.logprobs import all_but_last, before_targets
from probe.objectives.preference import FLAT, BatchFLAT
from probe.objectives.representation import (
    HiddenStatesFromOriginal,
    NearOriginal,
    OrthogonalToOriginal,
    TowardsTarget,
    all_positions,
    answer_tokens,
    real_tokens,
)
from probe.objectives.retain import ForwardKL
from probe.objectives.token import TNPO, mixed_rows, position_mean, sequence_mean, token_mean
from probe.sites import Site
from probe.train import LAT, TAR, Term


@pytest.fixture(scope="module")
def original():
    return tiny_gpt2(1)


@pytest.fixture(scope="module")
def model():
    return tiny_gpt2(0, spread=3)


def plain_inputs(batch: Batch) -> dict:
    """What the published codes give a model: no positions."""
    return {"input_ids": batch.tokens_BT, "attention_mask": batch.attention_BT.long()}


def labels(batch: Batch) -> torch.Tensor:
    return batch.tokens_BT.masked_fill(~batch.target_BT, -100)


def agree(one, other, model):
    """Value and gradient."""
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in (one, other)]
    for a, b in zip(*gradients, strict=True):
        if a is not None or b is not None:
            zero = torch.zeros_like(a if b is None else b)
            torch.testing.assert_close(zero if a is None else a, zero if b is None else b, rtol=1e-9, atol=1e-12)


def terms_of(recipe, monkeypatch, module, **arguments) -> tuple[list[Term], dict]:
    """The terms and arguments that a recipe hands to the loop, without a step."""
    kept = {}

    def minimise(model, terms, **training):
        kept.update(terms=terms, **training)
        raise StopIteration

    monkeypatch.setattr(module, "minimise", minimise)
    split = Split(random_batch(0), random_batch(1))
    with pytest.raises(StopIteration):
        recipe(arguments.pop("model", tiny_gpt2(0)), split, **arguments)
    return kept.pop("terms"), kept


# Where most recipes hand their terms to the loop.
UNLEARN = import_module("probe.methods.unlearn")
HOW = {"steps": 4, "lr": 1e-3, "batch_size": 2, "seed": 0}


# --- positions ---


def test_p1_losses_over_all_positions_are_those_of_a_model_that_is_given_no_positions(original, model):
    """Right padding of rows of different lengths, where the codes let Hugging Face count."""
    batch = random_batch()
    assert not batch.attention_BT.all()
    ours, theirs = (m(**plain_inputs(batch)).logits.log_softmax(-1).flatten(0, 1) for m in (model, original))
    kl = kl_div(ours, theirs.detach(), reduction="batchmean", log_target=True)
    agree(ForwardKL(original, all_positions)(model, batch), kl, model)


# --- UNDIAL ---


def test_p5_undial_as_open_unlearning_computes_it():
    """At unlabelled positions its label -100 counts from the end of the vocabulary."""
    model, original = (tiny_llama(seed, vocab_size=120, dtype=torch.float64) for seed in (0, 1))
    with torch.no_grad():
        for parameter in (*model.parameters(), *original.parameters()):
            parameter.mul_(4)
    batch = random_batch(vocabulary=120)
    shifted_BT = labels(batch)[:, 1:]
    with torch.no_grad():
        teacher_BTV = original(**plain_inputs(batch)).logits[:, :-1].clone()
    for b in range(len(batch)):
        for t in range(shifted_BT.shape[1]):
            teacher_BTV[b, t, shifted_BT[b, t] if shifted_BT[b, t] >= 0 else 120 - 100] -= 10.0
    student_BTV = model(**plain_inputs(batch)).logits[:, :-1]
    expected = cross_entropy(student_BTV.transpose(1, 2), teacher_BTV.softmax(-1).transpose(1, 2))
    agree(UNDIAL(original, 10.0, all_but_last, elsewhere=-100)(model, batch), expected, model)
    authors = UNDIAL(original, 10.0, all_but_last)(model, batch)
    assert (authors - expected).abs() > 1e-3


def test_p5_undial_refuses_a_vocabulary_without_that_token(original, model):
    with pytest.raises(ValueError, match="48 tokens, none is -100"):
        UNDIAL(original, 10.0, all_but_last, elsewhere=-100)(model, random_batch())


@pytest.mark.parametrize(
    ("positions", "where", "elsewhere"),
    [("answers", before_targets, None), ("all", all_but_last, None), ("open-unlearning", all_but_last, -100)],
)
def test_p5_undial_by_name(positions, where, elsewhere, original, monkeypatch):
    arguments = {"original": original, "beta": 10.0, "retain_weight": 0.0, "positions": positions, **HOW}
    terms, _ = terms_of(distribution.undial, monkeypatch, UNLEARN, **arguments)
    assert terms[0].objective == UNDIAL(original, 10.0, where, elsewhere=elsewhere)


# --- PDU, FLAT, TNPO, KL ---


def test_p4_pdu_flattens_at_labels_that_are_not_shifted(model, monkeypatch):
    batch = random_batch()
    logits_BTV = model(**plain_inputs(batch)).logits
    square_BT = (logits_BTV.amax(-1) - logits_BTV.mean(-1)) ** 2
    mask_BT = labels(batch) != -100
    numbers = {"multiplier": 100.0, "rate": 5.0, "bound": 0.3, "warm_up": 0, **HOW}
    code, paper = (
        terms_of(pdu.pdu, monkeypatch, pdu, form=form, **numbers)[0][0].objective for form in ("released", "paper")
    )
    agree(code(model, batch), (square_BT * mask_BT).sum() / mask_BT.sum(), model)
    assert paper == LogitMargin(before_targets)


@pytest.mark.parametrize(("form", "objective"), [("paper", FLAT), ("released", BatchFLAT)])
def test_p8_flat_by_name(form, objective, monkeypatch):
    arguments = {"refusals": random_batch(0), "divergence": "neyman", "form": form, **HOW}
    terms, _ = terms_of(flat.flat, monkeypatch, UNLEARN, **arguments)
    assert terms[0].objective == objective("neyman")


def test_p6_tnpo_takes_epsilon(original, monkeypatch):
    arguments = {"original": original, "beta": 4.0, "epsilon": 1e-5, "retain_weight": 1.0, **HOW}
    terms, _ = terms_of(base.tnpo, monkeypatch, UNLEARN, **arguments)
    assert terms[0].objective == TNPO(original, 4.0, 1e-5)


@pytest.mark.parametrize(("positions", "where"), [("answers", before_targets), ("all", all_positions)])
def test_p9_where_kl_is_averaged_is_said_by_name(positions, where, original, monkeypatch):
    shared = {"original": original, "retain_weight": 1.0, "positions": positions, **HOW}
    terms, _ = terms_of(base.ga_kl, monkeypatch, UNLEARN, **shared)
    assert terms[-1].objective == ForwardKL(original, where)
    other = {"alternatives": random_batch(0), "mismatch_weight": 1.0}
    terms, _ = terms_of(preference.llmu, monkeypatch, preference, **shared, **other)
    assert terms[-1].objective == ForwardKL(original, where)


# --- RMU ---


def test_p7_rmu_as_open_unlearning_computes_it(original, model):
    """Sums a row of shape (B,) over counts of shape (B, 1): every row is divided by every row's count."""
    batch, target_D = random_batch(), torch.linspace(-1, 1, 16, dtype=torch.float64)
    mask_BT = labels(batch) != -100
    assert len(mask_BT.sum(1).unique()) > 1
    after, before = (m(**plain_inputs(batch), output_hidden_states=True).hidden_states[2] for m in (model, original))

    def loss(other_BTD):
        sum_B = ((after - other_BTD).square().mean(2) * mask_BT).sum(1)
        return (sum_B / mask_BT.sum(1, keepdim=True)).mean()

    agree(TowardsTarget(Site(1), target_D, answer_tokens, mixed_rows)(model, batch), loss(target_D), model)
    agree(NearOriginal(original, Site(1), answer_tokens, mixed_rows)(model, batch), loss(before.detach()), model)
    one = batch.select([1])
    assert mixed_rows(torch.ones(1, 3), torch.ones(1, 3).bool()) == 1
    torch.testing.assert_close(
        NearOriginal(original, Site(1), answer_tokens, mixed_rows)(model, one),
        NearOriginal(original, Site(1), answer_tokens)(model, one),
    )


def test_p7_rmu_in_the_wmdp_code_averages_over_every_position(original, model):
    batch = random_batch()
    after, before = (m(**plain_inputs(batch), output_hidden_states=True).hidden_states[2] for m in (model, original))
    agree(NearOriginal(original, Site(1), all_positions)(model, batch), mse_loss(after, before.detach()), model)


def test_p7_tokens_and_averages_of_rmu_by_name(original, monkeypatch):
    numbers = {"original": original, "layer": 1, "coefficient": 2.0, "alpha": 1.0, **HOW}
    choices = {"tokens": "answers", "normalise": "mixed-rows"}
    terms, _ = terms_of(rmu.rmu, monkeypatch, rmu, **choices, **numbers)
    assert (terms[0].objective.tokens, terms[0].objective.normalise) == (answer_tokens, mixed_rows)
    assert terms[1].objective == NearOriginal(original, Site(1), answer_tokens, mixed_rows)
    terms, _ = terms_of(rmu.rmu, monkeypatch, rmu, **numbers)
    assert terms[1].objective == NearOriginal(original, Site(1), real_tokens, token_mean)
    terms, _ = terms_of(rmu.rmu, monkeypatch, rmu, tokens="answers", normalise="rows", keep_states=True, **numbers)
    inner = terms[1].objective
    assert (inner.tokens, inner.normalise) == (answer_tokens, sequence_mean)


# --- circuit breakers and TAR ---


def cut(model, depth: int):
    """The model with its first blocks alone, as the circuit-breaker code loads it."""
    shorter = copy.deepcopy(model)
    shorter.transformer.h = shorter.transformer.h[:depth]
    shorter.config.num_hidden_layers = depth
    return shorter


@pytest.mark.parametrize("depth", [2, 3])
def test_p2_the_retain_term_of_the_circuit_breaker_code(depth, original, model):
    batch = random_batch()
    shorter = cut(model, depth)
    mask_1BT1 = batch.attention_BT[None, :, :, None]
    after, before = (
        torch.stack(m(**plain_inputs(batch), output_hidden_states=True).hidden_states) * mask_1BT1
        for m in (shorter, cut(original, depth))
    )
    expected = (after - before.detach()).norm(dim=-1).nanmean()
    objective = HiddenStatesFromOriginal(original, depth, real_tokens, position_mean)
    torch.testing.assert_close(objective(model, batch), expected, rtol=1e-12, atol=1e-14)
    ours = dict(
        zip(
            dict(model.named_parameters()),
            torch.autograd.grad(objective(model, batch), list(model.parameters()), allow_unused=True),
            strict=True,
        )
    )
    expected.backward()
    for name, p in shorter.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(ours[name], p.grad, rtol=1e-9, atol=1e-12)


def test_p2_layer_l_of_the_circuit_breaker_code_is_what_enters_block_l(original, model):
    batch = random_batch()
    after, before = (m(**plain_inputs(batch), output_hidden_states=True).hidden_states for m in (model, original))
    mask_BT = batch.attention_BT
    cosines = [
        (
            after[k]
            / after[k].norm(dim=-1, keepdim=True)
            * before[k].detach()
            / before[k].detach().norm(dim=-1, keepdim=True)
        ).sum(-1)
        for k in (1, 2)
    ]
    expected = sum((c.relu() * mask_BT).sum() for c in cosines) / (2 * mask_BT.sum())
    agree(OrthogonalToOriginal(original, (Site(0), Site(1)))(model, batch), expected, model)


def test_p2_rr_by_name(original, monkeypatch):
    numbers = {"original": original, "layers": (0, 1), "alpha": 10.0, **HOW}
    terms, code = terms_of(representation.rr, monkeypatch, representation, form="released", **numbers)
    assert terms[0].objective == OrthogonalToOriginal(original, (Site(0), Site(1)))
    assert terms[1].objective == HiddenStatesFromOriginal(original, 3, real_tokens, position_mean)
    _, paper = terms_of(representation.rr, monkeypatch, representation, **numbers)
    assert "h\\.2\\." in code["parameters"]
    assert "h\\.2\\." not in paper["parameters"]
    assert method_named("rr").published["llama-3-8b"].arguments["layers"] == (9, 19)


def test_p2_a_depth_outside_the_model_is_refused(original):
    with pytest.raises(ValueError, match=r"depth must lie in 1\.\.3, got 4"):
        HiddenStatesFromOriginal(original, 4)


def test_p10_tar_by_name(original, monkeypatch):
    """In the code's form every hidden state at every position: Hugging Face's own, plain means."""
    numbers = {"attack_lrs": (1e-3,), "attack_batch_size": 2, "attack_steps": 2, "every": 1, "growth": 0.1}
    numbers |= {"forget_weight": 1.0, "retain_weight": 1.0, "distance_weight": 1.0, "original": original, **HOW}
    model, batch = tiny_gpt2(0), random_batch()
    terms, made = terms_of(
        adversarial.tar, monkeypatch, adversarial, model=model, form="released", attack_weight_decay=0.01, **numbers
    )
    assert isinstance(made["stepping"], TAR)
    assert made["stepping"].attacks[0].weight_decay == 0.01
    after, before = (m(**plain_inputs(batch), output_hidden_states=True) for m in (model, original))
    pairs = zip(before.hidden_states, after.hidden_states, strict=True)
    expected = torch.stack([(b.detach() - a).norm(dim=-1).mean() for b, a in pairs]).mean()
    agree(terms[2].objective(model, batch), expected, model)
    logp_BTV = after.logits.log_softmax(-1)
    entropy = -(logp_BTV.exp() * logp_BTV).sum(-1).mean()
    agree(terms[0].objective(model, batch) - torch.tensor(48.0).double().log(), -entropy, model)


def test_p10_attackers_take_a_weight_decay(original, monkeypatch):
    numbers = {"original": original, "attack_layer": 1, "epsilon": 1.0, "attack_steps": 2, "attack_lr": 1e-2}
    numbers |= {"layer": 2, "coefficient": 2.0, "alpha": 1.0, "attack_weight_decay": 0.01, **HOW}
    _, made = terms_of(adversarial.rmu_lat, monkeypatch, rmu, **numbers)
    assert isinstance(made["stepping"], LAT)
    assert made["stepping"].weight_decay == 0.01


def test_p10_elm_compares_at_every_real_token_by_name(original, monkeypatch):
    numbers = {"original": original, "expert_ids": (5,), "novice_ids": (6,), "eta": 2.0, "leading": 1}
    numbers |= {"retain_weight": 1.0, **HOW}
    for positions, where in (("answers", before_targets), ("all", real_tokens)):
        terms, _ = terms_of(elm.elm, monkeypatch, elm, positions=positions, **numbers)
        assert terms[0].objective == ELMErase(original, (5,), (6,), 2.0, 1, where)
        assert terms[1].objective == ForwardKL(original, where)


# --- from the shell ---


def test_h10_settings_of_open_unlearning_carry_its_weight_decay_and_schedule():
    expected = {"weight_decay": 0.01, "schedule": "linear", "warmup": 0.1, "replacement": True}
    found = {method.name for method in methods() if "open-unlearning" in method.published}
    assert {"ga", "grad_diff", "ga_kl", "npo", "simnpo", "wga", "sat_imp", "undial", "ce_u", "idk_dpo", "rmu"} <= found
    for name in found:
        assert expected.items() <= method_named(name).published["open-unlearning"].arguments.items(), name


@pytest.mark.parametrize("method", methods(), ids=lambda m: m.name)
def test_h10_every_published_setting_can_be_given_to_its_recipe(method):
    """The words in it are among those that the recipe reads, as the shell would write them."""
    from probe.methods.method import words_of, written

    for setting in method.published.values():
        for key, value in setting.arguments.items():
            annotation = method.hyperparameters[key].annotation
            assert read_value(key, written(value), annotation) == value
            if isinstance(value, str) and words_of(annotation):
                assert value in words_of(annotation)


@pytest.mark.parametrize(
    ("name", "said", "found"),
    [
        ("rmu", "--setting zephyr-7b", {"tokens": "all", "coefficient": 6.5}),
        ("rmu", "--setting zephyr-7b --set tokens=answers normalise=mixed-rows", {"normalise": "mixed-rows"}),
        ("flat", "--setting flat --set divergence=neyman", {"form": "released", "divergence": "neyman"}),
        ("pdu", "--setting tofu", {"form": "released", "schedule": "linear", "warmup": 0.1}),
        ("undial", "--setting open-unlearning", {"positions": "open-unlearning", "lr": 1e-4}),
        ("undial", "--setting open-unlearning --schedule constant --warmup 0", {"schedule": "constant", "warmup": 0.0}),
        ("rr", "--setting llama-3-8b", {"layers": (9, 19), "form": "released"}),
        (
            "simnpo",
            "--setting open-unlearning --set decay_all=true replacement=false",
            {"decay_all": True, "delta": 0.0},
        ),
        ("tnpo", "--setting g-effect", {"epsilon": 1e-5}),
        ("llmu", "--setting closer-look", {"positions": "all"}),
        ("max_entropy", "--setting tofu", {"direction": "from-uniform", "positions": "all", "forget_weight": 0.1}),
    ],
)
def test_p7_published_forms_are_reached_from_the_shell(name, said, found, tmp_path, monkeypatch):
    taken = {}

    def asked(job):
        taken["job"] = job
        raise SystemExit

    monkeypatch.setattr(Unlearn, "check", lambda job: None)
    monkeypatch.setattr(Unlearn, "run", asked)
    with pytest.raises(SystemExit):
        main(["unlearn", name, *said.split(), "--steps", "2", "--out", str(tmp_path / "new")])
    method, job = method_named(name), taken["job"]
    more = ("retain_weight=1", "warm_up=1", "lr=1e-5", "batch_size=2")
    known = method.hyperparameters
    absent = [t for t in more if (k := t.partition("=")[0]) in known and known[k].default is known[k].empty]
    absent = [t for t in absent if t.partition("=")[0] not in ("lr", "batch_size")]
    job = Unlearn(**{**vars(job), "set": (*absent, *job.set), "lr": job.lr, "batch_size": job.batch_size or 2})
    if "lr" not in method.published[job.setting].arguments:
        job = Unlearn(**{**vars(job), "lr": 1e-5})
    assert found.items() <= hyperparameters(method, job).items()


@pytest.mark.parametrize(
    ("name", "said", "error"),
    [
        ("rmu", ("tokens=every",), "--set tokens=every: choose real or answers or all"),
        ("flat", ("form=paepr",), "--set form=paepr: choose paper or released"),
        ("npo", ("schedule=linear",), "schedule is not set by --set; write --schedule"),
    ],
)
def test_p7_words_that_mean_nothing_are_refused(name, said, error):
    with pytest.raises(ValueError, match=error):
        hyperparameters(
            method_named(name), Unlearn(method=name, out=Path("x"), set=said, steps=1, lr=1e-5, batch_size=2)
        )


def test_h7_a_schedule_from_the_shell_is_run_and_written_down(tmp_path):
    words = "npo --setting open-unlearning --schedule cosine --warmup 1 --lr 1e-3 --batch-size 2 --steps"
    main(["unlearn", *words.split(), "2", "--out", str(tmp_path / "two")])
    manifest = json.loads((tmp_path / "two" / "manifest.json").read_text())
    assert (manifest["arguments"]["schedule"], manifest["arguments"]["warmup"]) == ("cosine", 1)
    # A run that is all warm-up never moves.
    with pytest.raises(SystemExit):
        main(["unlearn", *words.split(), "1", "--out", str(tmp_path / "one")])
    assert not (tmp_path / "one").exists()
