"""Weights split over two processes: the same losses and weights as one process that holds all of them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import random_batch, tiny_llama
from safetensors.torch import load_file

from probe.objectives.representation import NearOriginal, TowardsTarget
from probe.objectives.sequence import NPO
from probe.objectives.token import ga, nll
from probe.sites import Site, blocks
from probe.train import EMA, SAM, TAR, FineTuning, Term, minimise, sharded

ROOT = Path(__file__).parents[1]

WORKER = """
import json, sys
sys.path[:0] = [{tests!r}]
from accelerate import Accelerator
import torch
torch.set_num_threads(1)
from conftest import random_batch, tiny_llama
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from probe.objectives.retain import ForwardKL
from probe.objectives.sequence import NPO
from probe.objectives.token import ga, nll
from probe.train import Checkpointing, Term, constant, gathered, minimise, rows, sharded, target_tokens

accelerator = Accelerator(cpu=True)
n = accelerator.num_processes
RECIPES = {{
    "grad_diff": [Term(0.5, ga, random_batch(0), "forget", target_tokens), Term(1.0, nll, random_batch(2), "retain",
                  target_tokens)],
    "npo_kl": [Term(1.0, NPO(tiny_llama(1), 0.1), random_batch(0), "forget", rows),
               Term(1.0, ForwardKL(tiny_llama(1)), random_batch(2), "retain", target_tokens)],
}}
def made(**changes):
    model = tiny_llama(**changes)
    return model if n == 1 else sharded(model, accelerator)
def report(name, model, history):
    weights = {{k: v.contiguous().clone() for k, v in gathered(model).items()}}
    if accelerator.is_main_process:
        print("LOSSES", json.dumps([name, [list(step) for step in history.losses]]), flush=True)
        save_file(weights, {out!r} + "/" + name + "-" + str(n) + ".safetensors")
HOW = dict(lr=1e-3, batch_size=4 // n, seed=0, accelerator=accelerator)
for name, terms in RECIPES.items():
    model = made()
    if n == 2:
        assert all(isinstance(p, DTensor) for p in model.parameters())
        assert sum(p.to_local().numel() for p in model.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())
    report(name, model, minimise(model, terms, steps=4, **HOW))
terms = RECIPES["grad_diff"]
model = made()
with torch.no_grad():
    model(**random_batch(0).inputs)  # it has run before, with other flags
minimise(model, terms, steps=1, parameters=r"layers.1.mlp", **HOW)
report("twice", model, minimise(model, terms, steps=2, **HOW))
report("tied", tied := made(tie_word_embeddings=True), minimise(tied, terms, steps=3, **HOW))
report("clipped", half := made(), minimise(half, terms, steps=3, clip=0.01, accumulate=2, **HOW))
class Killed(BaseException): pass
def killer(step, model):
    if step == 3: raise Killed
folder = {out!r} + "/run-" + str(n)
try:
    minimise(made(), terms, steps=4, checkpoint=Checkpointing(folder, 2), every=1, observe=killer, **HOW)
except Killed:
    pass
report("resumed", again := made(), minimise(again, terms, steps=4, checkpoint=Checkpointing(folder, 2), **HOW))
try:
    minimise(made(), terms, steps=4, checkpoint=Checkpointing(folder, 2), **dict(HOW, lr=2e-3))
except ValueError as error:
    assert "lr: 0.001 there, 0.002 now" in str(error), error
else:
    raise AssertionError("another configuration was taken")
accelerator.end_training()
"""


@pytest.mark.slow
def test_split_weights_are_trained_as_whole_ones(tmp_path):
    found = {}
    for n in (1, 2):
        script = tmp_path / f"worker{n}.py"
        script.write_text(WORKER.format(tests=str(ROOT / "tests"), out=str(tmp_path)))
        launch = ["torch.distributed.run", "--nproc_per_node", str(n), "--standalone"]
        command = [sys.executable, "-m", *launch, str(script)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-3000:]
        lines = [line.split(" ", 1)[1] for line in done.stdout.splitlines() if line.startswith("LOSSES")]
        found[n] = dict(json.loads(line) for line in lines)
    assert list(found[1]) == list(found[2]) == ["grad_diff", "npo_kl", "twice", "tied", "clipped", "resumed"]
    for name, losses in found[1].items():
        torch.testing.assert_close(torch.tensor(found[2][name]), torch.tensor(losses), rtol=2e-6, atol=1e-6)
        one, two = (load_file(tmp_path / f"{name}-{n}.safetensors") for n in (1, 2))
        start = tiny_llama(tie_word_embeddings=name == "tied").state_dict()
        assert one.keys() == two.keys() == start.keys()
        assert max((one[k] - start[k]).abs().max() for k in one) > 1e-3
        for key in one:
            torch.testing.assert_close(two[key], one[key], rtol=0, atol=2e-6)
    assert found[2]["resumed"] == found[2]["grad_diff"]
    again, whole = (load_file(tmp_path / f"{name}-2.safetensors") for name in ("resumed", "grad_diff"))
    assert all(torch.equal(again[key], whole[key]) for key in whole)


@pytest.fixture
def split():
    """A model split over a process group of one."""
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    model = tiny_llama()
    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    yield fully_shard(model, mesh=mesh)
    torch.distributed.destroy_process_group()


def launched(n: int = 2, kind: str = "DistributedType.MULTI_CPU"):
    return SimpleNamespace(num_processes=n, process_index=0, distributed_type=kind, unwrap_model=lambda m: m)


def terms(objective=ga):
    return [Term(1.0, objective, random_batch(), "forget", len), Term(1.0, nll, random_batch(1), "retain", len)]


ATTACK = FineTuning(nll, random_batch(), 1e-3, 2)


@pytest.mark.parametrize(
    ("objective", "how", "told"),
    [
        (ga, {"stepping": SAM(0.1)}, "SAM moves weights within a step"),
        (ga, {"stepping": TAR([ATTACK], 2, 1, 0.0, ("forget",))}, "TAR moves weights within a step"),
        (ga, {"averaging": EMA(0.5)}, "EMA keeps a copy of whole weights"),
        (TowardsTarget(Site(1), torch.ones(16)), {}, r"forget reads hidden states at Site\(1\).*without FSDP"),
        (ga, {"accelerator": None}, "pass the accelerator of the launch"),
    ],
)
def test_what_split_weights_do_not_allow_is_refused(split, objective, how, told):
    with pytest.raises(ValueError, match=told):
        minimise(split, terms(objective), steps=2, lr=1e-3, batch_size=2, seed=0, **{"accelerator": launched()} | how)


def test_other_ways_of_splitting_are_refused():
    for kind in ("DistributedType.FSDP", "DistributedType.DEEPSPEED"):
        with pytest.raises(ValueError, match=rf"{kind} splits weights.*probe\.train\.sharded.*FSDP version 2"):
            minimise(tiny_llama(), terms(), steps=1, lr=1e-3, batch_size=2, seed=0, accelerator=launched(kind=kind))
    with pytest.raises(ValueError, match="needs several processes"):
        sharded(tiny_llama(), launched(1))


def test_references_do_not_count_as_sites(split):
    from probe.train.sharding import site_in

    assert site_in(NPO(tiny_llama(), 0.1)) is None
    assert site_in(NearOriginal(tiny_llama(), Site(2))) == Site(2)
