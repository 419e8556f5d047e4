"""Dictionaries: adapters against sae-lens itself, folders as they are published, made ones, and where they belong."""

import json
import warnings
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from conftest import random_batch, tiny_gpt2, tiny_llama
from safetensors.torch import load_file, save_file
from torch import Tensor

from probe.data import encode
from probe.dictionaries.adapters import check_features, dictionary
from probe.dictionaries.autoencoder import Autoencoder, dictionary_hash
from probe.dictionaries.coding import JumpRelu, Linear, Relu, TopKCoding
from probe.dictionaries.dictionary import Dictionary, delta
from probe.dictionaries.fit import fvu, mean_active
from probe.dictionaries.folders import load_dictionary, save_trained
from probe.dictionaries.made import (
    neuron_dictionary,
    oracle_dictionary,
    pca_dictionary,
    random_dictionary,
    rows_dictionary,
)
from probe.hooks import captured
from probe.interventions.activations import activations, content
from probe.interventions.attaching import attach, named_site, sites_of
from probe.interventions.residual import adds_to_stream
from probe.sites import Site

WIDTH, SIZE = 16, 40


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def filled(sae):
    """Random numbers in every parameter; thresholds above 0."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in sae.named_parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
        if name in ("threshold", "r_mag"):
            parameter.data = parameter.data.abs() / 2
        if name == "W_dec" and sae.cfg.architecture() == "matching_pursuit":
            parameter.data = torch.nn.functional.normalize(parameter.data, dim=1)
    return sae.requires_grad_(False)


def lens(kind: str, dtype: str = "float64", **settings):
    """A small inference object of sae-lens."""
    from sae_lens import registry

    made, config = registry.get_sae_class(kind)
    if kind.endswith("transcoder"):
        settings = {"d_out": 12, "apply_b_dec_to_input": False, **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return filled(made(config(d_in=WIDTH, d_sae=SIZE, dtype=dtype, device="cpu", **settings)))


PLAIN = [
    ("standard", {}),
    ("standard", {"apply_b_dec_to_input": False}),
    ("jumprelu", {}),
    ("gated", {}),
    ("topk", {"k": 5}),
    ("topk", {"k": 5, "rescale_acts_by_decoder_norm": True}),
    ("abstopk", {"k": 5}),
    ("abstopk", {"k": 5, "rescale_acts_by_decoder_norm": True}),
    ("matching_pursuit", {"max_iterations": 6}),
    ("matching_pursuit", {"residual_threshold": 1.5, "stop_on_duplicate_support": False}),
    ("matching_pursuit", {"residual_threshold": 0.0, "apply_b_dec_to_input": False, "max_iterations": 30}),
]
TRANSCODERS = [
    (kind, {"normalize_activations": how})
    for kind in ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
    for how in ("none", "layer_norm")
]
NORMALISED = [
    (kind, {**settings, "normalize_activations": how})
    for kind, settings in (
        ("standard", {}),
        ("jumprelu", {}),
        ("topk", {"k": 5, "rescale_acts_by_decoder_norm": True}),
        ("matching_pursuit", {"max_iterations": 6}),
    )
    for how in ("layer_norm", "constant_norm_rescale")
]
EVERY = [*PLAIN, *NORMALISED, *TRANSCODERS]


def named(case) -> str:
    return case[0] + "".join(f"-{value}" for value in case[1].values())


@pytest.mark.parametrize("case", EVERY, ids=named)
def test_an_adapted_dictionary_computes_what_sae_lens_computes(case):
    kind, settings = case
    sae, hidden_BTD = lens(kind, **settings), 2 * drawn(3, 5, WIDTH, dtype=torch.float64)
    found = dictionary(sae)
    assert isinstance(found, Dictionary)
    assert dictionary(found) is found
    assert (found.width, found.n_features, found.out_width) == (WIDTH, SIZE, 12 if "transcoder" in kind else WIDTH)
    f_BTF = found.encode(hidden_BTD)
    torch.testing.assert_close(f_BTF, sae.encode(hidden_BTD), rtol=1e-11, atol=1e-11)
    assert (f_BTF != 0).any()
    assert not (f_BTF != 0).all()
    # sae-lens applies the skip path of transcoders in forward alone.
    torch.testing.assert_close(found.decode(f_BTF, hidden_BTD), sae(hidden_BTD), rtol=1e-10, atol=1e-10)
    assert found.metadata["architecture"] == kind


@pytest.mark.parametrize("case", EVERY, ids=named)
def test_what_a_change_of_features_adds_is_exact(case):
    kind, settings = case
    found, hidden_BTD = dictionary(lens(kind, **settings)), 2 * drawn(3, 5, WIDTH, dtype=torch.float64)
    f_BTF = found.encode(hidden_BTD)
    output_BTE = drawn(3, 5, found.out_width, seed=4, dtype=torch.float64)
    unchanged = output_BTE + delta(found, f_BTF - f_BTF, hidden_BTD)
    assert torch.equal(unchanged, output_BTE)
    index_K = torch.tensor([7, 0, 33])
    changed_BTF = f_BTF.clone()
    changed_BTF[..., index_K] = -3.0
    expected = found.decode(changed_BTF, hidden_BTD) - found.decode(f_BTF, hidden_BTD)
    change_BTK = (changed_BTF - f_BTF)[..., index_K]
    torch.testing.assert_close(delta(found, change_BTK, hidden_BTD, index_K), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", EVERY, ids=named)
def test_columns_are_encode_for_the_chosen(case):
    kind, settings = case
    found, hidden_BTD = dictionary(lens(kind, **settings)), 2 * drawn(3, 5, WIDTH, dtype=torch.float64)
    index_K = torch.tensor([12, 3, 39])
    if found.separable:
        torch.testing.assert_close(found.columns(hidden_BTD, index_K), found.encode(hidden_BTD)[..., index_K])
    else:
        with pytest.raises(ValueError, match="without the others"):
            found.columns(hidden_BTD, index_K)


def test_statistics_of_one_call_never_reach_another_16():
    """sae-lens keeps the statistics of the last encode, for one decode."""
    sae = lens("standard", normalize_activations="layer_norm")
    found = dictionary(sae)
    one, other = 2 * drawn(4, WIDTH, dtype=torch.float64), 30 * drawn(4, WIDTH, seed=9, dtype=torch.float64) + 5
    f_one, expected = found.encode(one), sae(one)
    found.encode(other)
    torch.testing.assert_close(found.decode(f_one, one), expected)
    torch.testing.assert_close(found.decode(f_one, one), expected)
    with pytest.raises(ValueError, match=r"normalises its input \(layer_norm\); pass decode the hidden states"):
        found.decode(f_one)
    with pytest.raises(AttributeError):
        sae.decode(f_one)


def test_a_token_without_length_does_not_turn_into_nan():
    found = dictionary(lens("standard", normalize_activations="constant_norm_rescale"))
    hidden = torch.zeros(2, WIDTH, dtype=torch.float64)
    assert torch.isfinite(found.decode(found.encode(hidden), hidden)).all()


def test_heads_are_given_side_by_side():
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    metadata = SAEMetadata(hook_name="blocks.1.attn.hook_z")
    config = StandardSAEConfig(
        d_in=WIDTH, d_sae=SIZE, dtype="float64", device="cpu", reshape_activations="hook_z", metadata=metadata
    )
    sae = filled(StandardSAE(config))
    found, heads_BTHD = dictionary(sae), drawn(2, 3, 4, 4, dtype=torch.float64)
    flat_BTD = heads_BTHD.flatten(-2)
    torch.testing.assert_close(found.encode(flat_BTD), sae.encode(heads_BTHD))
    torch.testing.assert_close(found.decode(found.encode(flat_BTD)), sae(heads_BTHD).flatten(-2))
    assert sites_of(tiny_llama(), found) == (Site(1, "heads"), Site(1, "heads"))


def test_a_batch_topk_row_does_not_depend_on_the_batch_and_its_l0_is_that_of_training(tmp_path):
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    config = BatchTopKTrainingSAEConfig(d_in=WIDTH, d_sae=SIZE, k=6, device="cpu", topk_threshold_lr=0.05)
    torch.manual_seed(0)
    training = BatchTopKTrainingSAE(config)
    hidden_ND = drawn(2000, WIDTH)
    for i in range(150):
        batch_ND = hidden_ND[i * 13 % 1700 :][:256]
        step = TrainStepInput(batch_ND, {}, None, i, False)
        training.training_forward_pass(step)
    training.save_inference_model(tmp_path)
    found = load_dictionary(tmp_path)
    f_NF = found.encode(hidden_ND)
    torch.testing.assert_close(found.encode(hidden_ND[3:4]), f_NF[3:4])
    in_training = (training.encode(hidden_ND) > 0).sum(1).float().mean().item()
    assert mean_active(found, hidden_ND) == pytest.approx(in_training, rel=0.1)
    assert found.metadata["architecture"] == "jumprelu"
    with pytest.raises(ValueError, match=r"training object.*save_inference_model"):
        dictionary(training)


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "standard", "gated", "matryoshka_batchtopk"])
def test_a_saved_training_object_loads_and_the_object_itself_is_refused(kind, tmp_path):
    from sae_lens import registry

    made, config = registry.get_sae_training_class(kind)
    more = {"k": 4} if "topk" in kind else {}
    if kind.startswith("matryoshka"):
        more["matryoshka_widths"] = [10, SIZE]
    training = filled(made(config(d_in=WIDTH, d_sae=SIZE, device="cpu", **more)))
    with pytest.raises(ValueError, match=r"training object.*save_inference_model"):
        check_features(training, (0,))
    training.save_inference_model(tmp_path)
    found, hidden_ND = load_dictionary(tmp_path), drawn(50, WIDTH)
    if kind != "matryoshka_batchtopk":
        torch.testing.assert_close(found.decode(found.encode(hidden_ND)), training(hidden_ND), rtol=1e-4, atol=1e-4)
        in_training = (training.encode(hidden_ND) > 0).sum(1).float().mean().item()
        assert mean_active(found, hidden_ND) == pytest.approx(in_training, rel=0.1)
    elif found.separable:
        assert isinstance(found.encoder.activation, JumpRelu)


def test_what_cannot_be_adapted_is_refused_by_name():
    from sae_lens.saes.temporal_sae import TemporalSAE, TemporalSAEConfig

    temporal = TemporalSAE(TemporalSAEConfig(d_in=8, d_sae=128, n_heads=1, device="cpu"))
    with pytest.raises(ValueError, match="temporal SAE predicts each token from those before it"):
        dictionary(temporal)
    with pytest.raises(ValueError, match=r"covariance_whitening.*fold_activation_whitening"):
        dictionary(lens("standard", normalize_activations="covariance_whitening"))
    with pytest.warns(UserWarning, match="scale was not folded into its weights"):
        dictionary(lens("standard", normalize_activations="expected_average_only_in"))
    with pytest.raises(ValueError, match="int is no dictionary of features: it has no W_dec, encode, decode"):
        dictionary(3)


def test_whitening_that_was_folded_is_exact():
    sae = lens("standard", normalize_activations="covariance_whitening")
    before = dictionary(lens("standard"))
    matrix_DD, mean_D = drawn(WIDTH, WIDTH, seed=5, dtype=torch.float64), drawn(WIDTH, seed=6, dtype=torch.float64)
    sae.fold_activation_whitening(mean_D, matrix_DD, torch.linalg.inv(matrix_DD))
    found, hidden_ND = dictionary(sae), drawn(20, WIDTH, dtype=torch.float64)
    white_ND = (hidden_ND - mean_D) @ matrix_DD
    torch.testing.assert_close(found.encode(hidden_ND), before.encode(white_ND))
    expected = before.decode(before.encode(white_ND)) @ torch.linalg.inv(matrix_DD) + mean_D
    torch.testing.assert_close(found.decode(found.encode(hidden_ND)), expected)


@dataclass(frozen=True)
class Own:
    """Someone's own SAE, one of whose rows may be longer in decode than in W_dec."""

    W_dec: Tensor
    longer: float = 1.0

    def encode(self, x: Tensor) -> Tensor:
        return (x @ self.W_dec.T).relu()

    def decode(self, feature_acts: Tensor) -> Tensor:
        return self.longer * feature_acts @ self.W_dec + 1


