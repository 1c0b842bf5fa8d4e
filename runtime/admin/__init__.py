"""The admin port of a gateway: state out, knobs in, orders of operators; and its client.

Does not know: how a gateway is composed (`runtime/serving`).
"""
