"""What runs inside the agent's process: who is asking, which step it is in, and where that is told.

Invariant: outside a rollout nothing here changes what a program does, and inside one no event is ever
filed under another rollout. Imports only the standard library and msgspec; `openai` only if present.
"""
