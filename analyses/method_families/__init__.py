"""Do the three families of methods differ once all retain as much? Many methods, three seeds, calibrated by mixing.

Every method unlearns the testbed; the result is mixed with the original until it keeps a stated share of the retain
score (UWC, arXiv 2406.09179), on rows that are not reported on. Settings were not searched: RMU's, GA's and the
divergence family's learning rate are the report's, the others are first guesses. Killed runs go on where they stopped.
"""
