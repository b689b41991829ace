"""What every width of every coupling costs: moments, losses, gains, times."""
