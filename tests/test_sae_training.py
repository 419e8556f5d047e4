"""Training dictionaries: the loop is that of sae-lens, and what is saved is what was asked for, or nothing is saved."""

import json

import pytest
import torch
from conftest import tiny_llama

from probe.archive import harvest_to_files
from probe.checkpoints import weights_hash
from probe.data import Batch
from probe.dictionaries.folders import load_dictionary
from probe.dictionaries.made import random_dictionary
from probe.features.architectures import BatchTopK, JumpReLU, Matryoshka, TopK
from probe.features.naming import metadata_of
from probe.features.quality import quality
from probe.features.training import _endless, fit_dictionary, train_dictionary
from probe.hooks import captured, our_hooks
from probe.interventions.activations import activations, content
from probe.interventions.attaching import named_site
from probe.positions import not_first
from probe.sites import Site

SITE = Site(1)
NUMBERS = {"n_features": 256, "steps": 100, "batch_size": 2048, "lr": 1e-3, "seed": 0}


def texts(rows: int, seed: int) -> Batch:
    """Random tokens after a bos."""
    tokens_BT = torch.randint(3, 48, (rows, 16), generator=torch.Generator().manual_seed(seed))
    tokens_BT[:, 0] = 1
    real_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
    return Batch(tokens_BT, real_BT, real_BT, torch.arange(rows), torch.ones(rows, dtype=torch.long), warn=False)


@pytest.fixture(scope="module")
def model():
    return tiny_llama(hidden_size=64, intermediate_size=128)


@pytest.fixture(scope="module")
def hidden_ND(model):
    return activations(model, texts(600, 0), [SITE], tokens=content)[SITE]


@pytest.fixture(scope="module")
def judged():
    return texts(60, 1)


def trained(model, hidden, judged, folder, architecture, **changes):
    given = {**NUMBERS, "least_variance": 0.5, **changes}
    return train_dictionary(model, SITE, hidden, judged, folder, architecture=architecture, **given)


# --- the loop ---


@pytest.mark.parametrize("architecture", [TopK(8), BatchTopK(8), JumpReLU(8.0)])
def test_the_loop_is_that_of_sae_lens(hidden_ND, architecture):
    from sae_lens import LoggingConfig, SAETrainer
    from sae_lens.config import SAETrainerConfig

    numbers = {**NUMBERS, "steps": 20, "batch_size": 256}
    before = torch.get_rng_state()
    ours = fit_dictionary(hidden_ND, architecture, **numbers, metadata={})
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shared = {"d_in": 64, "d_sae": 256, "normalize_activations": "expected_average_only_in"}
        config = SAETrainerConfig(
            total_training_samples=20 * 256,
            train_batch_size_samples=256,
            lr=1e-3,
            lr_end=1e-4,
            lr_decay_steps=4,
            n_batches_for_norm_estimate=10,
            dead_feature_window=100,
            feature_sampling_window=10**9,
            logger=LoggingConfig(log_to_wandb=False),
        )
        theirs = SAETrainer(
            cfg=config, sae=architecture.trainee(shared), data_provider=_endless(hidden_ND, 256, 0)
        ).fit()
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == other.keys()
    # The running threshold of sae-lens, which starts at 0, is the one thing done otherwise.
    assert all(torch.equal(mine[name], other[name]) for name in mine if name != "topk_threshold")
    if isinstance(architecture, BatchTopK):
        assert other["topk_threshold"] < 0.5 * mine["topk_threshold"]


# --- what is saved ---


