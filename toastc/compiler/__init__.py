"""A request becomes a smaller model that is proven."""
