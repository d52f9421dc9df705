"""From a recipe to a measured model file."""
