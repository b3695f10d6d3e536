"""Wire formats that agents speak, one module each; all pure: bytes in, bytes out."""

from __future__ import annotations

from collections.abc import Mapping

from lightningrl.gateway.dialects.anthropic import ANTHROPIC
from lightningrl.gateway.dialects.anthropic_fields import ANTHROPIC_FIELDS
from lightningrl.gateway.dialects.base import Spoken
from lightningrl.gateway.dialects.chat import CHAT
from lightningrl.gateway.dialects.chat_fields import CHAT_FIELDS
from lightningrl.gateway.dialects.completions import COMPLETIONS
from lightningrl.gateway.dialects.completions_fields import COMPLETIONS_FIELDS
from lightningrl.gateway.dialects.fields import FieldTable
from lightningrl.gateway.dialects.responses import RESPONSES
from lightningrl.gateway.dialects.responses_fields import RESPONSES_FIELDS

SPOKEN: Mapping[str, Spoken] = {
    "chat/completions": CHAT,
    "responses": RESPONSES,
    "messages": ANTHROPIC,
    "completions": COMPLETIONS,
}
"""Route below `/v1/` -> the dialect that is spoken there."""

FIELDS: Mapping[str, FieldTable] = {
    "chat/completions": CHAT_FIELDS,
    "responses": RESPONSES_FIELDS,
    "messages": ANTHROPIC_FIELDS,
    "completions": COMPLETIONS_FIELDS,
}
"""Route below `/v1/` -> what becomes of each request field there."""
