"""What people run: the console script, the lab, the set-up."""
