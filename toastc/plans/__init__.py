"""What is to be done to a model, as data. Knows numpy and no framework."""
