"""Pretrained models: found by the reference that a recipe gives, and made a Hugging Face folder once.

Invariant: what is handed on is a folder whose tokenizer ends an answer where its chat template ends it, and
whose text survives the way to token ids and back; a model of which that is not true is refused.
"""
