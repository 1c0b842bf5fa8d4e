"""A process that watches the servers of this machine and sends what it sees to a gateway's hub.

Does not know: requests, or what is made of the state.
"""
