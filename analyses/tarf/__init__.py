"""TARF, which unlearns a concept of which only a part is listed, beside conventional methods.

digits: the domain it was made for, an image classifier whose labels, forget list and target concept differ. Each
method may choose among six settings per scenario, by Gap to retraining on seeds that are not reported: more than a
practitioner has, the same for all. Leaves rows.jsonl, settings.json, tables, one figure and claims.txt in ten minutes.

language: the testbed's ten forget authors have ten facts each; five, drawn by the seed, are listed, the other five lie
among the remaining rows. The concept is the author. Leaves rows.jsonl and claims.txt; about three minutes on one core.
"""
