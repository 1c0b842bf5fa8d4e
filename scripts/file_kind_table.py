"""All kinds of YAML files that the commands know, those of higher rooms too.

Does not know: what is in them.
"""

from ..agents.constraints.policy_kind import POLICY_KIND
from ..env.file_kinds import FILE_KINDS, FileKind

KINDS: dict[str, FileKind] = {**FILE_KINDS, "policy": POLICY_KIND}
"""By name; each has an example in `env/data/examples`."""
