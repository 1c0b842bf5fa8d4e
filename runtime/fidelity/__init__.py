"""How close a simulation is to a real engine: its times measured, a recorded run fitted.

Does not know: who serves.
"""
