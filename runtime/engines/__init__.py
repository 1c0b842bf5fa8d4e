"""Inference engines: what each can do, and how it is asked.

Does not know: which replica a request goes to.
"""
