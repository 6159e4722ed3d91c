"""Runtime moment of the doctor: invariants of any PyTorch loop, judged at each step while it trains."""
