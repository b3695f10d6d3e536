"""What each screen shows, read from folders and stores: plain values without any HTML.

Invariant: a trace is assembled, a conversation read and a check made by core's functions, as `lightningrl show` and
`lightningrl doctor` do; here is only what puts their answers side by side.
"""
