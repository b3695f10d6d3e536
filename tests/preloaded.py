"""What `warm_process.py` loads once: all that a trainer on a CPU imports.

Invariant: it starts no thread, so that processes may be forked from it.
"""

import os

# As `lightningrl train` does before it loads torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import matplotlib.figure
import matplotlib.ticker  # noqa: F401

import lightningrl_verl.start.run
import lightningrl_verl.worker.policy_rank  # noqa: F401
from lightningrl_verl.machine.quiet import quiet
from lightningrl_verl.worker.workers import select_platform

select_platform("cpu")
with quiet():
    import verl.utils.tensordict_utils
    import verl.utils.tracking
    import verl.workers.engine_workers  # noqa: F401