def test_an_object_of_ones_own_is_adapted_if_its_decoder_is_linear():
    own, hidden_ND = Own(drawn(SIZE, WIDTH)), drawn(5, WIDTH)
    found = dictionary(own)
    assert torch.equal(found.encode(hidden_ND), own.encode(hidden_ND))
    assert torch.equal(found.decode(found.encode(hidden_ND)), own.decode(own.encode(hidden_ND)))
    assert torch.equal(found.scale(hidden_ND), torch.ones(5, 1))
    with pytest.raises(ValueError, match="does not add features times W_dec"):
        dictionary(Own(drawn(SIZE, WIDTH), longer=2.0))
    with pytest.raises(ValueError, match="width 16, the hidden states here have width 9"):
        found.encode(drawn(3, 9))
    with pytest.raises(ValueError, match="without the others"):
        found.columns(hidden_ND, torch.tensor([0]))


def test_rounding_noise_of_a_relu_is_not_active_and_a_threshold_is_believed():
    basis_DD = torch.linalg.qr(drawn(WIDTH, WIDTH)).Q
    oracle = oracle_dictionary(basis_DD, complete=False)
    hidden_ND = 1e3 * basis_DD[:3]
    f_NF = oracle.encode(hidden_ND)
    assert (f_NF > 0).sum() > 3
    assert oracle.active(f_NF).sum() == 3
    index_K = torch.arange(2 * WIDTH)
    assert torch.equal(oracle.columns(hidden_ND, index_K) > 0, oracle.active(f_NF))
    jump = Autoencoder(
        Linear(torch.eye(WIDTH), torch.zeros(WIDTH), JumpRelu(torch.zeros(WIDTH), torch.full((WIDTH,), 1e-7))),
        torch.eye(WIDTH),
        torch.zeros(WIDTH),
    )
    assert jump.active(jump.encode(torch.tensor([[1e6, 1e-6, *[0.0] * 14]]))).sum() == 2
    # A threshold of 0 is none.
    bare = replace(jump, encoder=replace(jump.encoder, activation=JumpRelu(torch.zeros(WIDTH), torch.zeros(WIDTH))))
    assert bare.active(bare.encode(torch.tensor([[1e6, 1e-6, *[0.0] * 14]]))).sum() == 1


