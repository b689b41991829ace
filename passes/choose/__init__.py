"""What stays: by ratios, by losses, under a budget."""
