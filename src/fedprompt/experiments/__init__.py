"""The only assembly: a recipe becomes backbone, clients and methods here; everything below takes plain arguments."""