def test_gradients_reach_the_hidden_states_and_stop_at_the_weights():
    from torch.autograd import gradcheck

    for kind, settings in (("standard", {}), ("topk", {"k": 5}), ("gated", {}), *NORMALISED[:2], *PLAIN[8:9]):
        found = dictionary(lens(kind, **settings))
        hidden = (2 * drawn(2, WIDTH, dtype=torch.float64)).requires_grad_()
        assert gradcheck(lambda h, found=found: found.decode(found.encode(h), h), hidden)
    assert not found.directions_FD.requires_grad


# --- folders ---------------------------------------------------------------------------------------------------


def scope_arrays() -> dict[str, np.ndarray]:
    sae = lens("jumprelu", "float32", apply_b_dec_to_input=False)
    names = {"w_enc": "W_enc", "w_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
    return {theirs: getattr(sae, ours).numpy() for theirs, ours in names.items()}


def test_gemma_scope_is_read_without_a_hub(tmp_path):
    folder = tmp_path / "gemma-scope-2b-pt-res" / "layer_12" / "width_16k" / "average_l0_82"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **scope_arrays())
    found, sae = load_dictionary(folder), lens("jumprelu", "float32", apply_b_dec_to_input=False)
    hidden_ND = drawn(30, WIDTH)
    torch.testing.assert_close(found.encode(hidden_ND), sae.encode(hidden_ND))
    torch.testing.assert_close(found.decode(found.encode(hidden_ND)), sae(hidden_ND))
    assert found.metadata["hook_name"] == "blocks.12.hook_resid_post"
    assert found.metadata["model_name"] == "gemma-2-2b"
    # A folder of another name says nothing of where it belongs, unless settings lie beside it.
    plain = tmp_path / "mine"
    plain.mkdir()
    np.savez(plain / "params.npz", **scope_arrays())
    assert "hook_name" not in load_dictionary(plain).metadata
    (plain / "hyperparams.json").write_text(json.dumps({"hook_name": "blocks.1.hook_mlp_out"}))
    assert load_dictionary(plain / "params.npz").metadata["hook_name"] == "blocks.1.hook_mlp_out"
    assert dictionary_hash(load_dictionary(plain)) == dictionary_hash(found)


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("transcoder_project/gemma-scope-2b-pt-res/layer_12/width_16k", ("gemma-2-2b", "blocks.12.hook_resid_post")),
        ("layer_3_study/gemma-scope-9b-it-mlp/layer_12/average_l0_8", ("gemma-2-9b-it", "blocks.12.hook_mlp_out")),
        ("embeddings/gemma-scope-2b-pt-att/layer_4/width_16k", ("gemma-2-2b", "blocks.4.attn.hook_z")),
        ("layer_1/mine", (None, None)),
        ("models--google--gemma-scope-2b-pt-res/snapshots/ab/layer_2/w", ("gemma-2-2b", "blocks.2.hook_resid_post")),
        ("gemma-scope-2-4b-it/resid_post/layer_9_width_16k_l0_big", ("google/gemma-3-4b-it", "model.layers.9.output")),
        ("x/attn_out_all/layer_9_width_16k_l0_big", (None, "model.layers.9.self_attn.o_proj.input")),
    ],
)
def test_f10_only_the_repositorys_own_folders_say_where_a_gemma_scope_belongs(tmp_path, folder, expected):
    path = tmp_path / folder
    path.mkdir(parents=True)
    np.savez(path / "params.npz", **scope_arrays())
    found = load_dictionary(path)
    known = found.metadata
    assert (known.get("model_name"), known.get("hook_name", known.get("hf_hook_name"))) == expected
    assert not found.transcodes


