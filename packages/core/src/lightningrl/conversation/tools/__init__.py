"""Tools that the agent runs though they are no plain functions: functions for the engine, and back in their own form.

Invariant: pure functions of one request. A call in its own form, sent back, is the function call that it was made
from, spaces within its arguments aside; a call that does not fit its tool's form comes back as a function call.
"""
