"""Training a TopK dictionary of 1,024 features on the testbed's activations: time for 1 M tokens, memory, quality."""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.timing import peak_mib
from probe.archive import harvest_to_files
from probe.dictionaries.folders import load_dictionary
from probe.features.architectures import TopK
from probe.features.quality import quality
from probe.features.training import fit_dictionary, train_dictionary
from probe.positions import not_first
from probe.testbed import load as load_testbed

BATCH = 4096


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=245)
    settings = parser.parse_args()
    bed = load_testbed()
    model, site = bed.original, bed.sae_site
    n = len(bed.split.retain)
    seen, judged = bed.split.retain.select(range(n - 100)), bed.split.retain.select(range(n - 100, n))
    numbers = {"n_features": 1024, "batch_size": BATCH, "lr": 1e-3, "seed": 0}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        stored_ND = harvest_to_files(
            model, seen.chunks(64), [site], out / "store", dtype=torch.float32, positions=not_first
        )[site]
        for name, hidden in (("in memory", stored_ND.clone()), ("memory-mapped", out / "store")):
            wall, cpu = time.perf_counter(), time.process_time()
            made = train_dictionary(
                model,
                site,
                hidden,
                judged,
                out / name,
                architecture=TopK(16),
                steps=settings.steps,
                least_variance=0.9,
                **numbers,
            )
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            # What users load is what was measured.
            again = quality(model, load_dictionary(out / name), site, judged, l0_target=16.0)
            assert abs(again.l0 / 16 - 1) < 0.1
            assert again.explained_variance == made.quality.explained_variance
            q = made.quality
            by_layer = {layer: round(value, 3) for layer, value in q.fvu_by_layer.items()}
            print(
                f"{name}: {settings.steps * BATCH:,} tokens of {len(stored_ND):,} activations, width 128, 1,024 "
                f"features: {cpu:.1f} s CPU, {wall:.1f} s wall; variance explained {q.explained_variance:.3f}, L0 "
                f"{q.l0:.2f}, {q.dead} dead, loss {q.loss:.4f} -> {q.loss_spliced:.4f} spliced "
                f"({q.loss_mean:.2f} mean), FVU {by_layer}",
                flush=True,
            )
        same = [(out / name / "sae_weights.safetensors").read_bytes() for name in ("in memory", "memory-mapped")]
        assert same[0] == same[1]
        # Memory does not grow with steps.
        peak = peak_mib(lambda: fit_dictionary(stored_ND, TopK(16), steps=4, metadata={}, **numbers))
        print(f"resident memory rises by at most {peak:.0f} MiB while training")


if __name__ == "__main__":
    main()
