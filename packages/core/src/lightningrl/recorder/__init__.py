"""Recording in production: rollouts go to a store without a server of ours between agent and model.

`record` begins it, `lightningrl.rollout` marks what one rollout is, `feedback` adds what users say later.
"""

from lightningrl.recorder.process import active, feedback, is_called, record, uninstall_adapters
from lightningrl.recorder.recorder import Counts, Recorder
from lightningrl.recorder.redaction import redact_texts

__all__ = [
    "Counts",
    "Recorder",
    "active",
    "feedback",
    "is_called",
    "record",
    "redact_texts",
    "uninstall_adapters",
]
