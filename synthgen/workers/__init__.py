"""How worker processes are placed and started. Knows no stage."""
