"""What every performance benchmark shares: load, metering, peers in environments of their own, results.

A benchmark is a script beside this folder. It writes `results/NAME.json`, a list of rows (see
`results.Row`), and prints the same as a table.
"""
