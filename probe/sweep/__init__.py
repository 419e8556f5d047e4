"""Run a function over a grid, here or on many machines, so that a kill loses no finished cell; read back what it gave.

A cell is known by the hash of all that determines it. Finished cells are one whole line each in a journal;
``results.jsonl`` is there once every cell is finished, in the order of the grid. Where a cell gives the same numbers
each time, it has the same bytes however often the run was interrupted and over how many shards it was spread.
"""

from probe.exports import export

export(__name__)
