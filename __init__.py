"""Trimtab: a reinforcement-learning scheduling agent for fleets of LLM replicas.

Importing it registers the Gymnasium environment `trimtab/ShortTerm-v0`.
"""

from gymnasium.envs.registration import register, registry

__version__ = "0.1.0"

# pytest imports this file a second time, under the name of the checkout's folder.
if "trimtab/ShortTerm-v0" not in registry:
    register(
        id="trimtab/ShortTerm-v0",
        entry_point="trimtab.env.short_term_env:ShortTermEnv",
        vector_entry_point="trimtab.env.vector_env:FleetVectorEnv",
    )
