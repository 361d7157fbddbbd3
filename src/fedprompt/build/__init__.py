"""The only assembly: recipes become backbones, clients and methods here, in small named steps; everything below takes plain arguments."""