def test_f10_gemma_scopes_transcoders_and_embedding_are_told_by_their_own_folders(tmp_path):
    parts = ("pre_feedforward_layernorm.output", "post_feedforward_layernorm.output")
    for name, places in (
        ("gemma-scope-2b-pt-transcoders/layer_5/width_16k", ("blocks.5.ln2.hook_normalized", "blocks.5.hook_mlp_out")),
        ("gemma-scope-2-1b-pt/transcoder/layer_5_width_16k_l0_small", [f"model.layers.5.{part}" for part in parts]),
    ):
        (folder := tmp_path / name).mkdir(parents=True)
        np.savez(folder / "params.npz", **scope_arrays())
        found, start = load_dictionary(folder), "hook_name" if "blocks" in places[0] else "hf_hook_name"
        assert found.transcodes
        assert [found.metadata[f"{start}{end}"] for end in ("", "_out")] == list(places)
    (folder := tmp_path / "gemma-scope-2b-pt-res" / "embedding" / "width_4k").mkdir(parents=True)
    np.savez(folder / "params.npz", **scope_arrays())
    with pytest.raises(ValueError, match="reads embeddings in units of its own training"):
        load_dictionary(folder)


def test_gemma_scope_2_transcoders_keep_their_skip_path(tmp_path):
    sae = lens("jumprelu_skip_transcoder", "float32", d_out=WIDTH)
    arrays = {"w_enc": sae.W_enc, "w_dec": sae.W_dec, "b_enc": sae.b_enc, "b_dec": sae.b_dec}
    more = {"threshold": sae.threshold, "affine_skip_connection": sae.W_skip.T.contiguous()}
    save_file({name: tensor.data for name, tensor in {**arrays, **more}.items()}, tmp_path / "params.safetensors")
    places = {
        "hf_hook_point_in": "model.layers.1.post_attention_layernorm.output",
        "hf_hook_point_out": "model.layers.1.mlp.output",
    }
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "jump_relu", **places}))
    found, hidden_ND = load_dictionary(tmp_path), drawn(30, WIDTH)
    assert found.transcodes
    torch.testing.assert_close(found.decode(found.encode(hidden_ND), hidden_ND), sae(hidden_ND), rtol=1e-4, atol=1e-4)
    assert sites_of(tiny_llama(), found) == (Site(1, "mlp", "in"), Site(1, "mlp"))


def test_llama_scope_is_read_with_its_scale_folded_as_sae_lens_folds_it(tmp_path):
    sae = lens("jumprelu", "float32", apply_b_dec_to_input=False)
    scale, threshold = 2.5, 0.3
    (tmp_path / "checkpoints").mkdir()
    arrays = {
        "encoder.weight": sae.W_enc.T.contiguous(),
        "encoder.bias": sae.b_enc,
        "decoder.weight": sae.W_dec.T.contiguous(),
        "decoder.bias": sae.b_dec,
    }
    save_file(
        {name: tensor.data.clone() for name, tensor in arrays.items()}, tmp_path / "checkpoints/final.safetensors"
    )
    settings = {
        "d_model": WIDTH,
        "d_sae": SIZE,
        "jump_relu_threshold": threshold,
        "dataset_average_activation_norm": {"in": WIDTH**0.5 / scale, "out": WIDTH**0.5 / scale},
        "hook_point_in": "blocks.2.hook_resid_post",
        "hook_point_out": "blocks.2.hook_resid_post",
    }
    (tmp_path / "hyperparams.json").write_text(json.dumps(settings))
    sae.threshold.data.fill_(threshold * scale)
    sae.fold_activation_norm_scaling_factor(scale)
    found, hidden_ND = load_dictionary(tmp_path), drawn(30, WIDTH)
    torch.testing.assert_close(found.encode(hidden_ND), sae.encode(hidden_ND), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.decode(found.encode(hidden_ND)), sae(hidden_ND), rtol=1e-4, atol=1e-4)
    assert named_site(tiny_llama(), found.metadata["hook_name"]) == Site(2)
    for change, message in (
        ({"dataset_average_activation_norm": {}}, "must give d_model"),
        ({"hook_point_out": "blocks.2.hook_mlp_out"}, "transcoder of Llama Scope"),
        ({"d_sae": 8}, r"encoder.weight .* has shape \(40, 16\), the other arrays expect \(8, 16\)"),
        ({"act_fn": "topk"}, "only jumprelu"),
    ):
        (tmp_path / "hyperparams.json").write_text(json.dumps({**settings, **change}))
        with pytest.raises(ValueError, match=message):
            load_dictionary(tmp_path)


