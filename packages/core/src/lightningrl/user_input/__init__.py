"""What users write in recipes, settings and commands: names, references to their code, arguments.

Invariant: what can't be meant is refused, with what stands there and the nearest thing that could.
"""
