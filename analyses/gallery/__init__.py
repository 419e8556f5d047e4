"""Draw every figure and table of the set on the testbed and write ``docs/gallery.md``.

Rows are measured part by part on the shipped testbed, each part once, so that a killed run goes on where it stopped; a
few minutes on two CPU cores. Where the studies of G-effects, layer maps and calibration were run before, their records
are taken (three seeds), else small runs of the same code. Figures are then drawn by what ``probe figures`` calls.
"""