def test_sparsify_folders_are_read(tmp_path):
    folder = tmp_path / "layers.3"
    folder.mkdir()
    sae, hidden_ND = lens("topk", "float32", k=5), drawn(10, WIDTH)
    arrays = {"encoder.weight": sae.W_enc.T, "encoder.bias": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    save_file({name: tensor.data.clone().contiguous() for name, tensor in arrays.items()}, folder / "sae.safetensors")
    settings = {"d_in": WIDTH, "num_latents": SIZE, "k": 5}
    (folder / "cfg.json").write_text(json.dumps(settings))
    found = load_dictionary(folder)
    assert named_site(tiny_llama(n_layers=4), found.metadata["hf_hook_name"]) == Site(3)
    torch.testing.assert_close(found.encode(hidden_ND), sae.encode(hidden_ND), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.decode(found.encode(hidden_ND)), sae(hidden_ND), rtol=1e-4, atol=1e-4)
    (folder / "cfg.json").write_text(json.dumps({**settings, "transcode": True}))
    model = tiny_llama(n_layers=4)
    transcoder = load_dictionary(folder.rename(tmp_path / "layers.3.mlp"))
    assert sites_of(model, transcoder) == (Site(3, "mlp", "in"), Site(3, "mlp"))
    plain = lens("topk", "float32", k=5, apply_b_dec_to_input=False)
    torch.testing.assert_close(transcoder.encode(hidden_ND), plain.encode(hidden_ND), rtol=1e-4, atol=1e-4)
    (tmp_path / "layers.3.mlp" / "cfg.json").write_text(json.dumps({**settings, "activation": "groupmax"}))
    with pytest.raises(ValueError, match=r'has activation "groupmax" .*; only topk is read'):
        load_dictionary(tmp_path / "layers.3.mlp")


def test_a_folder_of_sae_lens_gives_the_same_numbers_in_any_dtype(tmp_path, bed):
    from sae_lens import SAE

    sae, hidden_ND = SAE.load_from_disk(bed.folder / "sae", dtype="float32"), 5 * drawn(40, 128)
    torch.testing.assert_close(bed.sae.encode(hidden_ND), sae.encode(hidden_ND), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bed.sae.decode(bed.sae.encode(hidden_ND)), sae(hidden_ND), rtol=1e-4, atol=1e-4)
    half = load_dictionary(bed.folder / "sae", dtype=torch.bfloat16)
    assert half.encode(hidden_ND).dtype == torch.bfloat16
    assert fvu(half, hidden_ND) == pytest.approx(fvu(bed.sae, hidden_ND), abs=0.02)
    assert dictionary_hash(half) != dictionary_hash(bed.sae)
    assert dictionary_hash(bed.sae) == dictionary_hash(load_dictionary(bed.folder / "sae"))
    assert dictionary_hash(replace(bed.sae, metadata={})) == dictionary_hash(bed.sae)
    topk = replace(bed.sae.encoder.activation, k=15)
    assert isinstance(topk, TopKCoding)
    other = replace(bed.sae, encoder=replace(bed.sae.encoder, activation=topk))
    assert dictionary_hash(other) != dictionary_hash(bed.sae)


def _spoilt(tmp_path, **changes):
    np.savez(tmp_path / "params.npz", **{**scope_arrays(), **changes})
    return tmp_path


def test_damaged_and_foreign_folders_are_refused_56(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no folder .*release and its sae_id"):
        load_dictionary(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds nothing, which is no layout that is read: sae-lens"):
        load_dictionary(tmp_path)
    (tmp_path / "ae.pt").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="pickles are never loaded"):
        load_dictionary(tmp_path)
    with pytest.raises(ValueError, match=r"b_enc in .* has shape \(7,\), the other arrays expect \(40,\)"):
        load_dictionary(_spoilt(tmp_path, b_enc=np.zeros(7, np.float32)))
    with pytest.raises(ValueError, match=r"w_enc in .* must have 2 axes"):
        load_dictionary(_spoilt(tmp_path, w_enc=np.zeros(7, np.float32)))
    with pytest.raises(ValueError, match=r"holds NaN or infinity \(in directions_FD\)"):
        load_dictionary(_spoilt(tmp_path, w_dec=np.full((SIZE, WIDTH), np.nan, np.float32)))
    with pytest.raises(ValueError, match="not an archive of plain number arrays"):
        load_dictionary(_spoilt(tmp_path, w_dec=np.array([{}], dtype=object)))
    np.savez(tmp_path / "params.npz", w_enc=np.zeros((WIDTH, SIZE)), w_dec=np.zeros((SIZE, WIDTH)))
    with pytest.raises(ValueError, match="has no b_enc; it holds w_dec, w_enc"):
        load_dictionary(tmp_path)
    (tmp_path / "params.npz").write_bytes(b"PK not really")
    with pytest.raises(ValueError, match="damaged or pickled"):
        load_dictionary(tmp_path)


def test_folders_of_sae_lens_that_cannot_be_used_are_refused(tmp_path, bed):
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    training = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=WIDTH, d_sae=SIZE, k=4, device="cpu"))
    training.save_model(tmp_path / "training")
    with pytest.raises(ValueError, match="training checkpoint must be saved with save_inference_model"):
        load_dictionary(tmp_path / "training")
    (tmp_path / "bare").mkdir()
    weights = load_file(bed.folder / "sae" / "sae_weights.safetensors")
    save_file(weights, tmp_path / "bare" / "sae_weights.safetensors")
    with pytest.raises(ValueError, match=r"no cfg.json"):
        load_dictionary(tmp_path / "bare")
    config = (bed.folder / "sae" / "cfg.json").read_text()
    (tmp_path / "bare" / "cfg.json").write_text(config)
    weights["b_enc"][3] = torch.nan
    save_file(weights, tmp_path / "bare" / "sae_weights.safetensors")
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        load_dictionary(tmp_path / "bare")