@pytest.mark.parametrize(
    ("architecture", "lr"),
    [(TopK(8), 1e-3), (BatchTopK(8), 1e-3), (Matryoshka(8, (32, 64)), 1e-3), (JumpReLU(8.0), 3e-3)],
    ids=lambda value: type(value).__name__,
)
def test_what_is_loaded_has_the_sparsity_that_was_asked_for(model, hidden_ND, judged, architecture, lr, tmp_path):
    from sae_lens import SAE

    before = weights_hash(model)
    made = trained(model, hidden_ND, judged, tmp_path / "sae", architecture, lr=lr)
    assert weights_hash(model) == before
    assert not our_hooks(model)
    # A judge from outside: the library's own encoder on the library's own loading.
    theirs = SAE.load_from_disk(tmp_path / "sae")
    seen_ND = activations(model, judged, [SITE], tokens=content)[SITE]
    with torch.no_grad():
        f_NF = theirs.encode(seen_ND)
        error_ND = seen_ND - theirs.decode(f_NF)
    l0 = (f_NF > 0).sum(1).float().mean().item()
    assert abs(l0 / 8 - 1) < 0.1
    assert made.quality.l0 == pytest.approx(l0, rel=1e-3)
    ev = 1 - error_ND.square().sum() / (seen_ND - seen_ND.mean(0)).square().sum()
    assert made.quality.explained_variance == pytest.approx(ev.item(), abs=1e-4)
    assert made.quality.explained_variance > 0.5
    loaded = load_dictionary(tmp_path / "sae")
    torch.testing.assert_close(loaded.encode(seen_ND[:50]), f_NF[:50])
    torch.testing.assert_close(made.dictionary.encode(seen_ND[:50]), f_NF[:50])
    assert loaded.metadata["hf_hook_name"] == "model.layers.1"
    assert loaded.metadata["hook_name"] == "blocks.1.hook_resid_post"
    assert loaded.metadata["model_sha256"] == before
    card = json.loads((tmp_path / "sae" / "card.json").read_text())
    assert card["architecture"]["name"] == type(architecture).__name__
    assert card["training"]["tokens"] == 100 * 2048
    assert card["quality"]["l0"] == made.quality.l0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sae"]


def test_the_card_says_what_replacing_the_activation_costs(model, hidden_ND, judged, tmp_path):
    made = trained(model, hidden_ND, judged, tmp_path / "sae", TopK(8), model_name="tiny")
    q = made.quality
    assert made.dictionary.metadata["model_name"] == "tiny"
    assert min(q.fvu_by_layer, key=lambda layer: q.fvu_by_layer[layer]) == 1
    assert set(q.fvu_by_layer) == {0, 1, 2}
    assert q.fvu_by_layer[1] == pytest.approx(1 - q.explained_variance)
    assert q.tokens == 60 * 15
    # By hand: the loss of every token after the second, with the reconstruction put in the activation's place.
    whole = judged.tokens_BT
    with torch.no_grad():
        with captured(model, [SITE]) as states:
            logits = model(whole).logits
        plain = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), whole[:, 1:].flatten())
        hidden_BTD = states[SITE]
        recon_BTD = made.dictionary.decode(made.dictionary.encode(hidden_BTD), hidden_BTD)
        recon_BTD[:, 0] = hidden_BTD[:, 0]
        rest = recon_BTD
        positions = torch.arange(whole.shape[1])[None]
        rope = model.model.rotary_emb(rest, positions)
        for block in model.model.layers[2:]:
            rest = block(rest, position_embeddings=rope, attention_mask=None)
        spliced = torch.nn.functional.cross_entropy(
            model.lm_head(model.model.norm(rest))[:, :-1].flatten(0, 1), whole[:, 1:].flatten()
        )
    assert q.loss == pytest.approx(plain.item(), abs=1e-5)
    assert q.loss_spliced == pytest.approx(spliced.item(), abs=1e-4)


def test_dead_features_are_those_that_nothing_turns_on(model, hidden_ND, judged):
    drawn = random_dictionary(64, 64, active=4, seed=0)
    with torch.no_grad():
        ever_F = (drawn.encode(hidden_ND) != 0).any(0)
    assert quality(model, drawn, SITE, judged, hidden_ND).dead == int((~ever_F).sum())


def test_activations_on_disk_train_the_same_dictionary(model, hidden_ND, judged, tmp_path):
    rows = texts(600, 0)
    harvest_to_files(model, rows.chunks(50), [SITE], tmp_path / "store", dtype=torch.float32, positions=not_first)
    few = {"steps": 30, "least_variance": 0.01, "l0_tolerance": 0.9}
    one = trained(model, hidden_ND, judged, tmp_path / "memory", TopK(8), **few)
    other = trained(model, tmp_path / "store", judged, tmp_path / "disk", TopK(8), **few)
    weights = [(tmp_path / name / "sae_weights.safetensors").read_bytes() for name in ("memory", "disk")]
    assert weights[0] == weights[1]
    assert one.quality == other.quality
    with pytest.raises(ValueError, match="another model"):
        trained(
            tiny_llama(1, hidden_size=64, intermediate_size=128), tmp_path / "store", judged, tmp_path / "x", TopK(8)
        )
    with pytest.raises(ValueError, match=r"no activations at Site\(2\); it has Site\(1\)"):
        train_dictionary(
            model,
            Site(2),
            tmp_path / "store",
            judged,
            tmp_path / "x",
            architecture=TopK(8),
            **NUMBERS,
            least_variance=0.5,
        )


