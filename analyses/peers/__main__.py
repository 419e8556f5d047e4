"""``python -m analyses.peers PEER FOLDER``: the rows of one peer, computed from a checkout of its repository."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

from analyses.peers import closer_look, forks, functions, muse, open_unlearning, others, scores, tofu_layout
from analyses.peers.subject import HEADER, Comparison, Subject, subject

PEERS: dict[str, tuple[str, Callable[[Subject, Path], Iterator[Comparison]]]] = {
    "open-unlearning": ("locuslab/open-unlearning", open_unlearning.comparisons),
    "open-unlearning-metrics": ("locuslab/open-unlearning", scores.comparisons),
    "tofu": ("locuslab/tofu", tofu_layout.tofu),
    "closer-look": ("sail-sg/closer-look-LLM-unlearning", closer_look.comparisons),
    "bootstrapping": ("kemoulee/open-unlearning", forks.bootstrapping),
    "baldro": ("nxZhai/BalDRO", forks.baldro),
    "jensun": ("nmndeep/JensUn-Unlearning", forks.jensun),
    "g-effect": ("tmlr-group/G-effect", tofu_layout.g_effect),
    "g-effect-masked": ("tmlr-group/G-effect", tofu_layout.g_effect_masked),
    "npo": ("licong-lin/negative-preference-optimization", tofu_layout.npo),
    "satimp": ("tmlr-group/SatImp", tofu_layout.satimp),
    "flat": ("UCSC-REAL/FLAT", tofu_layout.flat),
    "circuit-breakers": ("ks-fahad/CircuitBreakers", others.circuit_breakers),
    "tar": ("rishub-tamirisa/tamper-resistance", others.tar),
    "loku": ("csm9493/efficient-llm-unlearning", others.loku),
    "elm": ("rohitgandikota/erasing-llm", functions.elm),
    "lat": ("aengusl/latent-adversarial-training", functions.lat),
    "r2mu": ("OPTML-Group/Unlearn-R2MU", functions.r2mu),
    "undial": ("dong-river/LLM_unlearning", functions.undial),
    "muse": ("swj0419/muse_bench", muse.muse),
    "smooth": ("OPTML-Group/Unlearn-Smooth", muse.smooth),
}


def main() -> None:
    """Print the table of one peer."""
    known = "\n".join(f"  {name:<24} {repository}" for name, (repository, _) in PEERS.items())
    parser = argparse.ArgumentParser(
        prog="python -m analyses.peers",
        description=__doc__,
        epilog=f"peers, and the repository that FOLDER is a checkout of:\n{known}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    print(HEADER)
    for row in PEERS[given.peer][1](subject(), given.folder):
        print(row, flush=True)


if __name__ == "__main__":
    main()