def test_the_registry_is_asked_by_release_and_id_and_failures_are_readable(monkeypatch):
    from sae_lens import SAE

    with pytest.raises(ValueError, match=r"does not know nothing / here: .*not found"):
        load_dictionary("nothing", sae_id="here")
    with pytest.raises(ValueError, match=r"ID l99r_8x not found in release"):
        load_dictionary("llama_scope_lxr_8x", sae_id="l99r_8x")

    def offline(*_, **__):
        raise ConnectionError("cannot reach the hub\nmore lines")

    monkeypatch.setattr(SAE, "from_pretrained", offline)
    with pytest.raises(OSError, match=r"could not be fetched \(ConnectionError: cannot reach the hub\); get it where"):
        load_dictionary("llama_scope_lxr_8x", sae_id="l1r_8x")
    sae = lens("jumprelu", "float32")
    monkeypatch.setattr(SAE, "from_pretrained", lambda *_, **__: sae)
    found = load_dictionary("llama_scope_lxr_8x", sae_id="l1r_8x", dtype=torch.float64)
    torch.testing.assert_close(
        found.encode(drawn(3, WIDTH)), sae.encode(drawn(3, WIDTH)).double(), rtol=1e-5, atol=1e-5
    )


# --- made ------------------------------------------------------------------------------------------------------


def test_made_dictionaries_reconstruct_as_much_as_they_should():
    from sklearn.decomposition import PCA

    hidden_ND = drawn(300, WIDTH, dtype=torch.float64) * torch.arange(1, WIDTH + 1) + 3
    mean_D = hidden_ND.mean(0)
    assert fvu(neuron_dictionary(WIDTH, mean_D=mean_D), hidden_ND) < 1e-20
    oblique_KD = drawn(3, WIDTH, dtype=torch.float64)
    assert fvu(oracle_dictionary(oblique_KD, complete=True), hidden_ND) < 1e-20
    span = torch.linalg.qr(oblique_KD.T).Q
    outside_ND = (hidden_ND - mean_D) - (hidden_ND - mean_D) @ span @ span.T
    expected = (outside_ND.square().sum() / (hidden_ND - mean_D).square().sum()).item()
    assert fvu(oracle_dictionary(oblique_KD, complete=False, mean_D=mean_D), hidden_ND) == pytest.approx(expected)
    judged = 1 - PCA(4).fit(hidden_ND.numpy()).explained_variance_ratio_.sum()
    assert fvu(pca_dictionary(hidden_ND, 4), hidden_ND) == pytest.approx(judged, rel=1e-9)
    first = random_dictionary(WIDTH, SIZE, active=3, seed=0, mean_D=mean_D)
    assert 0.2 < fvu(first, hidden_ND) < 1.5
    torch.testing.assert_close(first.directions_FD.norm(dim=1), torch.ones(SIZE, dtype=torch.float64))
    assert mean_active(first, hidden_ND) == 3
    again, other = (random_dictionary(WIDTH, SIZE, active=3, seed=s, mean_D=mean_D) for s in (0, 1))
    assert dictionary_hash(again) == dictionary_hash(first) != dictionary_hash(other)


