"""Our objectives beside the public code they cite: the same model, batches and settings, both gradients compared.

Run as ``python -m analyses.peers PEER FOLDER``, FOLDER being a checkout of the peer's repository. Nothing is fetched,
and nothing of it is kept. ``docs/peers.md`` holds what came out.
"""
