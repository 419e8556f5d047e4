"""Which layers of an unlearned model do the forgetting, which cost utility, and what do they do to the text?

Each method unlearns a copy of the model; single blocks, every span of blocks, and attention or mlp alone are then put
into the original and the other way round. Layers are chosen as CRU does on one half of the authors and reported on the
other. Settings were not searched. Leaves records, figures, tables and claims.txt; killed runs go on where they stopped.
"""
