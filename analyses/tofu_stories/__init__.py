"""Unlearn TOFU's forget01 from a real pretrained model of 260,032 parameters, and report what it did.

stories260K is fine-tuned on the last 200 rows of TOFU (10 authors); its twin never sees forget01 (2 of them). RMU and
NPO unlearn forget01. Fine-tuned models are kept under the hash of everything that made them and are not made twice.
"""
