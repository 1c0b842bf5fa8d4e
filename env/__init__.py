"""The fleet as a Markov decision process: hardware, latency, simulator, environment."""
