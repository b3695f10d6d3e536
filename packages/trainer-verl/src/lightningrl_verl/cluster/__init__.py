"""Training on many processes and machines: Ray, verl's worker group, and our ranks in it.

Imported only by runs whose recipe says `cluster: ray`. Invariant: a local Ray ends with the process that
started it, however that ends; a cluster that was joined is left as it was.
"""