def test_a_planted_direction_is_the_first_feature_of_the_oracle_and_its_opposite_n_later():
    planted_KD = drawn(2, WIDTH)
    oracle = oracle_dictionary(planted_KD, complete=True)
    assert oracle.n_features == 2 * WIDTH
    unit_KD = planted_KD / planted_KD.norm(dim=1, keepdim=True)
    f_NF = oracle.encode(torch.stack([4 * unit_KD[0], -3 * unit_KD[1]]))
    expected = torch.zeros(2, 2 * WIDTH)
    expected[0, 0], expected[1, WIDTH + 1] = 4, 3
    torch.testing.assert_close(f_NF, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(oracle.active(f_NF), expected > 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rows_dictionary(torch.zeros(3, 4), active=1), "row 0 has no length"),
        (lambda: rows_dictionary(torch.ones(3, 4), active=4), r"active must lie in 1\.\.3"),
        (lambda: random_dictionary(0, 4, active=1, seed=0), "must be positive"),
        (lambda: pca_dictionary(torch.randn(5, 8), 5), r"have 1\.\.4 principal components"),
        (lambda: neuron_dictionary(0), "must be positive"),
        (lambda: neuron_dictionary(4, mean_D=torch.zeros(5)), "mean_D must be 4 finite numbers"),
        (lambda: oracle_dictionary(torch.ones(2, 4), complete=True), "not linearly independent"),
        (lambda: oracle_dictionary(torch.zeros(1, 4), complete=True), "no length"),
    ],
)
def test_made_dictionaries_refuse_what_they_cannot_be_made_of(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_fvu_of_a_transcoder_is_against_what_it_should_write():
    found = dictionary(lens("skip_transcoder"))
    hidden_ND = drawn(50, WIDTH, dtype=torch.float64)
    output_ND = found.decode(found.encode(hidden_ND), hidden_ND)
    assert fvu(found, hidden_ND, output_ND) == 0
    noise_ND = drawn(50, 12, seed=3, dtype=torch.float64)
    noisy_ND = output_ND + noise_ND
    expected = noise_ND.square().sum() / (noisy_ND - noisy_ND.mean(0)).square().sum()
    assert fvu(found, hidden_ND, noisy_ND) == pytest.approx(expected.item())
    with pytest.raises(ValueError, match="writes width 12 at each of 50 tokens"):
        fvu(found, hidden_ND)


def test_r21_the_settings_of_a_saved_dictionary_do_not_follow_the_hash_seed(tmp_path, bed):
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    save_trained(TopKTrainingSAE(TopKTrainingSAEConfig(d_in=4, d_sae=8, k=2, device="cpu")), tmp_path)
    for folder in (tmp_path, bed.folder / "sae"):
        config = (folder / "cfg.json").read_text()
        assert config == json.dumps(json.loads(config), sort_keys=True)
    assert load_dictionary(tmp_path).encoder.activation.k == 2


# --- where it belongs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("blocks.2.hook_resid_pre", Site(2, side="in")),
        ("blocks.2.hook_resid_post", Site(2)),
        ("blocks.1.hook_out", Site(1)),
        ("blocks.1.hook_attn_out", Site(1, "attention")),
        ("blocks.1.hook_mlp_out", Site(1, "mlp")),
        ("blocks.1.mlp.hook_in", Site(1, "mlp", "in")),
        ("blocks.1.attn.hook_z", Site(1, "heads")),
        ("hook_embed", Site(0, "embedding")),
        ("model.layers.2", Site(2)),
        ("model.layers.2.output", Site(2)),
        ("model.layers.2.input", Site(2, side="in")),
        ("model.layers.0.self_attn", Site(0, "attention")),
        ("model.layers.0.self_attn.o_proj.input", Site(0, "heads")),
        ("model.layers.0.mlp.input", Site(0, "mlp", "in")),
        ("model.layers.0.post_attention_layernorm.output", Site(0, "mlp", "in")),
        ("model.layers.0.input_layernorm", Site(0, "attention", "in")),
        ("model.embed_tokens", Site(0, "embedding")),
        ("model.norm", Site(0, "norm")),
    ],
)
def test_hook_names_are_places(name, site):
    assert named_site(tiny_llama(), name) == site


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.0.hook_resid_mid", "between attention and MLP, not a block's input or output"),
        ("blocks.0.ln2.hook_normalized", "inside a norm, before its weight, not"),
        ("blocks.0.mlp.hook_post", "last linear map, not"),
        ("blocks.0.hook_q", "no place that is known here"),
        ("blocks.7.hook_resid_post", r"layer 7 does not exist; the model has layers 0\.\.2"),
        ("transformer.h.4", r"no module 'transformer.h.4' \(its blocks are model.layers.0"),
        ("model.layers.0.mlp.gate_proj", "is not a block's input or output"),
        ("model.layers.0.input_layernorm.input", "is not a block's input or output"),
    ],
)
def test_hook_names_that_are_no_place_are_refused_with_the_supported_ones(name, message):
    with pytest.raises(ValueError, match=message):
        named_site(tiny_llama(), name)


@pytest.mark.parametrize("kind", ["olmo2", "olmo3", "exaone4", "glm4", "granite", "gemma2", "llama", "falcon", "opt"])
def test_f4_a_hook_name_is_a_site_where_what_it_says_enters_the_residual_stream(kind):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    own = {"opt": {"ffn_dim": 32, "word_embed_proj_dim": 16}, "falcon": {}, "granite": {"residual_multiplier": 0.22}}
    more = own.get(kind, {"head_dim": 4})
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**sizes, **heads, **more})
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()
    adds = kind in ("llama", "falcon", "opt")
    for part, hook in (("attention", "hook_attn_out"), ("mlp", "hook_mlp_out")):
        if kind == "opt" and part == "mlp":
            continue  # it has no module of its own
        if adds:
            assert named_site(model, f"blocks.1.{hook}") == Site(1, part)
        else:
            with pytest.raises(ValueError, match="has a norm or a factor behind its"):
                named_site(model, f"blocks.1.{hook}")
    after = "post_attention_layernorm"
    if kind in ("llama", "granite"):
        assert named_site(model, f"model.layers.1.{after}") == Site(1, "mlp", "in")
    elif kind in ("olmo2", "olmo3", "exaone4", "gemma2"):
        with pytest.raises(ValueError, match="is not a block's input"):
            named_site(model, f"model.layers.1.{after}")


def test_f4_what_a_block_adds_is_not_what_its_parts_return_where_the_names_are_refused():
    """transformers' own states: with a factor behind its parts (Granite), the sum of a block is another one."""
    from transformers import GraniteConfig, GraniteForCausalLM

    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4}
    torch.manual_seed(0)
    for factor in (1.0, 0.22):
        config = GraniteConfig(**sizes, num_key_value_heads=2, num_hidden_layers=2, residual_multiplier=factor)
        model, sites = GraniteForCausalLM(config).eval(), [Site(0, side="in"), Site(0, "attention"), Site(0, "mlp")]
        with captured(model, sites) as states, torch.no_grad():
            after = model(torch.arange(1, 7)[None], output_hidden_states=True).hidden_states[1]
        assert torch.allclose(sum(states.values()), after, atol=1e-6) == (factor == 1.0)
        assert all(adds_to_stream(model, site) == (factor == 1.0) for site in sites[1:])


