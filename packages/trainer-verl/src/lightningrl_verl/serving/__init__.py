"""Whoever answers while a run trains, and how new weights reach them.

`engines.py` is the seam, `policy.py` a policy at the gateway: hold, swap, probe, publish. How weights travel:

| engines | module | weights |
|---|---|---|
| one in the trainer's process | `local_engine.py` | swapped between two decode steps |
| several processes here | `replicas.py` | `weight_file.py` |
| vLLM servers of others | `vllm_servers.py` | `weight_file.py`, read by `inside_vllm/` |
| vLLM that verl starts | `managed_engines.py` | verl's own transfer, or `cluster/broadcast.py` |

Invariant: nothing is released on weights that the trainer doesn't hold.
"""
