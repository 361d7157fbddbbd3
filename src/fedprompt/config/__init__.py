"""Recipes: TOML tables validated by pydantic, and the registries of the building blocks that they name."""
