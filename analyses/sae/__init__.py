"""Does suppressing SAE features remove knowledge, at what dose, and what does an SAE do that its controls do not?

dose-response: three published rules x two numbers of features x six strengths. Features and settings are chosen on one
half of the people and reported on the other. A seed is another division of the people.

controls: random dictionaries, single neurons and one direction go through the same choice. A layer sweep holds how well
features detect the forget rows against what suppressing them does; weights orthogonalised against features are audited
with hooks off.

Both leave records, figures and claims.txt; killed runs go on where they stopped.
"""
