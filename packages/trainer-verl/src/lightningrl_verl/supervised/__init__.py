"""Supervised fine-tuning: demonstrations become rows, rows updates, and the result a folder to start from.

Invariant: a token is trained only where an assistant said it; what is left out is counted with the reason.
"""
