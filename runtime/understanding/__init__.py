"""What a live request asks for: from the bytes of its body to the facts that the dispatcher needs.

Does not know: where a request runs, or how it came in.
"""
