"""The policy file among the kinds of YAML files: its schema and its example.

Does not know: the other kinds (`env/file_kinds.py`), or how a policy is used.
"""

from ...env.file_kinds import FileKind, Part
from ..shield.breaker_file import RecoverEntry
from ..shield.fallback import FallbackConfig, FallbackEntry
from ..shield.projection import KnobLimit
from .policy_file import LISTS, PolicyFileEntry, read_policy
from .service_entries import BudgetEntry

_DOCUMENTED_BY: dict[str, tuple[type, ...]] = {"limits": (KnobLimit,)}

POLICY_KIND = FileKind(
    what=(
        "Rules of operators and product owners: who may use what, within which limits, and what "
        "happens in trouble. `trimtab policy check` explains them and tries them on a trace."
    ),
    top=Part((PolicyFileEntry,)),
    parts={
        **{key: Part((kind,), _DOCUMENTED_BY.get(key, ())) for key, kind in LISTS.items()},
        "tenants.budget": Part((BudgetEntry,)),
        "breakers.recover": Part((RecoverEntry,)),
        "fallback": Part((FallbackEntry,), (FallbackConfig,)),
    },
    load=read_policy,
)
