"""Which method forgets most once all retain as much, and which metric can be trusted to say so?

Every method unlearns; the result is mixed with the original until it keeps a stated share of the retain extraction
strength (UWC, arXiv 2406.09179), on rows that are not reported on. Both models are then measured on forget rows before
and after four attacks. Leaves records, tables, figures and claims.txt; killed runs go on where they stopped.
"""
