"""Models over smaller alphabets, and ensembles of models with different tokenizers.

Lossless vocabulary reduction: a token model re-expressed, exactly, over bytes or any other set of
byte strings. Source: arXiv 2510.08102.
"""
