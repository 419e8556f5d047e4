"""Models whose truth is known, every diagnostic on each, and a verdict with its error rate.

build: the zoo. A finished model is never made again. Parts may be run side by side with --only; a last call without it
fits the verdict, draws the figures and writes docs/validity.md.

stories: the same verdict on a model that no part of it was fitted to, stories260K after it learned TOFU rows. Its
truths are known as in the zoo: by construction, or by relearning on the half that the verdict does not show. Each model
is measured once and judged with and without the retrained model beside it. Writes docs/validity_stories.md.
"""