# --- what is not saved ---


@pytest.mark.parametrize(
    ("architecture", "changes", "said"),
    [
        (TopK(8), {"steps": 1}, "variance is explained, the least is 0.5"),
        (TopK(8), {"least_variance": 0.999}, r"dead\. Nothing was saved; train for more steps, with more features"),
        (JumpReLU(8.0), {"steps": 3}, r"features are active a token, the target is 8 \(-100%\).*a larger lr"),
    ],
)
def test_a_dictionary_off_target_is_refused_with_the_numbers(
    model, hidden_ND, judged, architecture, changes, said, tmp_path
):
    with pytest.raises(ValueError, match=said):
        trained(model, hidden_ND, judged, tmp_path / "sae", architecture, **changes)
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_cut_short_leaves_nothing(model, hidden_ND, judged, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    for place in ("quality", "load_dictionary"):
        with monkeypatch.context() as patch:
            patch.setattr(f"probe.features.training.{place}", stop)
            with pytest.raises(KeyboardInterrupt):
                trained(model, hidden_ND, judged, tmp_path / "sae", TopK(8), steps=2)
        assert not list(tmp_path.iterdir())
    (tmp_path / "sae").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        trained(model, hidden_ND, judged, tmp_path / "sae", TopK(8), steps=2)


def test_nan_and_divergence_are_said_at_once(hidden_ND):
    broken_ND = hidden_ND.clone()
    broken_ND[::3] = torch.nan
    with pytest.raises(ValueError, match="check them for NaN"):
        fit_dictionary(broken_ND, TopK(8), **NUMBERS, metadata={})
    with pytest.raises(FloatingPointError, match=r"step \d+: the SAE's loss is"):
        fit_dictionary(hidden_ND, TopK(8), **{**NUMBERS, "lr": 1e30}, metadata={})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_features": 8}, "cannot be sparse"),
        ({"batch_size": 10**6}, "fewer than one batch"),
        ({"steps": 0}, "above 0"),
        ({"lr": float("nan")}, "above 0"),
        ({"least_variance": 1.0}, "lie in"),
    ],
)
def test_numbers_that_allow_no_training(model, hidden_ND, judged, change, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        trained(model, hidden_ND, judged, tmp_path / "sae", TopK(8), **change)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TopK(0), "at least 1"),
        (lambda: BatchTopK(True), "at least 1"),
        (lambda: Matryoshka(4, (8, 8)), "rising"),
        (lambda: JumpReLU(0.0), "above 0"),
    ],
)
def test_architectures_that_are_none(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(
    ("site", "hook", "module"),
    [
        (Site(2), "blocks.2.hook_resid_post", "model.layers.2"),
        (Site(2, "mlp"), "blocks.2.hook_mlp_out", "model.layers.2.mlp"),
        (Site(2, "block", "in"), "blocks.2.hook_resid_pre", "model.layers.2.input"),
        (Site(0, "heads"), "blocks.0.attn.hook_z", "model.layers.0.self_attn.o_proj.input"),
        (Site(0, "norm"), None, "model.norm"),
        (Site(0, "embedding"), "hook_embed", "model.embed_tokens"),
    ],
)
def test_sites_get_names_that_lead_back(model, site, hook, module):
    found = metadata_of(model, site, "m")
    assert found["model_name"] == "m"
    assert found["hf_hook_name"] == module
    assert found.get("hook_name") == hook
    assert all(named_site(model, name) == site for name in (module, hook) if name)


def test_sites_without_a_name_are_refused(model):
    with pytest.raises(ValueError, match="single head"):
        metadata_of(model, Site(0, "heads", head=1), "")
    with pytest.raises(ValueError, match="layer 9 does not exist"):
        metadata_of(model, Site(9), "")
