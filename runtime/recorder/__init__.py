"""What a live run did, written down so that it can be replayed.

Does not know: prompts: only lengths and block hashes are kept.
"""
