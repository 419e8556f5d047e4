"""Low-rank adapters through peft, in the loop: what is trained, kept, resumed, merged, read and edited."""

import copy

import pytest
import torch
from conftest import random_batch, tiny_llama

from probe.checkpoints import weights_hash
from probe.data import Split
from probe.hooks import captured, edited
from probe.interventions.steering import Steer
from probe.methods.baselines import grad_diff
from probe.methods.elm import elm
from probe.objectives.original import OriginalAnswers
from probe.objectives.retain import ForwardKL
from probe.objectives.sequence import NPO
from probe.objectives.token import ga, nll
from probe.sites import Site
from probe.train import Checkpointing, Term, lora, minimise, target_token_count
from probe.train.terms import shuffled

peft = pytest.importorskip("peft")

TARGETS = ["q_proj", "down_proj"]
HOW = {"lr": 1e-2, "batch_size": 2, "seed": 3, "parameters": "lora_"}


def adapted(model=None, seed: int = 0):
    return lora(model or tiny_llama(), rank=2, alpha=4.0, targets=TARGETS, seed=seed)


def terms() -> list[Term]:
    return [
        Term(0.7, NPO(OriginalAnswers(tiny_llama(), random_batch(0)), 0.1), random_batch(0), "forget"),
        Term(1.3, nll, random_batch(1), "retain", target_token_count),
    ]


def test_adapters_alone_have_gradients_states_and_checkpoints(tmp_path):
    from safetensors.torch import load_file

    model = adapted()
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" not in n}
    assert not any(p.requires_grad for n, p in model.named_parameters() if n in frozen)
    minimise(model, terms(), steps=3, checkpoint=Checkpointing(tmp_path, 3), **HOW)
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    assert all(p.grad is None for p in model.parameters())
    names = {n for n, _ in model.named_parameters() if "lora_" in n}
    assert len(names) == 2 * len(TARGETS) * 3
    weights, states = (load_file(tmp_path / "step-00000003" / f"{n}.safetensors") for n in ("weights", "optimiser"))
    assert set(weights) == {name.rpartition("/")[0] for name in states} == names
    assert sum(v.numel() for k, v in states.items() if not k.endswith("step")) == 2 * sum(
        p.numel() for n, p in model.named_parameters() if n in names
    )


def test_a_run_of_adapters_cut_off_goes_on_with_the_same_bits(tmp_path):
    class Killed(BaseException):
        pass

    def killer(step, model):
        if step == 3:
            raise Killed

    whole, again, checkpoint = adapted(), adapted(), Checkpointing(tmp_path, 2)
    expected = minimise(whole, terms(), steps=6, **HOW)
    with pytest.raises(Killed):
        minimise(adapted(), terms(), steps=6, checkpoint=checkpoint, every=1, observe=killer, **HOW)
    assert minimise(again, terms(), steps=6, checkpoint=checkpoint, **HOW) == expected
    assert weights_hash(again) == weights_hash(whole)
    with pytest.raises(ValueError, match="model before the run"):
        minimise(adapted(seed=1), terms(), steps=6, checkpoint=checkpoint, **HOW)


def test_adapters_can_be_merged_and_saved(tmp_path):
    model = adapted()
    minimise(model, terms(), steps=3, **HOW)
    inputs = random_batch().inputs
    trained = model(**inputs).logits
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    assert torch.equal(loaded(**inputs).logits, trained)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(**inputs).logits, trained)
    assert [n for n, _ in merged.named_parameters()] == [n for n, _ in tiny_llama().named_parameters()]


class Rows(torch.utils.data.Dataset):
    """A batch's rows in the order in which the loop draws them."""

    def __init__(self, batch, batch_size, seed, steps):
        order = shuffled(batch, batch_size, seed)
        self.batch, self.drawn = batch, [i for _ in range(steps) for i in next(order)]

    def __len__(self):
        return len(self.drawn)

    def __getitem__(self, k):
        i = self.drawn[k]
        labels = self.batch.tokens_BT[i].masked_fill(~self.batch.target_BT[i], -100)
        return {
            "input_ids": self.batch.tokens_BT[i],
            "attention_mask": self.batch.attention_BT[i].long(),
            "labels": labels,
        }


def trained_by_transformers(model, batch, steps, folder, **changes):
    from transformers import Trainer, TrainingArguments

    class InOrder(Trainer):
        def _get_train_sampler(self, *args, **kwargs):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    settings = {"lr_scheduler_type": "constant", "weight_decay": 0.0, **changes}
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        max_steps=steps,
        learning_rate=1e-2,
        max_grad_norm=1.0,
        optim="adamw_torch",
        adam_epsilon=1e-8,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_drop_last=True,
        **settings,
    )
    trainer = InOrder(model=model, args=arguments, train_dataset=Rows(batch, 2, 3, steps))
    trainer.train()
    return trainer


