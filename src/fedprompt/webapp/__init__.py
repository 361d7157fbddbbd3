"""A web page that classifies images with trained adapters, for people who do not use a shell."""
