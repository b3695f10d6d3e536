"""One start of `lightningrl train`: check, prepare, start what the run needs, run the loop, sum up.

Invariant: what can be refused without torch or verl is refused before either is loaded.
"""
