"""Trimtab: a reinforcement-learning scheduling agent for fleets of LLM replicas."""

__version__ = "0.1.0"