@pytest.mark.parametrize("make", [adapted, tiny_llama], ids=["adapters", "all weights"])
def test_the_trainer_of_transformers_makes_the_same_weights(make, tmp_path):
    steps, batch = 6, random_batch(0, rows=6)
    ours, theirs = make(), make()
    parameters = "lora_" if make is adapted else "."
    if make is adapted:
        assert {n for n, p in theirs.named_parameters() if p.requires_grad} == {
            n for n, _ in theirs.named_parameters() if "lora_" in n
        }
    history = minimise(ours, [Term(1.0, nll, batch)], steps=steps, lr=1e-2, batch_size=2, seed=3, parameters=parameters)
    trainer = trained_by_transformers(theirs, batch, steps, tmp_path)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx([losses[0] for losses in history.losses], abs=2e-4)
    before = dict(make().named_parameters())
    for (name, one), (other_name, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == other_name
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert max((p - before[n]).abs().max() for n, p in ours.named_parameters()) > 0.01


@pytest.mark.parametrize(("decay", "warmup"), [("linear", 2), ("cosine", 2), ("constant", 3)])
def test_h7_h8_schedules_and_weight_decay_are_those_of_the_trainer_of_transformers(decay, warmup, tmp_path):
    """A decay that moves norms too, or a factor one step off, would show."""
    steps, batch = 6, random_batch(0, rows=6)
    # Norms away from 1, and biases, so that decay or its absence would be seen in each.
    ours = tiny_llama(attention_bias=True)
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(0.3 if p.ndim < 2 else 0.0)
    theirs, decayed = copy.deepcopy(ours), copy.deepcopy(ours)
    how = {"steps": steps, "lr": 1e-2, "batch_size": 2, "seed": 3, "weight_decay": 5.0, "schedule": decay}
    minimise(ours, [Term(1.0, nll, batch)], warmup=warmup, **how)
    name = decay if decay != "constant" else "constant_with_warmup"
    trained_by_transformers(
        theirs, batch, steps, tmp_path, lr_scheduler_type=name, warmup_steps=warmup, weight_decay=5.0
    )
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    minimise(decayed, [Term(1.0, nll, batch)], warmup=warmup, decay_all=True, **how)
    apart = {n: (a - b).abs().max() for (n, a), b in zip(ours.named_parameters(), decayed.parameters(), strict=True)}
    assert min(value for name, value in apart.items() if "norm" in name or "bias" in name) > 1e-3


def test_sites_of_an_adapted_model_are_those_inside():
    model = adapted()
    minimise(model, terms(), steps=3, **HOW)
    inputs = random_batch().inputs
    merged = copy.deepcopy(model).merge_and_unload()
    steer = {Site(1): Steer(torch.ones(16), scale=2.0)}
    logits, states = [], []
    for one in (model, merged):
        with edited(one, steer), captured(one, [Site(0, "mlp"), Site(2)]) as found:
            logits.append(one(**inputs, use_cache=False).logits)
        states.append(found)
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-5, atol=1e-5)
    for site in states[0]:
        torch.testing.assert_close(states[0][site], states[1][site], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits[0], model(**inputs).logits, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(model(**inputs).logits, tiny_llama()(**inputs).logits)


def test_recipes_and_kept_references_take_adapted_models():
    split = Split(random_batch(0), random_batch(1))
    original, model = tiny_llama(), adapted()
    grad_diff(model, split, retain_weight=1.0, steps=2, **HOW)
    assert ga(model, split.forget) < ga(original, split.forget)
    elm(
        model,
        split,
        original=original,
        expert_ids=(5,),
        novice_ids=(6,),
        eta=2.0,
        leading=1,
        retain_weight=1.0,
        steps=1,
        **HOW,
    )
    positions = random_batch(1)
    kept = ForwardKL(OriginalAnswers(model, positions, states=True))
    torch.testing.assert_close(kept(original, positions), ForwardKL(model)(original, positions))


@pytest.mark.parametrize(
    ("how", "message"),
    [({"rank": 0}, "rank must be at least 1"), ({"targets": ["nowhere"]}, "nowhere")],
)
def test_adapters_without_meaning_are_refused(how, message):
    model, before = tiny_llama(), weights_hash(tiny_llama())
    with pytest.raises(ValueError, match=message):
        lora(model, **{"rank": 2, "alpha": 4.0, "targets": TARGETS, "seed": 0} | how)
    assert weights_hash(model) == before


@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "embed_tokens"], r".*(q_proj|lm_head)"], ids=str)
def test_f6_an_adapter_on_a_tied_weight_is_refused(targets):
    """Merged, it would change the embedding, which the adapted model left alone."""
    how = {"rank": 2, "alpha": 4.0, "seed": 0, "targets": targets}
    tied, before = tiny_llama(tie_word_embeddings=True), tiny_llama(tie_word_embeddings=True)
    with pytest.raises(ValueError, match=r"shares its weight with .*, where its adapter would act once merged"):
        lora(tied, **how)
    assert [n for n, _ in tied.named_modules()] == [n for n, _ in before.named_modules()]
    model, batch = lora(tiny_llama(), **how), random_batch()
    minimise(model, [Term(1.0, nll, batch)], parameters="lora_", steps=2, lr=1e-1, batch_size=2, seed=0)
    adapted = model(**batch.inputs).logits
    torch.testing.assert_close(model.merge_and_unload()(**batch.inputs).logits, adapted)
