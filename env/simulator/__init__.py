"""The compiled event-driven simulator of a fleet of LLM replicas."""
