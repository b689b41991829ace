"""What stays makes up for what goes."""
