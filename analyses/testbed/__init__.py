"""Make the testbed that ships with the package: two models, their tokenizer, an SAE and a card of measured numbers.

The folder is replaced only when everything is made. On another machine, or with other versions than the card names, the
same recipe gives other weights.
"""
