"""Class descriptions from language models: attributes and co-occurrence conditions in a reviewed file."""
