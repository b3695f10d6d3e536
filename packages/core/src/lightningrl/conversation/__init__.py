"""Pure: what was said in a model call, whatever its dialect; `history` reads whole calls.

Invariant: importing this loads nothing, so that capture, which wants little of it, stays light in a user's agent.
"""
