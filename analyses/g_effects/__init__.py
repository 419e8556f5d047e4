"""What do unlearning objectives do to forget and retain data, token by token and layer by layer, as they train?

Each method trains a copy of the model; at six points of its run the gradients of its objectives are multiplied with
those of the forget and the retain loss (Wang et al., arXiv 2502.19301), at two of them with those of every token.
Settings were not searched. Leaves records, figures and claims.txt; killed runs go on where they stopped.
"""
