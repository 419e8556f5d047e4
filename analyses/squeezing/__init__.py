"""Where does the probability go that unlearning takes from the answers, and what do models say instead?

Five methods unlearn the testbed (GA, GradDiff, NPO, BS-T, BS-S; Li et al., arXiv 2510.19422). At five steps of every
run the same questions are put to the model; its end is measured as it is and mixed with the original to equal
retention. Learning rates and steps were not searched. Killed runs go on where they stopped.
"""
