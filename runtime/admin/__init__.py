"""The admin API of a live gateway: state out, orders in; a port and a token of its own.

Does not know: how anything that it is asked for is done.
"""