def test_gpt2_and_families_with_norms_behind_their_parts():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    assert named_site(tiny_gpt2(), "transformer.h.1.ln_2.output") == Site(1, "mlp", "in")
    assert named_site(tiny_gpt2(), "transformer.h.1") == named_site(tiny_gpt2(), "blocks.1.hook_resid_post") == Site(1)
    config = Gemma2Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
    )
    gemma = Gemma2ForCausalLM(config)
    assert named_site(gemma, "model.layers.1.pre_feedforward_layernorm.output") == Site(1, "mlp", "in")
    assert named_site(gemma, "blocks.1.hook_resid_post") == Site(1)
    for name in ("blocks.1.hook_mlp_out", "blocks.1.hook_attn_out"):
        with pytest.raises(ValueError, match="Gemma2DecoderLayer has a norm or a factor behind its"):
            named_site(gemma, name)
    for name in ("post_feedforward_layernorm", "post_attention_layernorm"):
        with pytest.raises(ValueError, match="is not a block's input"):
            named_site(gemma, f"model.layers.1.{name}.output")


def _batch(bed):
    return encode(bed.tokenizer, bed.split.retain_rows[:12])


def test_the_shipped_sae_attaches_where_it_says_57(bed):
    found = attach(bed.original, bed.sae, _batch(bed))
    assert found.site == found.out_site == Site(4)
    assert list(found.fvu_by_site) == [Site(3), Site(4), Site(5)]
    assert min(found.fvu_by_site, key=found.fvu_by_site.get) == Site(4)
    assert found.fvu_by_site[Site(4)] < 0.1
    assert 10 < found.active <= 16
    for layer in (3, 5):
        with pytest.raises(ValueError, match=r"fits layer . better than Site\(.\): fraction of variance unexplained"):
            attach(bed.original, bed.sae, _batch(bed), Site(layer))


def test_an_sae_of_the_original_attaches_to_a_model_made_of_it_14(bed):
    """Its neighbours fit as well there; that alone is no reason to refuse."""
    found = attach(bed.retrained, bed.sae, _batch(bed))
    assert 5 * attach(bed.original, bed.sae, _batch(bed)).fvu_by_site[Site(4)] < found.fvu_by_site[Site(4)] < 1


def test_an_sae_of_another_model_width_or_without_a_place_is_refused_56_57(bed):
    model, batch = tiny_llama(hidden_size=128), random_batch(rows=8)
    with pytest.raises(ValueError, match=r"does not fit Site\(1\): fraction of variance unexplained .* at layer 0"):
        attach(model, bed.sae, batch, Site(1))
    with pytest.raises(ValueError, match=r"layer 4 does not exist|no module"):
        attach(model, bed.sae, batch)
    with pytest.raises(
        ValueError,
        match=r"width 128 where it reads, the hidden states at Site\(1\) have width 16.*probe.testbed original",
    ):
        attach(tiny_llama(), bed.sae, batch, Site(1))
    with pytest.raises(ValueError, match="does not say where it belongs"):
        attach(model, replace(bed.sae, metadata={}), batch)
    with pytest.raises(ValueError, match="only transcoders write"):
        attach(model, bed.sae, batch, Site(1), out_site=Site(2))


def test_an_sae_of_little_use_is_warned_about():
    model, batch = tiny_llama(), random_batch(rows=32)
    states_ND = activations(model, batch, [Site(1)], tokens=content)[Site(1)]
    poor = replace(pca_dictionary(states_ND, 2), metadata={"hook_name": "blocks.1.hook_resid_post"})
    with pytest.warns(UserWarning, match="explains less than half of the variance"):
        attach(model, poor, batch)


def _exact_mlp(model, layer: int, batch) -> Autoencoder:
    """A transcoder that is right: the linear map from an MLP's input to its output, fitted, as the skip path."""
    read, written = Site(layer, "mlp", "in"), Site(layer, "mlp")
    with torch.no_grad(), captured(model, [read, written]) as states:
        model(input_ids=batch.tokens_BT, attention_mask=batch.attention_BT.long())
    x_ND, y_ND = (states[s][content(batch)] for s in (read, written))
    x_ND = torch.cat([x_ND, torch.ones(len(x_ND), 1)], 1)
    fitted = torch.linalg.lstsq(x_ND, y_ND).solution
    width = y_ND.shape[1]
    silent = Relu(torch.full((4,), -1e9))
    return Autoencoder(
        Linear(torch.zeros(width, 4), torch.zeros(width), silent),
        torch.zeros(4, width),
        fitted[-1],
        transcodes=True,
        skip_DE=fitted[:-1],
        metadata={"hook_name": f"blocks.{layer}.mlp.hook_in", "hook_name_out": f"blocks.{layer}.hook_mlp_out"},
    )


def test_a_transcoder_is_judged_by_what_it_writes():
    model, batch = tiny_llama(initializer_range=0.3), random_batch(rows=32)
    with pytest.warns(UserWarning, match="explains less than half"):
        found = attach(model, _exact_mlp(model, 1, batch), batch)
    assert (found.site, found.out_site) == (Site(1, "mlp", "in"), Site(1, "mlp"))
    assert min(found.fvu_by_site, key=found.fvu_by_site.get) == Site(1, "mlp", "in")
    with pytest.raises(ValueError, match=r"does not fit|fits layer 1 better"):
        attach(model, _exact_mlp(model, 1, batch), batch, Site(2, "mlp", "in"), out_site=Site(2, "mlp"))
    half = replace(_exact_mlp(model, 1, batch), metadata={"hook_name": "blocks.1.mlp.hook_in"})
    with pytest.raises(ValueError, match="no hook_name_out"):
        attach(model, half, batch)
