"""verl below us: policies and critics, cut into ranks, and what an update does to their weights.

`backend.py`, `critic.py`, `ranks.py` and `learner.py` are the driver's side, `policy_rank.py` and `critic_rank.py` one
rank's; `backend_config.py` is what a recipe says, in verl's words. Invariant: no module of verl's is imported
outside this room, `cluster/`, `cpu/` and the trackers.
"""
