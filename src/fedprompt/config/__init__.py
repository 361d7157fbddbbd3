"""Recipes: TOML tables checked by pydantic, and the registry of what their names stand for."""
